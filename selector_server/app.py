"""Puts the parts together and runs their life: start, serve, drain, stop."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Literal

import selector_proto
import torch
from selector_proto.v1 import selector_pb2 as pb

from selector_server import ending
from selector_server.config import Config, mask_url
from selector_server.encoding import bundle
from selector_server.encoding.cache import ReferenceCache
from selector_server.encoding.decoder import Decoder
from selector_server.encoding.device import Device
from selector_server.encoding.model import Model, Weights
from selector_server.encoding.preprocess import Limits, Preprocessor
from selector_server.engine.admission import Admission
from selector_server.engine.memory_guard import MemoryGuard
from selector_server.engine.peer_link import PeerLink
from selector_server.engine.preparation import Preparation
from selector_server.engine.selection import Selection
from selector_server.engine.worker import Worker
from selector_server.errors import BundleError, SelectorError, SetupError
from selector_server.machine import keep_freed_memory, memory_bounds, usable_cpus
from selector_server.rpc import reply
from selector_server.rpc.access import Access
from selector_server.rpc.admin import AdminService
from selector_server.rpc.server import READY, WEIGHTS, RpcServer
from selector_server.rpc.service import SelectorService
from selector_server.rpc.shared_memory import SharedFolder
from selector_server.sampling import Loss, Policy, load_policies
from selector_server.sampling.losses.kernel import available as kernel_available
from selector_server.telemetry.metrics import Metrics
from selector_server.telemetry.metrics_server import MetricsServer
from selector_server.telemetry.tracing import Tracing
from selector_server.weights.host_share import HostShare
from selector_server.weights.source import News, RedisSource
from selector_server.weights.store import Store, SyncState, Version
from selector_server.weights.subscriber import Subscriber

log = logging.getLogger(__name__)

# How often health and gauges are brought up to date.
TICK_SECONDS = 0.5
# Time that the last replies get to reach their clients.
LINGER_SECONDS = 1.0
# Time for the parts to end after the drain, and for the worker of them.
END_SECONDS, WORKER_END_SECONDS = 15.0, 5.0


class App:
    """One sidecar. Building it loads the models; `serve` runs until a signal."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.metrics = Metrics()
        self._access = Access(config, self.metrics)
        threads = config.threads or usable_cpus()
        torch.set_num_threads(threads)
        device = Device(config.device, threads)
        self._learner = self._load("learner", device)
        self._reference = self._load("reference", device)
        self._cache = self._open_cache()
        self._store: Store[Weights] | None = None
        self._subscriber: Subscriber[Weights] | None = None
        if self._learner is not None:
            self._store = Store(Version(0, 0, time.time(), self._learner.bundled_weights()))
        if config.redis is not None:
            if self._learner is None or self._store is None:
                raise SetupError("redis", mask_url(config.redis), "weights need a learner; set learner too")
            share = None if config.weights_share is None else HostShare(config.weights_share)
            source = RedisSource(config.redis, config.run, config.max_weights_bytes, config.link(), share)
            poll = config.weights_poll_seconds
            news = News(config.redis, config.run, config.link())
            self._subscriber = Subscriber(source, self._store, self._learner.bind, self.metrics, poll, news)
        tile_bytes = config.sampler_tile_bytes or None
        if config.sampler_fused and not kernel_available(device.torch):
            raise SetupError("sampler_fused", True, "needs triton and a CUDA device of capability 9.0 or newer")
        selection = Selection(
            device.torch, self._learner, self._reference, self._store, self._cache, tile_bytes, config.sampler_fused
        )
        policies = _policies()
        self._worker = Worker(selection.run, config.stall_seconds, device.probe)
        limits = (config.max_pending_requests, config.max_inflight_bytes)
        self._guard = self._memory_guard()
        self._admission = Admission(*limits, self.metrics, self._guard)
        self._tracing = Tracing.of(config.traces, config.otlp_endpoint)
        self._shared = None if config.shared_memory_dir is None else SharedFolder(config.shared_memory_dir)
        if self._shared is not None:
            self.metrics.shm_swept.inc(self._shared.swept)
        info = reply.server_info(config, _versions(), policies, self._learner, self._reference, self._shared)
        self._link = self._peer_link(device)
        self._service = SelectorService(
            config,
            self._admission,
            self._preparation(),
            self._worker,
            selection,
            policies,
            self.metrics,
            self._link,
            self._loss(),
            lambda: info,
            self._status,
            self._shared,
            self._tracing,
        )
        self._admin_service = AdminService(self._store, self._status)
        self._watch(device)
        build = {"version": selector_proto.__version__, "device": config.device, "provider": device.provider}
        self.metrics.build.info(build)

    async def serve(self) -> int:
        """Serves until SIGTERM or SIGINT, then drains; a second signal cuts short what goes on by then.

        Returns the exit status: 0 after a drain, 1 if the worker died or was stuck for too long; then nothing is
        waited for. Whatever hangs at the end, the process ends in a bounded time.
        """
        signals = ending.Signals()
        metrics_server = self._serve_metrics()
        if self._link is not None:
            self._link.start()
        server, *others = self._servers()
        self._worker.start()
        if self._subscriber is not None:
            self._subscriber.start()
        self._access.start()
        await self._follow(server)
        for one in (server, *others):
            await one.start()
        log.info("serving on %s, port %d, %s", self.config.listen, server.port, self._summary())
        self._access.warn()
        log.info("memory: %s", self._guard or "not guarded")
        for one in others:
            log.info("%s is on %s, port %d", one.setting, one.listen, one.port)
        while not signals.stop.is_set() and not self._failed:
            await self._follow(server)
            await _wait(signals.stop, TICK_SECONDS)
        failed = self._failed
        if failed:
            await self._fail(server)
        else:
            log.info("draining, at most %s s", self.config.drain_seconds)
            ending.end_within(self.config.drain_seconds + LINGER_SECONDS + END_SECONDS, 1)
        drained = asyncio.create_task(self._drain(server))
        forced = asyncio.create_task(signals.force.wait())
        await asyncio.wait([drained, forced], return_when=asyncio.FIRST_COMPLETED)
        if not drained.done():
            await server.stop(0)
        for one in others:
            await one.stop(0)
        forced.cancel()
        await self._close(metrics_server, 0 if failed or signals.force.is_set() else WORKER_END_SECONDS)
        log.info("stopped")
        return 1 if failed else 0

    async def _close(self, metrics_server: MetricsServer | None, worker_seconds: float) -> None:
        """Ends the parts one after the other: off the event loop, which hears signals, and on a thread of its own, for
        those of requests may hang."""
        self._decoder.close()
        stops = [part.stop for part in (self._access, self._subscriber, self._link) if part is not None]
        closes = [part.close for part in (self._cache, metrics_server, self._tracing) if part is not None]
        ends: list[Callable[[], None]] = [lambda: self._worker.stop(worker_seconds), *stops, *closes]
        thread = ThreadPoolExecutor(1, "closing")
        for end in ends:
            await asyncio.get_running_loop().run_in_executor(thread, end)

    def _servers(self) -> list[RpcServer]:
        """The one of trainers first; the admin service shares its address unless it has one of its own. One health."""
        service, admin, config = self._service, self._admin_service, self.config
        shared = admin if not config.admin_listen else None
        servers = [RpcServer(service, shared, self.metrics, "listen", config, self._access)]
        one_health = servers[0].health
        if config.admin_listen:
            servers.append(RpcServer(None, admin, self.metrics, "admin_listen", config, self._access, one_health))
        if config.health_listen:
            servers.append(RpcServer(None, None, self.metrics, "health_listen", config, self._access, one_health))
        return servers

    @property
    def _failed(self) -> bool:
        """Whether the worker will not come back: its thread is dead, or was stuck for too long."""
        return not self._worker.alive or self._worker.busy_seconds >= self.config.stall_exit_seconds

    async def _fail(self, server: RpcServer) -> None:
        """Says why the process ends by itself, and sees to it that it does."""
        ending.end_within(ending.FORCED_SECONDS + LINGER_SECONDS, 1)
        if self._worker.alive:
            log.critical("the worker is stuck for %.0f s: the process ends, status 1", self._worker.busy_seconds)
            ending.show_threads()
        else:
            log.critical("the worker is dead: the process ends, status 1")
        await self._follow(server)

    async def _drain(self, server: RpcServer) -> None:
        """Refuses new requests, waits for running ones unless the worker has failed, and then for nothing else: a
        client that watches health or holds an idle connection must not keep the process."""
        self._admission.close()
        await server.leave()
        if not self._failed:
            await self._admission.wait_idle(self.config.drain_seconds)
        await server.stop(LINGER_SECONDS)

    async def _follow(self, server: RpcServer) -> None:
        """Health and gauges say what worker and weights say."""
        healthy = self._worker.healthy
        self.metrics.worker_up.set(healthy)
        await server.set_health(READY, healthy)
        if self._store is None:
            return
        current, state = self._store.current, self._store.status.state
        if self._subscriber is not None:
            await server.set_health(WEIGHTS, state in (SyncState.CURRENT, SyncState.WAITING, SyncState.PINNED))
        self.metrics.weights_version.set(current.version)
        self.metrics.weights_pinned.set(self._store.pinned is not None)
        self.metrics.weights_step.set(current.trainer_step)
        self.metrics.weights_age.set(current.age_seconds())

    def _watch(self, device: Device) -> None:
        """Gauges that are read when they are scraped, and limits."""
        metrics, config, store = self.metrics, self.config, self._store
        metrics.pending_limit.set(config.max_pending_requests)
        metrics.inflight_bytes_limit.set(config.max_inflight_bytes)
        metrics.queue.set_function(lambda: self._worker.queued)
        metrics.memory.read = device.memory
        metrics.memory_limit.set(device.memory_limit())
        if store is not None:
            metrics.weights_state.read = lambda: {state.value: state is store.status.state for state in SyncState}
        if (cache := self._cache) is not None:
            metrics.cache_entries.set_function(lambda: cache.usage()[0])
            metrics.cache_bytes.set_function(lambda: cache.usage()[1])
            metrics.cache_bytes_limit.set(config.cache_bytes)
        if (shared := self._shared) is not None:
            metrics.shm_files.set_function(lambda: shared.usage()[0])
            metrics.shm_bytes.set_function(lambda: shared.usage()[1])

    def _load(self, role: Literal["learner", "reference"], device: Device) -> Model | None:
        path = getattr(self.config, role)
        if path is None:
            return None
        micro_batch = self.config.micro_batch or device.kind.micro_batch
        model = Model(bundle.load(path, role), device, micro_batch, self.metrics.encoding)
        try:
            # The other way to find out is a request that fails.
            model.warm_up(model.bundled_weights() if role == "learner" else model.constant_weights())
        except SelectorError:
            raise
        except Exception as error:  # onnxruntime raises several unrelated types
            reason = " ".join(str(error).split())[-300:]
            raise BundleError(f"{path}: graphs", "unfit", f"must take what the manifest says: {reason}") from error
        return model

    def _open_cache(self) -> ReferenceCache | None:
        if self.config.cache is None:
            return None
        if self._reference is None:
            raise SetupError("cache", self.config.cache, "holds embeddings of a reference; set reference too")
        reference = self._reference.bundle
        name, width = reference.manifest.name, reference.manifest.width

        def count(reason: str) -> None:
            self.metrics.cache_problems.labels(reason).inc()

        return ReferenceCache(self.config.cache, name, reference.fingerprint, width, self.config.cache_bytes, count)

    def _preparation(self) -> Preparation:
        """What happens beside the device's thread."""
        threads = self.config.preprocess_threads or usable_cpus()
        self._decoder = Decoder(threads)
        limits = Limits(self.config.max_image_pixels, self.config.max_payload_bytes)
        learner, reference = (
            Preprocessor.of(model.bundle, limits, self._decoder) if model is not None else None
            for model in (self._learner, self._reference)
        )
        return Preparation(learner, reference, self._cache)

    def _memory_guard(self) -> MemoryGuard | None:
        if not self.config.memory_guard_share:
            return None
        return MemoryGuard(memory_bounds(), self.config.memory_guard_share)

    def _peer_link(self, device: Device) -> PeerLink | None:
        config = self.config
        if not config.peers:
            return None
        backend = "nccl" if device.torch.type == "cuda" else "gloo"
        return PeerLink(config.peer_address, config.peer_rank, config.peer_count, config.peer_seconds, backend)

    def _loss(self) -> Loss:
        """What the models were made for. Raises SetupError if they disagree."""
        losses = {m.bundle.manifest.loss for m in (self._learner, self._reference) if m is not None}
        if len(losses) > 1:
            raise SetupError("reference", self.config.reference, f"must have the learner's loss, not {sorted(losses)}")
        return Loss(losses.pop()) if losses else Loss.SIGMOID

    def _serve_metrics(self) -> MetricsServer | None:
        if not self.config.metrics_listen:
            return None
        host, _, port = self.config.metrics_listen.rpartition(":")
        try:
            return MetricsServer(self.metrics.registry, host.strip("[]"), int(port))
        except (OSError, ValueError, OverflowError) as error:
            raise SetupError("metrics_listen", self.config.metrics_listen, str(error)) from error

    def _status(self) -> pb.GetWeightsStatusResponse:
        return reply.weights_status(self._store, mask_url(self.config.redis) if self.config.redis else "")

    def _summary(self) -> str:
        models = [f"{m.bundle.manifest.role} {m.bundle.manifest.name}" for m in (self._learner, self._reference) if m]
        return ", ".join(models) or "no models: embeddings and losses only"


def run(config: Config) -> int:
    """Builds the app and serves; returns the exit status. Raises SetupError."""
    keep_freed_memory()
    return asyncio.run(App(config).serve())


def _policies() -> dict[str, Policy]:
    try:
        return load_policies()
    except ValueError as error:
        raise SetupError("policies", "installed packages", str(error)) from error


def _versions() -> dict[str, str]:
    names = ("torch", "onnxruntime", "onnxruntime-gpu", "protobuf", "grpcio", "numpy")
    found = {"jest-selector": selector_proto.__version__}
    for name in names:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:
            continue
    return found


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
