"""Turns arrays of the trainer into the messages of one request.

Mistakes that the client can see raise ValueError or TypeError."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from selector_proto.contract import MAX_ID_BYTES
from selector_proto.tensors import Payload
from selector_proto.v1 import selector_pb2 as pb

# Images are uint8 [B, H, W, C] or [B, H, W], or B encoded files. Texts are token ids int [B, T], or B strings.
Images = ArrayLike | Sequence[bytes]
Texts = ArrayLike | Sequence[str]
# Ids are B integers or B strings, all different, and each names one image and text for ever.
Ids = ArrayLike | Sequence[str]
T = TypeVar("T", bytes, str)
# A payload of up to so many bytes travels in one message with the header, because HTTP/2 sends that much before the
# receiver has to grant more.
SMALL_BYTES = 64 << 10


@dataclass(frozen=True)
class ModelEmbeddings:
    """The embeddings of one model, float32, float16 or bfloat16 [B, D], with its logit scale (not the scale's
    logarithm) and logit bias."""

    image: ArrayLike
    text: ArrayLike
    logit_scale: float
    logit_bias: float = 0.0


@dataclass
class Candidates:
    """One super-batch that is ready to be sent: its size B, its part of the header, and the payload, which views the
    trainer's arrays and copies nothing."""

    size: int
    header: pb.Selection
    payload: Payload

    @staticmethod
    def samples(images: Images, texts: Texts, ids: Ids | None = None) -> "Candidates":
        """Makes candidates of raw samples, and of their names if they have any. Raises ValueError or TypeError."""
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
        """Makes candidates of embeddings that the trainer computed. Raises ValueError."""
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
        """Makes candidates of one loss each, float32 or float16 [B]. Raises ValueError."""
        payload, losses, sizes = Payload(), pb.ScalarLosses(), []
        for values, message in ((learner, losses.learner), (reference, losses.reference)):
            if values is not None:
                message.CopyFrom(payload.add(values))
                sizes.append(_rows(message))
        if not sizes or len(set(sizes)) != 1:
            raise ValueError(f"losses must all have the same length, not {sizes}")
        return Candidates(sizes[0], pb.Selection(losses=losses), payload)

    def selection(self, settings: pb.Selection) -> pb.Selection:
        """Returns the whole header of a request, which does not say yet where its payload is."""
        header = pb.Selection(payload_bytes=self.payload.nbytes)
        header.MergeFrom(self.header)
        header.MergeFrom(settings)
        return header

    def messages(self, settings: pb.Selection) -> Iterator[pb.SelectRequest]:
        """Yields the messages of a request whose payload travels in the stream."""
        header = self.selection(settings)
        header.payload_crc32 = self.payload.crc32()
        chunks = self.payload.chunks()
        # A sidecar that is full refuses at the header, and should not have to receive a large chunk along with it.
        small = self.payload.nbytes <= SMALL_BYTES
        yield pb.SelectRequest(selection=header, payload=next(chunks, b"") if small else b"")
        for chunk in chunks:
            yield pb.SelectRequest(payload=chunk)


def _list_of(kind: type[T], values: Any, field: str) -> list[T]:
    """Returns `values` as a list if their first entry is of `kind`, and an empty list otherwise. Raises TypeError if a
    later entry is of another kind."""
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
        array = array[..., None]  # these are grey images without a channel axis
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
