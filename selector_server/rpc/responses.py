"""What the server answers: results, status and information as messages."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import selector_proto
from numpy.typing import NDArray
from selector_proto.v1 import selector_pb2 as pb
from selector_proto.weights.link import masked

from selector_server.config import Config
from selector_server.encoding.model import Model
from selector_server.encoding.reference_cache import ReferenceCache
from selector_server.engine.closed import Prefiltered
from selector_server.engine.request import Request
from selector_server.engine.task import OwnLosses, Result, Task
from selector_server.rpc.exclusions import write_exclusions
from selector_server.rpc.read_rule import CRITERIA, LOSSES, PAIR_CRITERIA
from selector_server.rpc.shared_memory import SharedFolder
from selector_server.sampling import Criterion
from selector_server.sampling.locality import Locality
from selector_server.weights.versions import SyncState, Versions

_STATES = {
    SyncState.OFF: pb.SYNC_STATE_OFF,
    SyncState.WAITING: pb.SYNC_STATE_WAITING,
    SyncState.CURRENT: pb.SYNC_STATE_CURRENT,
    SyncState.REJECTED: pb.SYNC_STATE_REJECTED,
    SyncState.DISCONNECTED: pb.SYNC_STATE_DISCONNECTED,
    SyncState.PINNED: pb.SYNC_STATE_PINNED,
}


# So many entries of the cache are counted at most: counting reads them, and a cache may hold millions.
_COUNTED = 10_000
# What the server says that it runs on, as far as it is installed.
_LIBRARIES = ("torch", "onnxruntime", "onnxruntime-gpu", "protobuf", "grpcio", "numpy")


def selected(request: Request, result: Result, unserved: pb.UnservedWeights | None) -> pb.SelectResponse:
    """The reply; `unserved` says why the newest weights are not served."""
    assert request.task is not None
    weights, rule, losses = result.weights, request.task.rule, result.losses or OwnLosses()
    scored = result.scores is not None
    return pb.SelectResponse(
        indices=result.indices.tolist(),
        scores=_listed(result.scores),
        sub_batch_size=result.plan.picks,
        chunk_sizes=result.plan.sizes,
        seed=result.plan.seed,
        policy=result.policy,
        objective=result.objective,
        objective_uniform=result.objective_uniform,
        weights=None
        if weights is None
        else pb.WeightsVersion(
            version=weights.version,
            trainer_step=weights.trainer_step,
            age_seconds=weights.age_seconds,
            lag_steps=weights.lag_steps,
        ),
        stages=pb.StageSeconds(**asdict(request.stages)),
        request_id=request.id,
        cached_references=result.cached,
        stale=weights is not None and weights.stale,
        exclusions=write_exclusions(result.closed),
        not_examined=result.not_examined,
        unserved_weights=unserved,
        criterion=_code(CRITERIA, rule.criterion if scored else None),
        pair_criterion=_code(PAIR_CRITERIA, rule.pair_criterion if scored else None),
        prefiltered=_prefiltered(result.closed.prefiltered),
        explored=result.plan.explore,
        learner_losses=_listed(losses.learner),
        reference_losses=_listed(losses.reference),
        locality=_locality(result.locality),
    )


def shortlisted(request: Request, task: Task[Any]) -> pb.ShortlistResponse:
    """The reply to a request for a shortlist, whose task's candidates are prepared."""
    closed = task.candidates.closed
    return pb.ShortlistResponse(
        indices=closed.open_rows(task.size).tolist(),
        prefiltered=_prefiltered(closed.prefiltered),
        request_id=request.id,
        exclusions=write_exclusions(closed),
    )


def _listed(array: NDArray[np.float64] | None) -> list[float]:
    return [] if array is None else array.tolist()


def _code(table: Mapping[int, Criterion], criterion: Criterion | None) -> pb.Criterion.ValueType:
    return pb.Criterion.ValueType(next((code for code, one in table.items() if code and one is criterion), 0))


def _prefiltered(found: Prefiltered | None) -> pb.Prefiltered | None:
    if found is None:
        return None
    return pb.Prefiltered(known=found.known, unknown=found.unknown, left_out=len(found.rows))


