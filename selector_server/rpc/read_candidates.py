"""Candidates from a Selection and its payload: one reader for each form of the contract's `candidates`."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from selector_proto.contract import MAX_ID_BYTES
from selector_proto.tensors import BYTES, FLOATS, INTEGERS, read, read_bytes
from selector_proto.v1 import selector_pb2 as pb
from torch import Tensor

from selector_server.config import Config
from selector_server.encoding.reference_cache import integer_key, string_key
from selector_server.engine.arrays import Floats, ModelEmbeddings
from selector_server.engine.candidates.base import Candidates
from selector_server.engine.candidates.embeddings import Embeddings
from selector_server.engine.candidates.named import Named
from selector_server.engine.candidates.samples import Samples
from selector_server.engine.candidates.scalar_losses import ScalarLosses
from selector_server.engine.closed import Closing
from selector_server.engine.task import Rule
from selector_server.errors import Exclusion, InvalidRequest, LimitExceeded, NotPossible, SelectorError
from selector_server.rpc.exclusions import check_exclusions
from selector_server.sampling import MAX_LOGIT, Loss, Needs, Policy

T = TypeVar("T")
MAX_FINGERPRINT = 128
MAX_POSITION = 1 << 32


@dataclass(frozen=True)
class KnownReference:
    """The reference of this server: its fingerprint, and the width of its embeddings."""

    fingerprint: str
    width: int


@dataclass(frozen=True)
class Reading:
    """What a reader is given. `excludes` says that candidates which cannot be used are left out: `closing` has them,
    from the beginning those that the client excludes itself. `reference` is this server's."""

    selection: pb.Selection
    payload: memoryview
    config: Config
    rule: Rule
    policy: Policy
    excludes: bool
    reference: KnownReference | None
    closing: Closing

    def bad(self, index: int, error: SelectorError) -> None:
        """This candidate cannot be used. Raises the error if the request does not exclude it."""
        if not self.excludes:
            raise error
        self.closing.bad(index, error)

    def read_bytes(self, packed: pb.PackedBytes, field: str, size: int, longest: int) -> list[bytes]:
        """`size` byte strings, empty where they are too long."""

        def too_long(index: int, length: int) -> None:
            error = InvalidRequest(f"{field}[{index}]", f"{length} bytes", f"at most {longest} bytes")
            self.bad(index, error.excluding(Exclusion.TOO_LARGE))

        return read_bytes(packed, self.payload, field, size, longest, too_long if self.excludes else None)

    def check_finite(self, field: str, array: Floats) -> None:
        """Closes the candidates whose values are not finite. Raises InvalidRequest for the first, if they may not be
        excluded."""
        if np.isfinite(array).all():
            return
        wrong = ~np.isfinite(array.reshape(len(array), -1))
        for index in np.flatnonzero(wrong.any(axis=1)).tolist():
            where = [index, int(wrong[index].argmax())][: array.ndim]
            error = InvalidRequest(field, f"{array[tuple(where)]} at {where}", "every value must be finite")
            self.bad(index, error.excluding(Exclusion.VALUE))


def read_candidates(request: Reading) -> Candidates:
    """Raises WireError, InvalidRequest, LimitExceeded or NotPossible."""
    form = request.selection.WhichOneof("candidates")
    if form is None:
        raise InvalidRequest("candidates", "missing", f"set {', '.join(list(FORMS)[:-1])} or {list(FORMS)[-1]}")
    candidates = FORMS[form](request)
    check_exclusions(request.selection, candidates.size)
    return candidates


def read_named(request: Reading) -> Named:
    """Candidates that have ids only. Raises as `read_candidates` does."""
    ids, config = request.selection.sample_ids, request.config
    match ids.WhichOneof("ids"):
        case "integers":
            size = _size(ids.integers, "sample_ids.integers", config)
        case "strings":
            size = _size(ids.strings.lengths, "sample_ids.strings.lengths", config)
        case _:
            raise InvalidRequest("sample_ids", "empty", "set integers or strings")
    keys = _sample_ids(request, size)
    check_exclusions(request.selection, size)
    return Named(keys, request.closing.closed())


