"""A Selection and its payload to a Task: the contract's rules, each broken one named with its field and value."""

import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from selector_proto.sizes import DEFAULT_FILTER_RATIO, MAX_ID_BYTES, sub_batch_size
from selector_proto.tensors import BYTES, FLOATS, INTEGERS, read, read_bytes
from selector_proto.v1 import selector_pb2 as pb

from selector_server.config import Config
from selector_server.encoding.cache import integer_key, string_key
from selector_server.engine.task import Embeddings, Floats, Losses, ModelEmbeddings, Samples, Task
from selector_server.errors import InvalidRequest, LimitExceeded, NotPossible
from selector_server.rpc.account import MAX_REQUEST_ID
from selector_server.rpc.ranks import to_member
from selector_server.sampling import MAX_LOGIT, Criterion, Draw, Loss, Needs, Plan, Policy, chunk_sizes
from selector_server.weights.freshness import Freshness, WhenStale

DEFAULT_CHUNKS = 16
DEFAULT_GAIN = 100.0
MAX_GAIN = 1e6
# Steps are subtracted, in int64.
MAX_STEP = 2**63 - 1
# About thirty years.
MAX_AGE_SECONDS = 1e9

CRITERIA: Mapping[int, Criterion] = {
    pb.CRITERION_UNSPECIFIED: Criterion.LEARNABILITY,
    pb.CRITERION_LEARNABILITY: Criterion.LEARNABILITY,
    pb.CRITERION_EASY_REFERENCE: Criterion.EASY_REFERENCE,
    pb.CRITERION_HARD_LEARNER: Criterion.HARD_LEARNER,
}
DRAWS: Mapping[int, Draw] = {
    pb.DRAW_UNSPECIFIED: Draw.SAMPLE,
    pb.DRAW_SAMPLE: Draw.SAMPLE,
    pb.DRAW_TOP_K: Draw.TOP_K,
}
LOSSES: Mapping[int, Loss] = {
    pb.LOSS_UNSPECIFIED: Loss.SIGMOID,
    **{pb.Loss.Value(f"LOSS_{loss.name}"): loss for loss in Loss},
}
WHEN_STALE: Mapping[int, WhenStale] = {
    pb.STALENESS_POLICY_SERVE: WhenStale.SERVE,
    pb.STALENESS_POLICY_WAIT: WhenStale.WAIT,
    pb.STALENESS_POLICY_REFUSE: WhenStale.REFUSE,
}
_LATER = ("tags",)


def to_task(
    selection: pb.Selection,
    payload: memoryview,
    config: Config,
    policies: Mapping[str, Policy],
    models_loss: Loss,
) -> Task:
    """`models_loss` is the one that raw samples are compared by unless the request says otherwise. Raises WireError,
    InvalidRequest, LimitExceeded or NotPossible."""
    _check_supported(selection, config)
    policy = policies.get(selection.policy or "joint")
    if policy is None:
        raise InvalidRequest("policy", repr(selection.policy), f"must be one of {', '.join(sorted(policies))}")
    criterion = _enum("criterion", selection.criterion, CRITERIA, pb.Criterion)
    candidates, size = _candidates(selection, payload, config, criterion, policy)
    member = to_member(selection, config)
    if member is not None and not config.peers and member.world_size * size > config.max_super_batch:
        value, limit = f"{member.world_size} x {size}", f"at most {config.max_super_batch} together"
        raise LimitExceeded("candidates of all ranks", value, limit)
    loss = _enum("loss", selection.loss, LOSSES, pb.Loss)
    if isinstance(candidates, Samples) and selection.loss == pb.LOSS_UNSPECIFIED:
        loss = models_loss
    return Task(
        candidates=candidates,
        size=size,
        policy=policy,
        criterion=criterion,
        loss=loss,
        plan=_plan(selection, size, policy, config.max_chunks),
        freshness=_freshness(selection, config),
        request_id=selection.request_id,
        member=member,
    )


def _check_supported(selection: pb.Selection, config: Config) -> None:
    present = {descriptor.name for descriptor, _ in selection.ListFields()}
    for name in _LATER:
        if name in present:
            raise InvalidRequest(name, "set", "this server does not serve it yet; leave it unset")
    if selection.HasField("sample_ids") and selection.WhichOneof("candidates") != "samples":
        raise InvalidRequest("sample_ids", "set", "only raw samples are looked up by id; leave it unset")
    if len(selection.request_id) > MAX_REQUEST_ID or not selection.request_id.isprintable():
        raise InvalidRequest("request_id", repr(selection.request_id), f"at most {MAX_REQUEST_ID} printable characters")
    if selection.trainer_step > MAX_STEP:
        raise InvalidRequest("trainer_step", selection.trainer_step, f"at most {MAX_STEP}")
    if selection.run and selection.run != config.run:
        raise NotPossible("run", repr(selection.run), f"this server serves run {config.run!r}")


