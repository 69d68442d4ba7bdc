"""The link of a selector for asyncio."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import grpc

from selector_client.errors import RemoteError, SelectorClientError, Unreachable
from selector_client.selecting.call_errors import closes_at_once, status_lost
from selector_client.selecting.channel import health_check, is_serving, open_aio_channel, service
from selector_client.selecting.link import PROBE_SECONDS, Connection, Link

# A loop that is busy, or runs only now and then, may take so long to ask the sidecar for its health.
LOOP_SECONDS = 60.0
# A look at the address takes longer only where its name is hard to find.
LOOK_SECONDS = 0.5


class AioLink(Link):
    """The link of one event loop. Another loop opens a connection of its own."""

    _loop: asyncio.AbstractEventLoop | None = None

    async def call(self, call: Callable[[Any], Awaitable[Any]], since: int | None = None) -> Any:
        """Returns what `call` returns, which is given the calls of SelectorService. Raises SelectorClientError, and
        sends nothing if the link was closed since it had been closed `since` times."""
        return await self._through(self.take(since), lambda channel: call(service(channel, self.access)))

    def healthy(self) -> bool:
        """Nothing is known of what the next selection will find if the loop has ended, or does not run for long: it is
        to try."""
        if self._loop is None or self._loop.is_closed():
            return True
        probe = self._healthy()
        try:
            asked = asyncio.run_coroutine_threadsafe(probe, self._loop)
        except RuntimeError:  # the loop was closed just now
            probe.close()
            return True
        try:
            return asked.result(LOOP_SECONDS)
        except TimeoutError:
            asked.cancel()
            return True
        except CancelledError:  # asyncio.run does that to all tasks when it ends
            return True

    async def close(self) -> None:
        """Ends all connections and what is under way in them. A later call opens a new one."""
        for left in self._left():
            await left.channel.close(None)

    async def _healthy(self) -> bool:
        try:
            connection = self.take(probing=True)
            return is_serving(await self._through(connection, lambda channel: health_check(channel, PROBE_SECONDS)))
        except SelectorClientError as error:
            return self._unhealthy(error)

    async def _through(self, connection: Connection, call: Callable[[grpc.aio.Channel], Awaitable[Any]]) -> Any:
        # As long as the connection is held here, it is not closed, though it may be given up.
        try:
            answer = await call(connection.channel)
        except grpc.RpcError as error:
            full = self.is_unclear(error) and await self._closes_at_once()
            failed = self.failed(connection, error, full)
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

    async def _closes_at_once(self) -> bool:
        """Looks on a thread of its own, because those of the loop may all be busy for long."""
        thread = ThreadPoolExecutor(1, "selector-look")
        try:
            look = asyncio.get_running_loop().run_in_executor(thread, closes_at_once, self.address)
            return await asyncio.wait_for(look, LOOK_SECONDS)
        except TimeoutError:
            return False
        finally:
            thread.shutdown(wait=False)

    def _refused(self) -> RemoteError:
        return RemoteError("unavailable", f"{self.address}: refused while the request was sent")

    def _open(self, keepalive: float) -> grpc.aio.Channel:
        return open_aio_channel(self.address, self.access, keepalive)

    def _owner(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.get_running_loop()
        return self._loop
