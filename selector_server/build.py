"""Puts the parts of a sidecar together, and does nothing else: `app.py` runs their life."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import selector_proto
from selector_proto.weights.link import masked

from selector_server.config import Config
from selector_server.encoding import bundle
from selector_server.encoding.decoder import Decoder
from selector_server.encoding.device import Device
from selector_server.encoding.model import Model, Weights
from selector_server.encoding.preprocess import Limits, Preprocessor
from selector_server.encoding.reference_cache import ReferenceCache
from selector_server.engine.admission import Admission, MemoryGuard
from selector_server.engine.candidates.preparation import Preparation
from selector_server.engine.dispatcher import Dispatcher
from selector_server.engine.engine import Engine
from selector_server.engine.models import Models, SamplerSettings
from selector_server.engine.ranks import Peers, Ranks, open_ranks
from selector_server.engine.scorer import Scorer
from selector_server.engine.worker import Worker
from selector_server.errors import BundleError, SelectorError, SetupError
from selector_server.inspection.local_source import LocalSource
from selector_server.inspection.observer import SelectionObserver
from selector_server.inspection.recorder import Recorder
from selector_server.inspection.source import Source
from selector_server.inspection.stores import Inspection
from selector_server.machine import memory_bounds, usable_cpus
from selector_server.rpc.admin import AdminService
from selector_server.rpc.call_log import CallLog
from selector_server.rpc.connections import allow_files
from selector_server.rpc.idempotency import Idempotency
from selector_server.rpc.inspection import InspectionService
from selector_server.rpc.read_candidates import KnownReference
from selector_server.rpc.receive import Reception
from selector_server.rpc.responses import About
from selector_server.rpc.security.access import Access
from selector_server.rpc.server import RpcServer, Services
from selector_server.rpc.service import SelectorService
from selector_server.rpc.shared_memory import SharedFolder
from selector_server.rpc.wire import Contract
from selector_server.sampling import Loss, Policy, load_policies
from selector_server.sampling.losses.kernel import available as kernel_available
from selector_server.sampling.threads import use_threads
from selector_server.telemetry.metrics import Metrics
from selector_server.telemetry.metrics_server import MetricsServer
from selector_server.telemetry.tracing import Tracing
from selector_server.weights.dating import Dated
from selector_server.weights.fetcher import Fetcher, News
from selector_server.weights.host_share import HostShare
from selector_server.weights.reporter import Reporter
from selector_server.weights.subscriber import Subscriber
from selector_server.weights.versions import SyncState, Version, Versions

if TYPE_CHECKING:
    from selector_server.inspection.web.server import PageServer


@dataclass(frozen=True)
class Sidecar:
    """The parts that have a life of their own, or are looked at while they live. None stands for what is not set."""

    config: Config
    metrics: Metrics
    access: Access
    admission: Admission
    memory_guard: MemoryGuard | None
    worker: Worker
    ranks: Ranks
    versions: Versions[Weights] | None
    subscriber: Subscriber[Weights] | None
    decoder: Decoder
    cache: ReferenceCache | None
    shared: SharedFolder | None
    tracing: Tracing | None
    service: SelectorService
    admin: AdminService
    inspection: InspectionService
    source: Source | None
    observer: SelectionObserver | None
    summary: str


def build(config: Config) -> Sidecar:
    """Loads the models and connects the parts; none is started. Raises SetupError."""
    metrics = Metrics()
    access = Access(config, metrics)
    use_threads(config.threads or usable_cpus())
    device = Device(config.device)
    learner, reference = (_model(config, role, device, metrics) for role in ("learner", "reference"))
    cache = _cache(config, reference, metrics)
    versions = None if learner is None else Versions(Version(0, 0, Dated(time.monotonic()), learner.bundled_weights()))
    subscriber = _subscriber(config, learner, versions, metrics)
    models = Models(device.torch, learner, reference, versions, cache, _sampler_settings(config, device))
    policies = _policies()
    worker = Worker(config.stall_seconds, device.probe)
    guard = MemoryGuard(memory_bounds(), config.memory_guard_share) if config.memory_guard_share else None
    admission = Admission(config.max_pending_requests, config.max_inflight_bytes, metrics, guard)
    tracing = Tracing.of(config.traces, config.otlp_endpoint)
    shared = None if config.shared_memory_dir is None else SharedFolder(config.shared_memory_dir)
    decoder = Decoder(config.preprocess_threads or usable_cpus())
    preparation = _preparation(config, models, decoder)
    kept, observer = _inspection(config, metrics)
    scorer = Scorer(models, observer)
    dispatcher = Dispatcher(models, scorer, worker, admission, metrics)
    ranks = open_ranks(dispatcher, admission, config.group_seconds, _peers(config, device), observer)
    reception = Reception(config, shared)
    admission.relieve_by(reception.release_memory)
    about = About(config, policies, learner, reference, shared, versions, cache)
    source = None if kept is None else LocalSource(kept, config.run, about.unserved_weights)
    service = SelectorService(
        Engine(admission, models, preparation, scorer, ranks, metrics),
        reception,
        Contract(config, policies, _loss(config, models), _known(models.reference)),
        Idempotency(admission),
        CallLog(metrics, tracing, config.access_log),
        about,
    )
    sidecar = Sidecar(
        config=config,
        metrics=metrics,
        access=access,
        admission=admission,
        memory_guard=guard,
        worker=worker,
        ranks=ranks,
        versions=versions,
        subscriber=subscriber,
        decoder=decoder,
        cache=cache,
        shared=shared,
        tracing=tracing,
        service=service,
        admin=AdminService(versions, about.weights_status),
        inspection=InspectionService(source),
        source=source,
        observer=observer,
        summary=_summary(models),
    )
    _watch(sidecar, device)
    return sidecar


def build_servers(sidecar: Sidecar) -> list[RpcServer]:
    """The one of trainers first; the admin service shares its address unless it has one of its own. Health is one for
    all of them. To be called by a running event loop. Raises SetupError."""
    config, access, metrics = sidecar.config, sidecar.access, sidecar.metrics
    operators = sidecar.admin, sidecar.inspection
    services = Services(sidecar.service, None if config.admin_listen else operators)
    servers = [RpcServer("listen", config, services, access, metrics)]
    others = {"admin_listen": Services(operators=operators), "health_listen": Services()}
    for setting, theirs in others.items():
        if getattr(config, setting):
            servers.append(RpcServer(setting, config, theirs, access, metrics, servers[0].health))
    allow_files(len(servers) * config.max_connections)
    metrics.connections.read = lambda: {one.setting: one.connections.share() for one in servers}
    return servers


def build_metrics_server(sidecar: Sidecar) -> MetricsServer | None:
    """Serves /metrics from now on. Raises SetupError."""
    listen = sidecar.config.metrics_listen
    if not listen:
        return None
    try:
        return MetricsServer(sidecar.metrics.registry, listen)
    except (OSError, ValueError) as error:
        raise SetupError("metrics_listen", listen, f"must be a free host:port: {error}") from error


def build_page(sidecar: Sidecar) -> "PageServer | None":
    """Serves the inspector's page from now on. Raises SetupError."""
    listen, access, source = sidecar.config.inspect_listen, sidecar.access, sidecar.source
    if not listen or source is None:
        return None
    try:
        from selector_server.inspection.web.server import PageServer  # noqa: PLC0415 - needs the extra inspect
    except ModuleNotFoundError as error:
        limit = f"needs {error.name}: pip install 'jest-selector[inspect]'"
        raise SetupError("inspect_listen", listen, limit) from error
    try:
        names, tls = access.guards_inspection, access.page_tls()
        return PageServer(source, listen, access.check_inspection, names=names, tls=tls)
    except (OSError, ValueError) as error:
        raise SetupError("inspect_listen", listen, f"must be a free host:port: {error}") from error