def _plan(selection: pb.Selection, size: int, policy: Policy, max_chunks: int) -> Plan:
    if selection.WhichOneof("size") == "sub_batch_size":
        picks = selection.sub_batch_size
        if not 1 <= picks <= size:
            raise InvalidRequest("sub_batch_size", picks, f"must be 1 to the number of candidates, {size}")
    else:
        ratio = selection.filter_ratio if selection.HasField("filter_ratio") else DEFAULT_FILTER_RATIO
        if not 0 < ratio < 1:  # NaN fails too
            raise InvalidRequest("filter_ratio", ratio, "must lie between 0 and 1, both excluded")
        picks = sub_batch_size(size, ratio)
        if picks < 1:
            raise InvalidRequest("filter_ratio", ratio, f"leaves no pick of {size} candidates")
    chunks = selection.chunks or min(DEFAULT_CHUNKS, picks)
    if chunks > picks:
        raise InvalidRequest("chunks", chunks, f"at most the number of picks, {picks}")
    if chunks > max_chunks:  # every round goes over all candidates
        raise LimitExceeded("chunks", chunks, f"at most {max_chunks}")
    gain = selection.gain if selection.HasField("gain") else DEFAULT_GAIN
    if not 0 < gain <= MAX_GAIN:  # NaN fails too
        raise InvalidRequest("gain", gain, f"must be positive and at most {MAX_GAIN:g}")
    draw = _enum("draw", selection.draw, DRAWS, pb.Draw)
    seed = selection.seed if selection.HasField("seed") else secrets.randbits(64)
    # Chunks are for policies that look at pairs; the others draw all picks at once.
    sizes = chunk_sizes(picks, chunks if policy.needs is Needs.PAIRS else 1)
    return Plan(sizes, gain, draw, seed)


def _freshness(selection: pb.Selection, config: Config) -> Freshness:
    """What the request accepts; what it leaves open, the server's settings say."""
    step = selection.trainer_step if selection.HasField("trainer_step") else None
    lag: int | None = config.max_weights_lag_steps or None
    age: float | None = config.max_weights_age_seconds or None
    if selection.HasField("max_lag_steps"):
        lag = selection.max_lag_steps
        if step is None:
            raise InvalidRequest("max_lag_steps", lag, "needs trainer_step")
    if selection.HasField("max_age_seconds"):
        age = selection.max_age_seconds
        if not 0 < age <= MAX_AGE_SECONDS:  # NaN fails too
            raise InvalidRequest("max_age_seconds", age, f"must be positive and at most {MAX_AGE_SECONDS:g}")
    policies = {pb.STALENESS_POLICY_UNSPECIFIED: WhenStale(config.when_stale), **WHEN_STALE}
    when_stale: WhenStale = _enum("when_stale", selection.when_stale, policies, pb.StalenessPolicy)
    # A minimum is meant: that the server serves by default does not lift it, a request that says so does.
    lifted = selection.when_stale == pb.STALENESS_POLICY_SERVE or when_stale is WhenStale.WAIT
    below_minimum = when_stale if lifted else WhenStale.REFUSE
    return Freshness(selection.min_weights_version, lag, age, step, when_stale, below_minimum)


def _candidates(
    selection: pb.Selection, payload: memoryview, config: Config, criterion: Criterion, policy: Policy
) -> tuple[Samples | Embeddings | Losses, int]:
    match selection.WhichOneof("candidates"):
        case "samples":
            samples, size = _samples(selection.samples, payload, config)
            return replace(samples, ids=_sample_ids(selection, payload, size)), size
        case "embeddings":
            return _embeddings(selection.embeddings, payload, config, criterion)
        case "losses":
            if policy.needs is Needs.PAIRS:
                limit = "needs pairs; scalar losses serve independent and uniform only"
                raise InvalidRequest("policy", repr(policy.name), limit)
            return _losses(selection.losses, payload, config, criterion)
    raise InvalidRequest("candidates", "missing", "set samples, embeddings or losses")


def _samples(samples: pb.RawSamples, payload: memoryview, config: Config) -> tuple[Samples, int]:
    images: Any
    texts: Any
    match samples.WhichOneof("images"):
        case "pixels":
            size = _size(samples.pixels, "samples.pixels", config)
            images = read(samples.pixels, payload, "samples.pixels", BYTES, [size, None, None, None])
        case "encoded_images":
            size = _size(samples.encoded_images.lengths, "samples.encoded_images.lengths", config)
            packed = samples.encoded_images
            images = read_bytes(packed, payload, "samples.encoded_images", size, config.max_image_bytes)
        case _:
            raise InvalidRequest("samples.images", "missing", "set pixels or encoded_images")
    match samples.WhichOneof("texts"):
        case "tokens":
            texts = read(samples.tokens, payload, "samples.tokens", INTEGERS, [size, None])
        case "strings":
            texts = read_bytes(samples.strings, payload, "samples.strings", size, config.max_text_bytes)
        case _:
            raise InvalidRequest("samples.texts", "missing", "set tokens or strings")
    return Samples(images, texts), size


