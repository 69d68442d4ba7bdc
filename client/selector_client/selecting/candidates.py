"""Arrays of the trainer to the messages of one request. Mistakes the client can see raise ValueError or TypeError."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from selector_proto.sizes import DEFAULT_FILTER_RATIO, MAX_ID_BYTES, sub_batch_size
from selector_proto.tensors import Payload
from selector_proto.v1 import selector_pb2 as pb

# Images: uint8 [B, H, W, C] or [B, H, W], or B encoded files. Texts: token ids int [B, T], or B strings.
Images = ArrayLike | Sequence[bytes]
Texts = ArrayLike | Sequence[str]
# B integers or B strings, all different, each the name of one image and text for ever.
Ids = ArrayLike | Sequence[str]
T = TypeVar("T", bytes, str)
# A payload of that many bytes travels with the header, in one message: HTTP/2 sends as much without being asked.
SMALL_BYTES = 64 << 10


class TooFew(ValueError):
    """A super-batch from which the sub-batch cannot be picked."""


@dataclass(frozen=True)
class Settings:
    """How to pick; None leaves the server's default. See the contract for limits."""

    run: str = ""
    policy: str = ""
    criterion: str = "learnability"
    loss: str | None = None
    sub_batch_size: int | None = None
    filter_ratio: float | None = None
    chunks: int | None = None
    gain: float | None = None
    draw: str = "sample"
    min_weights_version: int = 0
    max_lag_steps: int | None = None
    max_age_seconds: float | None = None
    when_stale: str | None = None
    # Data-parallel ranks that select as one, through one sidecar: the run's own name for them, and which one this is.
    group: str = ""
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.sub_batch_size is not None and self.filter_ratio is not None:
            raise ValueError("give sub_batch_size or filter_ratio, not both")
        if self.filter_ratio is not None and not 0 < self.filter_ratio < 1:
            raise ValueError(f"filter_ratio is {self.filter_ratio}; must lie between 0 and 1, both excluded")
        _enum(pb.Criterion, "CRITERION", self.criterion)
        _enum(pb.Draw, "DRAW", self.draw)
        if self.loss is not None:
            _enum(pb.Loss, "LOSS", self.loss)
        if self.max_lag_steps is not None and self.max_lag_steps < 0:
            raise ValueError(f"max_lag_steps is {self.max_lag_steps}; must not be negative")
        if self.max_age_seconds is not None and not 0 < self.max_age_seconds <= 1e9:
            raise ValueError(f"max_age_seconds is {self.max_age_seconds}; must be positive and at most 1e9")
        if self.when_stale is not None:
            _enum(pb.StalenessPolicy, "STALENESS_POLICY", self.when_stale, "when_stale")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is {self.rank}; must be 0 to world_size - 1, and world_size is {self.world_size}")
        if self.world_size > 1 and not self.group:
            raise ValueError(f"group is ''; {self.world_size} ranks that select as one need a name for their group")

    def picks(self, candidates: int) -> int:
        """b for a super-batch of that size. Raises TooFew, a ValueError, if there is none."""
        if self.sub_batch_size is not None:
            picks = self.sub_batch_size
        else:
            picks = sub_batch_size(candidates, self.filter_ratio or DEFAULT_FILTER_RATIO)
        if not 1 <= picks <= candidates:
            raise TooFew(f"{picks} picks of {candidates} candidates are not possible")
        return picks

    def header(self) -> pb.Selection:
        """The message, but for candidates, seed and step."""
        optional = {
            "sub_batch_size": self.sub_batch_size,
            "filter_ratio": self.filter_ratio,
            "chunks": self.chunks,
            "gain": self.gain,
            "loss": None if self.loss is None else _enum(pb.Loss, "LOSS", self.loss),
            "max_lag_steps": self.max_lag_steps,
            "max_age_seconds": self.max_age_seconds,
            "when_stale": None
            if self.when_stale is None
            else _enum(pb.StalenessPolicy, "STALENESS_POLICY", self.when_stale, "when_stale"),
        }
        return pb.Selection(
            run=self.run,
            policy=self.policy,
            criterion=_enum(pb.Criterion, "CRITERION", self.criterion),
            draw=_enum(pb.Draw, "DRAW", self.draw),
            min_weights_version=self.min_weights_version,
            group=self.group,
            rank=self.rank,
            world_size=self.world_size,
            **{name: value for name, value in optional.items() if value is not None},  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class ModelEmbeddings:
    """One model's embeddings, float32, float16 or bfloat16 [B, D], its logit scale (not its logarithm) and bias."""

    image: ArrayLike
    text: ArrayLike
    logit_scale: float
    logit_bias: float = 0.0


@dataclass
class Candidates:
    """One super-batch, ready to be sent: a part of the header, and the payload it views."""

    size: int
    header: pb.Selection
    payload: Payload

    @staticmethod
    def samples(images: Images, texts: Texts, ids: Ids | None = None) -> "Candidates":
        """Raw samples, and their names if they have any."""
        payload, samples = Payload(), pb.RawSamples()
        files, strings = _list_of(bytes, images, "images"), _list_of(str, texts, "texts")
        if files:
            size = len(files)
            samples.encoded_images.CopyFrom(payload.add_bytes(files))
        else:
            pixels = _array(images, "images", np.dtype(np.uint8), 4)
            size = len(pixels)
            samples.pixels.CopyFrom(payload.add(pixels))
        if strings:
            _same_size("texts", len(strings), size)
            samples.strings.CopyFrom(payload.add_bytes([text.encode() for text in strings]))
        else:
            tokens = _array(texts, "texts", None, 2)
            _same_size("texts", len(tokens), size)
            samples.tokens.CopyFrom(payload.add(tokens))
        header = pb.Selection(samples=samples)
        if ids is not None:
            header.sample_ids.CopyFrom(_ids(ids, size, payload))
        return Candidates(size, header, payload)

    @staticmethod
    def embeddings(learner: ModelEmbeddings | None, reference: ModelEmbeddings | None) -> "Candidates":
        payload, embeddings, sizes = Payload(), pb.Embeddings(), []
        for model, message in ((learner, embeddings.learner), (reference, embeddings.reference)):
            if model is not None:
                message.image.CopyFrom(payload.add(model.image))
                message.text.CopyFrom(payload.add(model.text))
                message.logit_scale, message.logit_bias = model.logit_scale, model.logit_bias
                sizes += [_rows(message.image), _rows(message.text)]
        if not sizes or len(set(sizes)) != 1:
            raise ValueError(f"embeddings must all have the same number of rows, not {sizes}")
        return Candidates(sizes[0], pb.Selection(embeddings=embeddings), payload)

    @staticmethod
    def losses(learner: ArrayLike | None, reference: ArrayLike | None) -> "Candidates":
        payload, losses, sizes = Payload(), pb.ScalarLosses(), []
        for values, message in ((learner, losses.learner), (reference, losses.reference)):
            if values is not None:
                message.CopyFrom(payload.add(values))
                sizes.append(_rows(message))
        if not sizes or len(set(sizes)) != 1:
            raise ValueError(f"losses must all have the same length, not {sizes}")
        return Candidates(sizes[0], pb.Selection(losses=losses), payload)

    def selection(self, settings: pb.Selection) -> pb.Selection:
        """What is asked, but for where the payload is."""
        header = pb.Selection(payload_bytes=self.payload.nbytes)
        header.MergeFrom(self.header)
        header.MergeFrom(settings)
        return header

    def messages(self, settings: pb.Selection) -> Iterator[pb.SelectRequest]:
        """The request's stream."""
        header = self.selection(settings)
        header.payload_crc32 = self.payload.crc32()
        chunks = self.payload.chunks()
        # A sidecar that is full refuses at the header: it should not have to take a large chunk with it.
        small = self.payload.nbytes <= SMALL_BYTES
        yield pb.SelectRequest(selection=header, payload=next(chunks, b"") if small else b"")
        for chunk in chunks:
            yield pb.SelectRequest(payload=chunk)


def _list_of(kind: type[T], values: Any, field: str) -> list[T]:
    """`values` if it is a sequence of `kind`, judged by its first entry; else empty."""
    if (
        not isinstance(values, Sequence)
        or isinstance(values, str | bytes)
        or not isinstance(next(iter(values), None), kind)
    ):
        return []
    for index, value in enumerate(values):
        if not isinstance(value, kind):
            raise TypeError(f"{field}[{index}] is a {type(value).__name__}; must be {kind.__name__} like the first")
    return list(values)


def _array(values: Any, field: str, dtype: np.dtype[Any] | None, rank: int) -> NDArray[Any]:
    array = np.asarray(values)
    if dtype is not None and array.dtype != dtype:
        raise TypeError(f"{field} has dtype {array.dtype}; must be {dtype}")
    if dtype is None:
        if array.dtype.kind not in "iu":
            raise TypeError(f"{field} has dtype {array.dtype}; must be token ids or strings")
        array = array if array.dtype in (np.int32, np.int64) else array.astype(np.int64)
    if array.ndim == rank - 1 == 3:
        array = array[..., None]  # grey images without a channel axis
    if array.ndim != rank or not len(array):
        raise ValueError(f"{field} has shape {list(array.shape)}; must have {rank} dimensions and at least one row")
    return array


def _ids(ids: Any, size: int, payload: Payload) -> pb.SampleIds:
    if isinstance(ids, np.ndarray) and ids.dtype.kind == "U":
        ids = ids.tolist()
    if strings := _list_of(str, ids, "ids"):
        _same_size("ids", len(strings), size)
        names = [name.encode() for name in strings]
        for index, name in enumerate(names):
            if not 1 <= len(name) <= MAX_ID_BYTES:
                raise ValueError(f"ids[{index}] has {len(name)} bytes; must have 1 to {MAX_ID_BYTES}")
        _all_different(np.asarray(strings))
        return pb.SampleIds(strings=payload.add_bytes(names))
    numbers = np.asarray(ids)
    if numbers.dtype.kind not in "iu" or numbers.ndim != 1:
        raise TypeError(f"ids has dtype {numbers.dtype} and {numbers.ndim} dimensions; must be integers or strings [B]")
    _same_size("ids", len(numbers), size)
    if numbers.max(initial=0) > np.iinfo(np.int64).max:
        raise ValueError(f"ids has {numbers.max()}; must be below 2^63")
    _all_different(numbers)
    return pb.SampleIds(integers=payload.add(numbers.astype(np.int64)))


def _all_different(ids: NDArray[Any]) -> None:
    values, counts = np.unique(ids, return_counts=True)
    if len(values) < len(ids):
        raise ValueError(f"ids has {values[counts.argmax()]} more than once; every candidate needs one of its own")


def _rows(tensor: pb.Tensor) -> int:
    return tensor.shape[0] if tensor.shape else 0


def _same_size(field: str, size: int, wanted: int) -> None:
    if size != wanted:
        raise ValueError(f"{field} has {size} entries, images has {wanted}")


def _enum(enum: Any, prefix: str, name: str, field: str = "") -> Any:
    key = f"{prefix}_{name.upper().replace('-', '_')}"
    if key not in enum.keys() or key.endswith("UNSPECIFIED"):  # noqa: SIM118 - the enum wrapper is no dict
        known = [k.removeprefix(f"{prefix}_").lower().replace("_", "-") for k in enum.keys()[1:]]
        raise ValueError(f"{field or prefix.lower()} is {name!r}; must be one of {', '.join(known)}")
    return enum.Value(key)
