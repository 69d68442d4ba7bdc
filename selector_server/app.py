"""The life of a sidecar: start, serve, drain, stop."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from selector_server import shutdown
from selector_server.build import Sidecar, build, build_metrics_server, build_page, build_servers
from selector_server.config import Config
from selector_server.machine import keep_freed_memory
from selector_server.rpc.server import READY, WEIGHTS, RpcServer
from selector_server.weights.versions import SyncState

log = logging.getLogger(__name__)

# How often health and gauges are brought up to date.
TICK_SECONDS = 0.5
# Time that the last replies get to reach their clients.
LINGER_SECONDS = 1.0
# Time for the parts to end after the drain, and for the worker of them.
END_SECONDS, WORKER_END_SECONDS = 15.0, 5.0


class App:
    """One sidecar. `serve` runs until a signal."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar, self._config = sidecar, sidecar.config
        self._worker, self._metrics = sidecar.worker, sidecar.metrics

    async def serve(self) -> int:
        """Serves until SIGTERM or SIGINT, then drains; a second signal cuts short what goes on by then.

        Returns the exit status: 0 after a drain, 1 if the worker died or was stuck for too long; then nothing is
        waited for. Whatever hangs at the end, the process ends in a bounded time.
        """
        signals, sidecar = shutdown.Signals(), self._sidecar
        metrics_server, page = build_metrics_server(sidecar), build_page(sidecar)
        sidecar.ranks.start()
        server, *others = build_servers(sidecar)
        self._worker.start()
        if sidecar.observer is not None:
            sidecar.observer.start()
        if sidecar.subscriber is not None:
            sidecar.subscriber.start()
        sidecar.access.start()
        await self._follow(server)
        for one in (server, *others):
            await one.start()
        log.info("serving on %s, port %d, %s", self._config.listen, server.port, sidecar.summary)
        sidecar.access.warn()
        log.info("memory: %s", sidecar.memory_guard or "not guarded")
        for one in others:
            log.info("%s is on %s, port %d", one.setting, one.listen, one.port)
        if page is not None:
            log.info("the inspector's page is at %s", page.url)
        while not signals.stop.is_set() and not self._failed:
            await self._follow(server)
            for one in (server, *others):
                one.connections.warn()
            await _wait(signals.stop, TICK_SECONDS)
        failed = self._failed
        if failed:
            await self._fail(server)
        else:
            log.info("draining, at most %s s", self._config.drain_seconds)
            shutdown.end_within(self._config.drain_seconds + LINGER_SECONDS + END_SECONDS, 1)
        drained = asyncio.create_task(self._drain(server))
        forced = asyncio.create_task(signals.force.wait())
        await asyncio.wait([drained, forced], return_when=asyncio.FIRST_COMPLETED)
        if not drained.done():
            await server.stop(0)
        for one in others:
            await one.stop(0)
        forced.cancel()
        fronts = [one for one in (metrics_server, page) if one is not None]
        await self._close([one.close for one in fronts], 0 if failed or signals.force.is_set() else WORKER_END_SECONDS)
        log.info("stopped")
        return 1 if failed else 0

    async def _close(self, fronts: list[Callable[[], None]], worker_seconds: float) -> None:
        """Ends the parts one after the other: off the event loop, which hears signals, and on a thread of its own, for
        those of requests may hang."""
        sidecar = self._sidecar
        sidecar.decoder.close()
        parts = (sidecar.access, sidecar.subscriber, sidecar.ranks, sidecar.observer)
        stops = [part.stop for part in parts if part is not None]
        closes = [part.close for part in (sidecar.cache, sidecar.shared, sidecar.tracing) if part is not None]
        ends: list[Callable[[], None]] = [lambda: self._worker.stop(worker_seconds), *stops, *fronts, *closes]
        thread = ThreadPoolExecutor(1, "closing")
        for end in ends:
            await asyncio.get_running_loop().run_in_executor(thread, end)

    @property
    def _failed(self) -> bool:
        """Whether the worker will not come back: its thread is dead, or was stuck for too long."""
        return not self._worker.alive or self._worker.busy_seconds >= self._config.stall_exit_seconds

    async def _fail(self, server: RpcServer) -> None:
        """Says why the process ends by itself, and sees to it that it does."""
        shutdown.end_within(shutdown.FORCED_SECONDS + LINGER_SECONDS, 1)
        if self._worker.alive:
            log.critical("the worker is stuck for %.0f s: the process ends, status 1", self._worker.busy_seconds)
            shutdown.show_threads()
        else:
            log.critical("the worker is dead: the process ends, status 1")
        await self._follow(server)

    async def _drain(self, server: RpcServer) -> None:
        """Refuses new requests, waits for running ones unless the worker has failed, and then for nothing else: a
        client that watches health or holds an idle connection must not keep the process."""
        self._sidecar.admission.close()
        await server.leave()
        if not self._failed:
            await self._sidecar.admission.wait_idle(self._config.drain_seconds)
        await server.stop(LINGER_SECONDS)

    async def _follow(self, server: RpcServer) -> None:
        """Health and gauges say what worker and weights say."""
        healthy, metrics = self._worker.healthy, self._metrics
        metrics.worker_up.set(healthy)
        await server.set_health(READY, healthy)
        if (versions := self._sidecar.versions) is None:
            return
        current, state = versions.current, versions.status.state
        if self._sidecar.subscriber is not None:
            await server.set_health(WEIGHTS, state in (SyncState.CURRENT, SyncState.WAITING, SyncState.PINNED))
        metrics.weights.version.set(current.version)
        metrics.weights.pinned.set(versions.pinned is not None)
        metrics.weights.step.set(current.trainer_step)
        metrics.weights.age.set(current.age_seconds())


def run(config: Config) -> int:
    """Builds the sidecar and serves; returns the exit status. Raises SetupError."""
    keep_freed_memory()
    return asyncio.run(App(build(config)).serve())


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