def _model(config: Config, role: Literal["learner", "reference"], device: Device, metrics: Metrics) -> Model | None:
    path = getattr(config, role)
    if path is None:
        return None
    model = Model(bundle.load(path, role), device, config.micro_batch or device.kind.micro_batch, metrics.encoding)
    try:
        # The other way to find out is a request that fails.
        weights = model.bundled_weights() if role == "learner" else model.constant_weights()
        model.warm_up(weights)
        model.measure(weights)
    except SelectorError:
        raise
    except Exception as error:  # onnxruntime raises several unrelated types
        reason = " ".join(str(error).split())[-300:]
        raise BundleError(f"{path}: graphs", "unfit", f"must take what the manifest says: {reason}") from error
    return model


def _cache(config: Config, reference: Model | None, metrics: Metrics) -> ReferenceCache | None:
    if config.cache is None:
        return None
    if reference is None:
        raise SetupError("cache", config.cache, "holds embeddings of a reference; set reference too")
    manifest, fingerprint = reference.bundle.manifest, reference.bundle.fingerprint

    def count(reason: str) -> None:
        metrics.cache_problems.labels(reason).inc()

    return ReferenceCache(config.cache, manifest.name, fingerprint, manifest.width, config.cache_bytes, count)


def _subscriber(
    config: Config, learner: Model | None, versions: Versions[Weights] | None, metrics: Metrics
) -> Subscriber[Weights] | None:
    if config.redis is None:
        return None
    if learner is None or versions is None:
        raise SetupError("redis", masked(config.redis), "weights need a learner; set learner too")
    share = None if config.weights_share is None else HostShare(config.weights_share)
    fetcher = Fetcher(config.redis, config.run, config.max_weights_bytes, config.link(), share)
    news = News(config.redis, config.run, config.link())
    reporter = Reporter(config.redis, config.run, versions, learner.needs, config.link())
    return Subscriber(fetcher, versions, learner.bind, metrics, config.weights_poll_seconds, news, reporter)