def _sample_ids(selection: pb.Selection, payload: memoryview, size: int) -> list[bytes]:
    """Keys of the reference cache: integers and strings never meet."""
    ids = selection.sample_ids
    match ids.WhichOneof("ids"):
        case "integers":
            numbers = read(ids.integers, payload, "sample_ids.integers", [pb.DATA_TYPE_I64], [size])
            keys = [integer_key(number) for number in numbers.tolist()]
        case "strings":
            names = read_bytes(ids.strings, payload, "sample_ids.strings", size, MAX_ID_BYTES)
            if b"" in names:
                raise InvalidRequest("sample_ids.strings", "''", f"must have 1 to {MAX_ID_BYTES} bytes")
            keys = [string_key(name) for name in names]
        case _:
            return []
    first: dict[bytes, int] = {}
    for index, key in enumerate(keys):
        if (other := first.setdefault(key, index)) != index:
            limit = f"candidate {other} has the same; every candidate needs an id of its own"
            shown = int.from_bytes(key[1:], "little", signed=True) if key[:1] == b"i" else repr(key[1:])
            raise InvalidRequest(f"sample_ids[{index}]", shown, limit)
    return keys


def _embeddings(
    embeddings: pb.Embeddings, payload: memoryview, config: Config, criterion: Criterion
) -> tuple[Embeddings, int]:
    models: dict[str, ModelEmbeddings | None] = {"learner": None, "reference": None}
    size = None
    for name, needed in (("learner", criterion.needs_learner), ("reference", criterion.needs_reference)):
        if not embeddings.HasField(name):  # type: ignore[arg-type]
            if needed:
                raise InvalidRequest(f"embeddings.{name}", "missing", f"criterion {criterion.name} needs it")
            continue
        model: pb.ModelEmbeddings = getattr(embeddings, name)
        field = f"embeddings.{name}"
        size = _size(model.image, f"{field}.image", config) if size is None else size
        image: Floats = read(model.image, payload, f"{field}.image", FLOATS, [size, None])
        if not 1 <= image.shape[1] <= config.max_width:
            raise LimitExceeded(f"{field}.image.shape", list(image.shape), f"width must be 1 to {config.max_width}")
        text: Floats = read(model.text, payload, f"{field}.text", FLOATS, [size, image.shape[1]])
        scale, bias = model.logit_scale, model.logit_bias
        if not 0 < scale <= MAX_LOGIT:  # NaN fails too
            value = scale if model.HasField("logit_scale") else "missing"
            raise InvalidRequest(f"{field}.logit_scale", value, f"must be positive and at most {MAX_LOGIT:g}")
        if not abs(bias) <= MAX_LOGIT:
            raise InvalidRequest(f"{field}.logit_bias", bias, f"must be finite and at most {MAX_LOGIT:g}, either sign")
        _finite(f"{field}.image", image)
        _finite(f"{field}.text", text)
        models[name] = ModelEmbeddings(image, text, scale, bias)
    assert size is not None
    return Embeddings(models["learner"], models["reference"]), size


def _losses(losses: pb.ScalarLosses, payload: memoryview, config: Config, criterion: Criterion) -> tuple[Losses, int]:
    found: dict[str, Floats | None] = {"learner": None, "reference": None}
    size = None
    for name, needed in (("learner", criterion.needs_learner), ("reference", criterion.needs_reference)):
        if not losses.HasField(name):  # type: ignore[arg-type]
            if needed:
                raise InvalidRequest(f"losses.{name}", "missing", f"criterion {criterion.name} needs it")
            continue
        tensor: pb.Tensor = getattr(losses, name)
        size = _size(tensor, f"losses.{name}", config) if size is None else size
        found[name] = read(tensor, payload, f"losses.{name}", FLOATS, [size])
        _finite(f"losses.{name}", found[name])
    assert size is not None
    return Losses(found["learner"], found["reference"]), size


def _size(tensor: pb.Tensor, field: str, config: Config) -> int:
    """B, by the tensor that says it first."""
    size = tensor.shape[0] if tensor.shape else 0
    if size < 1:
        raise InvalidRequest(f"{field}.shape", list(tensor.shape), "at least one candidate is needed")
    if size > config.max_super_batch:
        raise LimitExceeded(f"{field}.shape", list(tensor.shape), f"at most {config.max_super_batch} candidates")
    return size


def _finite(field: str, array: Floats | None) -> None:
    if array is not None and not np.isfinite(array).all():
        where = np.argwhere(~np.isfinite(array))[0].tolist()
        raise InvalidRequest(field, f"{array[tuple(where)]} at {where}", "every value must be finite")


def _enum(field: str, value: int, table: Mapping[int, Any], enum: Any) -> Any:
    if value not in table:
        raise InvalidRequest(field, _name(enum, value), f"must be one of {', '.join(map(enum.Name, table))}")
    return table[value]


def _name(enum: Any, value: int) -> str | int:
    return enum.Name(value) if value in enum.values() else value