def _samples(request: Reading) -> Samples:
    samples, payload, config = request.selection.samples, request.payload, request.config
    images: Any
    texts: Any
    match samples.WhichOneof("images"):
        case "pixels":
            size = _size(samples.pixels, "samples.pixels", config)
            images = read(samples.pixels, payload, "samples.pixels", BYTES, [size, None, None, None])
        case "encoded_images":
            size = _size(samples.encoded_images.lengths, "samples.encoded_images.lengths", config)
            packed = samples.encoded_images
            images = request.read_bytes(packed, "samples.encoded_images", size, config.max_image_bytes)
        case _:
            raise InvalidRequest("samples.images", "missing", "set pixels or encoded_images")
    match samples.WhichOneof("texts"):
        case "tokens":
            texts = read(samples.tokens, payload, "samples.tokens", INTEGERS, [size, None])
        case "strings":
            texts = request.read_bytes(samples.strings, "samples.strings", size, config.max_text_bytes)
        case _:
            raise InvalidRequest("samples.texts", "missing", "set tokens or strings")
    ids = _sample_ids(request, size)
    brought = _brought(request, size) if samples.HasField("reference") else None
    return Samples(images, texts, ids, request.closing.closed(), brought, samples.reference.fingerprint)


def _brought(request: Reading, size: int) -> ModelEmbeddings:
    """What the reference makes of the samples. What one reference makes of them says nothing of another."""
    own, message, field = request.reference, request.selection.samples.reference, "samples.reference"
    fingerprint = message.fingerprint
    if not 1 <= len(fingerprint) <= MAX_FINGERPRINT or not fingerprint.isprintable():
        limit = f"1 to {MAX_FINGERPRINT} printable characters"
        raise InvalidRequest(f"{field}.fingerprint", repr(fingerprint[:MAX_FINGERPRINT]), limit)
    if own is not None and own.fingerprint != fingerprint:
        raise NotPossible(f"{field}.fingerprint", fingerprint, f"this server's reference is {own.fingerprint}")
    brought, _ = _model_embeddings(request, message.embeddings, f"{field}.embeddings", size)
    if own is not None and own.width != (shape := brought.image.shape)[1]:
        limit = f"the width of this server's reference is {own.width}"
        raise InvalidRequest(f"{field}.embeddings.image.shape", list(shape), limit)
    return brought


def _sample_ids(request: Reading, size: int) -> list[bytes]:
    """Keys of the reference cache: integers and strings never meet."""
    ids, payload = request.selection.sample_ids, request.payload
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
        if index in request.closing:
            continue
        if (other := first.setdefault(key, index)) != index:
            limit = f"candidate {other} has the same; every candidate needs an id of its own"
            shown = int.from_bytes(key[1:], "little", signed=True) if key[:1] == b"i" else repr(key[1:])
            request.bad(index, InvalidRequest(f"sample_ids[{index}]", shown, limit).excluding(Exclusion.REPEATED))
    return keys


def _embeddings(request: Reading) -> Embeddings:
    message, losses = request.selection.embeddings, None
    rule, field = request.rule, "embeddings.learner_losses"
    if message.HasField("learner_losses"):
        if message.HasField("learner"):
            raise InvalidRequest(field, "set", "embeddings.learner is set, too; send one of the two")
        if rule.pair_criterion.needs_learner or rule.loss is not Loss.SIGMOID:
            limit = f"pairs by {rule.pair_criterion.name} and loss {rule.loss.value} need the learner's embeddings"
            raise InvalidRequest(field, "set", limit)

    def read_model(model: pb.ModelEmbeddings, field: str, size: int | None) -> tuple[ModelEmbeddings, int]:
        return _model_embeddings(request, model, field, size)

    given = {"learner"} if message.HasField("learner_losses") else set()
    models, size = _of_models(request, message, "embeddings", read_model, given)
    if message.HasField("learner_losses"):
        if size is None:
            size = _size(message.learner_losses, field, request.config)
        losses = read(message.learner_losses, request.payload, field, FLOATS, [size])
        request.check_finite(field, losses)
    return Embeddings(models["learner"], models["reference"], losses, request.closing.closed())


def _model_embeddings(
    request: Reading, model: pb.ModelEmbeddings, field: str, size: int | None
) -> tuple[ModelEmbeddings, int]:
    size = _size(model.image, f"{field}.image", request.config) if size is None else size
    image, text = _sides(request, model, field, size)
    scale, bias = model.logit_scale, model.logit_bias
    if not 0 < scale <= MAX_LOGIT:  # NaN fails too
        value = scale if model.HasField("logit_scale") else "missing"
        raise InvalidRequest(f"{field}.logit_scale", value, f"must be positive and at most {MAX_LOGIT:g}")
    if not abs(bias) <= MAX_LOGIT:
        raise InvalidRequest(f"{field}.logit_bias", bias, f"must be finite and at most {MAX_LOGIT:g}, either sign")
    request.check_finite(f"{field}.image", image)
    request.check_finite(f"{field}.text", text)
    return ModelEmbeddings(image, text, scale, bias), size