def _sampler_settings(config: Config, device: Device) -> SamplerSettings:
    if config.sampler_fused and not kernel_available(device.torch):
        raise SetupError("sampler_fused", True, "needs triton and a CUDA device of capability 9.0 or newer")
    return SamplerSettings(config.sampler_tile_bytes or None, config.sampler_fused)


def _preparation(config: Config, models: Models, decoder: Decoder) -> Preparation:
    limits = Limits(config.max_image_pixels, config.max_payload_bytes)
    learner, reference = (
        None if model is None else Preprocessor.of(model.bundle, limits, decoder)
        for model in (models.learner, models.reference)
    )
    return Preparation(learner, reference, models.cache)


def _peers(config: Config, device: Device) -> Peers | None:
    if not config.peers:
        return None
    address, backend = config.peer_address, device.kind.group_backend
    return Peers(address, config.peer_rank, config.peer_count, config.peer_seconds, backend)


def _policies() -> dict[str, Policy]:
    try:
        return load_policies()
    except ValueError as error:
        raise SetupError("policies", "installed packages", str(error)) from error


def _loss(config: Config, models: Models) -> Loss:
    """The loss that the models were made for. Raises SetupError if they disagree."""
    losses = {m.bundle.manifest.loss for m in (models.learner, models.reference) if m is not None}
    if len(losses) > 1:
        raise SetupError("reference", config.reference, f"must have the learner's loss, not {sorted(losses)}")
    return Loss(losses.pop()) if losses else Loss.SIGMOID


def _known(reference: Model | None) -> KnownReference | None:
    if reference is None:
        return None
    return KnownReference(reference.bundle.fingerprint, reference.bundle.manifest.width)


def _inspection(config: Config, metrics: Metrics) -> tuple[Inspection | None, SelectionObserver | None]:
    """What is kept of selections for operators, None if nothing is, and who looks at them, None if nobody does."""
    if not config.observes:
        return None, None
    slices = [metrics.slices.add] if config.inspect_metrics else []
    kept = Inspection(config.inspect_window, config.inspect_content, slices)
    content = config.inspect_content or config.record_content
    recorder = None
    if config.record is not None:
        recorder = Recorder(config.record, config.run, config.record_content, config.record_bytes)
    observer = SelectionObserver(kept, content, recorder, metrics.unobserved.inc)
    return kept if config.inspect or config.inspect_listen else None, observer


def _summary(models: Models) -> str:
    named = [f"{m.bundle.manifest.role} {m.bundle.manifest.name}" for m in (models.learner, models.reference) if m]
    return ", ".join(named) or "no models: embeddings and losses only"


def _watch(sidecar: Sidecar, device: Device) -> None:
    """Connects the gauges that are read when they are scraped, and sets those that stay the same."""
    metrics, config = sidecar.metrics, sidecar.config
    build_info = {"version": selector_proto.__version__, "device": config.device, "provider": device.provider}
    metrics.build.info(build_info)
    metrics.pending_limit.set(config.max_pending_requests)
    metrics.inflight_bytes_limit.set(config.max_inflight_bytes)
    metrics.queue.set_function(lambda: sidecar.worker.queued)
    metrics.memory.read = device.memory
    metrics.memory_limit.set(device.memory_limit())
    if (versions := sidecar.versions) is not None:
        metrics.weights.state.read = lambda: {state.value: state is versions.status.state for state in SyncState}
    if (cache := sidecar.cache) is not None:
        _watch_usage(cache.usage, metrics.cache_entries.set_function, metrics.cache_bytes.set_function)
        metrics.cache_bytes_limit.set(config.cache_bytes)
    if (shared := sidecar.shared) is not None:
        metrics.shm_swept.inc(shared.swept)
        _watch_usage(shared.usage, metrics.shm_files.set_function, metrics.shm_bytes.set_function)


def _watch_usage(usage: Callable[[], tuple[int, int]], *gauges: Callable[[Callable[[], float]], None]) -> None:
    """`usage` gives a count and the bytes of what is counted, one gauge for each."""
    count, size = gauges
    count(lambda: usage()[0])
    size(lambda: usage()[1])