def _locality(told: Locality | None) -> pb.Locality | None:
    return None if told is None else pb.Locality(**asdict(told))


class About:
    """What the server says of itself. `store` is None without a learner."""

    def __init__(
        self,
        config: Config,
        policies: Iterable[str],
        learner: Model | None,
        reference: Model | None,
        shared: SharedFolder | None,
        store: Versions[Any] | None,
        cache: ReferenceCache | None = None,
    ) -> None:
        self._source = masked(config.redis) if config.redis else ""
        self._info, self._store = _server_info(config, policies, learner, reference, shared), store
        if cache is not None:
            self._info.reference.cached_samples, self._info.reference.cached_id = cache.held(_COUNTED)

    def info(self) -> pb.GetServerInfoResponse:
        """Limits, policies, models and settings, which stay the same."""
        return self._info

    def unserved_weights(self) -> pb.UnservedWeights | None:
        """Why the newest version is not served; None if it is, or without weight sync."""
        unserved = None if self._store is None else self._store.unserved()
        if unserved is None:
            return None
        return pb.UnservedWeights(version=unserved.version, state=_STATES[unserved.state], reason=unserved.reason)

    def weights_status(self) -> pb.GetWeightsStatusResponse:
        """The served version, and how it relates to the newest one."""
        if self._store is None:
            return pb.GetWeightsStatusResponse(state=pb.SYNC_STATE_OFF)
        current, status = self._store.current, self._store.status
        return pb.GetWeightsStatusResponse(
            serving=pb.WeightsVersion(
                version=current.version, trainer_step=current.trainer_step, age_seconds=current.age_seconds()
            ),
            newest_version=status.newest_version,
            state=_STATES[status.state],
            last_error=status.last_error,
            swaps=status.swaps,
            rejections=status.rejections,
            source=self._source,
        )


def _server_info(
    config: Config,
    policies: Iterable[str],
    learner: Model | None,
    reference: Model | None,
    shared: SharedFolder | None,
) -> pb.GetServerInfoResponse:
    return pb.GetServerInfoResponse(
        server_version=selector_proto.__version__,
        limits=pb.Limits(
            max_message_bytes=config.max_message_bytes,
            max_payload_bytes=config.max_payload_bytes,
            max_super_batch=config.max_super_batch,
            max_width=config.max_width,
            max_chunks=config.max_chunks,
            max_image_bytes=config.max_image_bytes,
            max_image_pixels=config.max_image_pixels,
            max_text_bytes=config.max_text_bytes,
            max_pending_requests=config.max_pending_requests,
            # Without peers every rank holds a permit here while it waits for the others.
            max_world_size=config.peer_count if config.peers else config.max_pending_requests,
            keepalive_seconds=config.keepalive_seconds,
        ),
        policies=sorted(policies),
        criteria=[pb.Criterion.ValueType(code) for code in CRITERIA if code],
        losses=[pb.Loss.ValueType(code) for code in LOSSES if code],
        learner=_model(learner),
        reference=_model(reference),
        run=config.run if config.redis else "",
        device=config.device,
        versions=_versions(),
        config=config.shown(),
        shared_memory_dir="" if shared is None else str(shared.path),
        shared_memory_token="" if shared is None else shared.token,
    )


def _model(model: Model | None) -> pb.ModelInfo | None:
    if model is None:
        return None
    manifest = model.bundle.manifest
    return pb.ModelInfo(
        name=manifest.name,
        fingerprint=model.bundle.fingerprint,
        width=manifest.width,
        image=pb.ImageSpec(height=manifest.image.height, width=manifest.image.width, channels=manifest.image.channels),
        text=pb.TextSpec(
            max_tokens=manifest.text.max_tokens,
            vocabulary=manifest.text.vocabulary,
            has_tokenizer=model.bundle.tokenizer is not None,
        ),
        providers=model.providers,
        precision=manifest.precision,
        loss=pb.Loss.Value(f"LOSS_{manifest.loss.upper()}"),
        encode_seconds_per_sample=model.seconds_per_sample,
    )


def _versions() -> dict[str, str]:
    found = {"jest-selector": selector_proto.__version__}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:
            continue
    return found
