"""The link of a selector for asyncio."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from selector_client.errors import RemoteError, SelectorClientError, Unreachable
from selector_client.selecting.call_errors import status_lost
from selector_client.selecting.channel import health_check, is_serving, open_aio_channel, service
from selector_client.selecting.link import PROBE_SECONDS, Link

# A loop that is busy, or runs only now and then, may take so long to ask the sidecar for its health.
LOOP_SECONDS = 60.0


class AioLink(Link):
    """The link of one event loop. Another loop opens a connection of its own."""

    _loop: asyncio.AbstractEventLoop | None = None

    async def call(self, call: Callable[[Any], Awaitable[Any]]) -> Any:
        """Returns what `call` returns, which is given the calls of SelectorService. Raises SelectorClientError."""
        return await self._through(lambda channel: call(service(channel, self.access)))

    def healthy(self) -> bool:
        if self._loop is None or self._loop.is_closed():
            return True  # nothing is known of what the next loop will find
        asked = asyncio.run_coroutine_threadsafe(self._healthy(), self._loop)
        try:
            return asked.result(LOOP_SECONDS)
        except TimeoutError:
            asked.cancel()
            return False

    async def close(self) -> None:
        """Ends the connection. A later call opens a new one."""
        if (left := self._left()) is not None:
            await left.channel.close(None)

    async def _healthy(self) -> bool:
        try:
            return is_serving(await self._through(lambda channel: health_check(channel, PROBE_SECONDS)))
        except SelectorClientError:
            return False

    async def _through(self, call: Callable[[grpc.aio.Channel], Awaitable[Any]]) -> Any:
        connection = self.take()  # as long as it is held here, a connection that was given up is not closed
        try:
            answer = await call(connection.channel)
        except grpc.RpcError as error:
            failed = await asyncio.to_thread(self.failed, connection, error)  # it may look at the address for a moment
            raise (self._refused() if status_lost(error) else failed) from error
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            if self._current is connection:  # grpc.aio may say this too when the other side has ended the call
                raise self._refused() from error
            raise Unreachable("cancelled", f"{self.address}: closed while a request was under way") from error
        except grpc.aio.UsageError as error:  # grpc.aio raises it when the channel is closed under a running call
            raise Unreachable("closed", f"{self.address}: {error}") from error
        self.heard(connection)
        return answer

    def _refused(self) -> RemoteError:
        return RemoteError("unavailable", f"{self.address}: refused while the request was sent")

    def _open(self, keepalive: float) -> grpc.aio.Channel:
        return open_aio_channel(self.address, self.access, keepalive)

    def _owner(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.get_running_loop()
        return self._loop