def _sides(
    request: Reading, message: pb.ModelEmbeddings | pb.RecentPicks, field: str, size: int
) -> tuple[Floats, Floats]:
    """Image and text embeddings, float [size, D] each. Raises WireError and LimitExceeded."""
    payload, most = request.payload, request.config.max_width
    image: Floats = read(message.image, payload, f"{field}.image", FLOATS, [size, None])
    if not 1 <= image.shape[1] <= most:
        raise LimitExceeded(f"{field}.image.shape", list(image.shape), f"width must be 1 to {most}")
    text: Floats = read(message.text, payload, f"{field}.text", FLOATS, [size, image.shape[1]])
    return image, text


def read_recent(request: Reading) -> ModelEmbeddings | None:
    """Picks of earlier steps as the reference sees them. Raises WireError, InvalidRequest or LimitExceeded."""
    selection, known = request.selection, request.reference
    if not selection.HasField("recent") or request.rule.max_similarity is None:
        return None
    size = _size(selection.recent.image, "recent.image", request.config)
    image, text = _sides(request, selection.recent, "recent", size)
    brought = (
        selection.embeddings.reference if selection.HasField("embeddings") else selection.samples.reference.embeddings
    )
    width = brought.image.shape[1] if brought.HasField("image") else known and known.width
    for side, array in (("image", image), ("text", text)):
        for where in np.argwhere(~np.isfinite(array))[:1].tolist():
            raise InvalidRequest(f"recent.{side}", f"{array[tuple(where)]} at {where}", "every value must be finite")
    if width is not None and image.shape[1] != width:  # Without a reference, samples are refused for that.
        raise InvalidRequest("recent.image.shape", list(image.shape), f"the reference's width is {width}")
    return ModelEmbeddings(image, text, 1.0, 0.0)


def read_positions(request: Reading, size: int) -> Tensor | None:
    """Where the candidates stand in a larger super-batch, int64 [B], ascending. Raises WireError or InvalidRequest."""
    selection = request.selection
    if not selection.HasField("positions"):
        return None
    if selection.world_size > 1:
        raise InvalidRequest("positions", "set", f"{selection.world_size} ranks that select as one have none")
    positions = read(selection.positions, request.payload, "positions", [pb.DATA_TYPE_I64], [size])
    if (unordered := np.flatnonzero(np.diff(positions) <= 0)).size:
        before, after = positions[unordered[0] : unordered[0] + 2].tolist()
        raise InvalidRequest("positions", f"{after} after {before}", "must be ascending")
    for position in (int(positions[0]), int(positions[-1])):
        if not 0 <= position < MAX_POSITION:
            raise InvalidRequest("positions", position, f"must be 0 to {MAX_POSITION - 1}")
    return torch.from_numpy(positions.copy())


def _losses(request: Reading) -> ScalarLosses:
    if request.policy.needs is Needs.PAIRS:
        limit = "needs pairs; scalar losses serve independent and uniform only"
        raise InvalidRequest("policy", repr(request.policy.name), limit)

    def read_model(tensor: pb.Tensor, field: str, size: int | None) -> tuple[Floats, int]:
        size = _size(tensor, field, request.config) if size is None else size
        array: Floats = read(tensor, request.payload, field, FLOATS, [size])
        request.check_finite(field, array)
        return array, size

    models, _ = _of_models(request, request.selection.losses, "losses", read_model)
    return ScalarLosses(models["learner"], models["reference"], request.closing.closed())


FORMS: Mapping[str, Callable[[Reading], Candidates]] = {
    "samples": _samples,
    "embeddings": _embeddings,
    "losses": _losses,
}


def _of_models(
    request: Reading,
    message: Any,
    field: str,
    read_model: Callable[[Any, str, int | None], tuple[T, int]],
    otherwise: Collection[str] = (),
) -> tuple[dict[str, T | None], int | None]:
    """What `read_model` makes of either model's part of the message, and the number of candidates, None if there is no
    part. All parts have as many as the first. Models that are there in another way need none."""
    rule, size = request.rule, None
    found: dict[str, T | None] = {"learner": None, "reference": None}
    for name, needed in (("learner", rule.needs_learner), ("reference", rule.needs_reference)):
        if message.HasField(name):
            found[name], size = read_model(getattr(message, name), f"{field}.{name}", size)
        elif needed and name not in otherwise:
            raise InvalidRequest(f"{field}.{name}", "missing", f"criterion {rule.name} needs it")
    return found, size


def _size(tensor: pb.Tensor, field: str, config: Config) -> int:
    """B, by the tensor that says it first."""
    size = tensor.shape[0] if tensor.shape else 0
    if size < 1:
        raise InvalidRequest(f"{field}.shape", list(tensor.shape), "at least one candidate is needed")
    if size > config.max_super_batch:
        raise LimitExceeded(f"{field}.shape", list(tensor.shape), f"at most {config.max_super_batch} candidates")
    return size
