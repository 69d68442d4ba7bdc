"""Turns samples of the trainer into the messages of one request.

Mistakes in the form of all candidates raise ValueError or TypeError. A single candidate that cannot be used is
excluded, unless the terms are strict."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from selector_proto.tensors import Payload
from selector_proto.v1 import selector_pb2 as pb

from selector_client.selecting.bad_samples import REPEATED, Id
from selector_client.selecting.columns import Terms, as_array
from selector_client.selecting.exclusions import Exclusions
from selector_client.selecting.ids import check_different, read_ids, repeats
from selector_client.selecting.images import read_images
from selector_client.selecting.reference_rows import read_rows
from selector_client.selecting.tags import read_tags
from selector_client.selecting.texts import read_texts

# Images are uint8 [B, H, W, C], [B, C, H, W] or [B, H, W], or B files, PIL images, arrays or tensors. Texts are token
# ids int [B, T], or B strings or lists of strings. Columns may be lists, object arrays, or those of pandas or Arrow.
Images = ArrayLike | Sequence[Any]
Texts = ArrayLike | Sequence[Any]
# Ids are B integers or B strings, and each names one image and text for ever.
Ids = ArrayLike | Sequence[Any]
# Tags are B integers or B strings, and say what samples are: their source, class, language.
Tags = ArrayLike | Sequence[Any]
# A payload of up to so many bytes travels in one message with the header, because HTTP/2 sends that much before the
# receiver has to grant more.
SMALL_BYTES = 64 << 10


@dataclass(frozen=True)
class ModelEmbeddings:
    """The embeddings of one model, float32, float16 or bfloat16 [B, D], with its logit scale (not the scale's
    logarithm) and logit bias. The reference's that come with raw samples need its `fingerprint`, too, as `selector
    reference score` and `selector info` tell it. They may also be columns of B rows, and a sample whose row is missing,
    or has not `width` values, is left out (default: as many as most have)."""

    image: ArrayLike | Sequence[Any]
    text: ArrayLike | Sequence[Any]
    logit_scale: float
    logit_bias: float = 0.0
    fingerprint: str = ""
    width: int | None = None


@dataclass
class Candidates:
    """One super-batch that is ready to be sent: its size B, its part of the header, and the payload, which views the
    trainer's arrays and copies nothing.

    `exclusions` are the candidates that the client sees cannot be used; something of the right form stands in their
    place. `ids` are those of all candidates (None where an excluded one has none), or empty. `drawn` says which of its
    captions stands for a candidate that has a list of them. `floats` are the arrays of embeddings or losses, [B] or
    [B, D]."""

    size: int
    header: pb.Selection
    payload: Payload
    exclusions: Exclusions = field(default_factory=Exclusions)
    ids: Sequence[Id | None] = ()
    drawn: Mapping[int, int] = field(default_factory=dict)
    floats: Sequence[Any] = ()

    @staticmethod
    def samples(
        images: Images,
        texts: Texts,
        ids: Ids | None = None,
        terms: Terms | None = None,
        reference: ModelEmbeddings | None = None,
    ) -> "Candidates":
        """Makes candidates of raw samples, and of their names and of what the `reference` makes of them if they have
        any. Without `terms` all of them must be usable. Raises ValueError or TypeError."""
        terms = terms or Terms()
        exclusions, payload, samples = Exclusions(terms.strict), Payload(), pb.RawSamples()
        pictures = read_images(images, exclusions, terms)
        size = len(pictures)
        if isinstance(pictures, list):
            samples.encoded_images.CopyFrom(payload.add_bytes(pictures))
        else:
            samples.pixels.CopyFrom(payload.add(pictures))
        read = read_texts(texts, exclusions, terms)
        _same_size("texts", len(read), size)
        if read.tokens is None:
            samples.strings.CopyFrom(payload.add_bytes(read.strings))
        else:
            samples.tokens.CopyFrom(payload.add(read.tokens))
        header = pb.Selection(samples=samples)
        names: list[Id | None] = []
        if ids is not None:
            names = read_ids(ids, exclusions, read.drawn)
            _same_size("ids", len(names), size)
            if terms.strict:
                check_different(names, exclusions)
            header.sample_ids.CopyFrom(_packed(names, payload))
        floats: list[Any] = []
        if reference is not None:
            if not reference.fingerprint:
                raise ValueError("reference.fingerprint is ''; embeddings say of which reference they are")
            message = pb.ReferenceEmbeddings(fingerprint=reference.fingerprint)
            sides = {"image": reference.image, "text": reference.text}
            rows = {
                side: read_rows(values, f"reference.{side}", reference.width, exclusions)
                for side, values in sides.items()
            }
            for count in _add_model(replace(reference, **rows), message.embeddings, payload):
                _same_size("reference", count, size)
            floats = [*rows.values()]
            header.samples.reference.CopyFrom(message)
        return Candidates(size, header, payload, exclusions, names, read.drawn, floats)

    @staticmethod
    def named(ids: Ids, strict: bool = False) -> "Candidates":
        """Makes candidates that have ids only. If it is `strict`, all of them must be usable. Raises ValueError or
        TypeError."""
        exclusions, payload = Exclusions(strict), Payload()
        names = read_ids(ids, exclusions, {})
        if strict:
            check_different(names, exclusions)
        header = pb.Selection(sample_ids=_packed(names, payload))
        return Candidates(len(names), header, payload, exclusions, names)

    @staticmethod
    def embeddings(
        learner: ModelEmbeddings | None, reference: ModelEmbeddings | None, learner_losses: ArrayLike | None = None
    ) -> "Candidates":
        """Makes candidates of embeddings that the trainer computed, or of one learner loss each beside the reference's.
        Raises ValueError."""
        if learner is not None and learner_losses is not None:
            raise ValueError("give learner or learner_losses, not both")
        payload, embeddings, sizes = Payload(), pb.Embeddings(), []
        floats = [part for model in (learner, reference) if model is not None for part in (model.image, model.text)]
        for model, message in ((learner, embeddings.learner), (reference, embeddings.reference)):
            if model is not None:
                sizes += _add_model(model, message, payload)
        if learner_losses is not None:
            embeddings.learner_losses.CopyFrom(payload.add(learner_losses))
            sizes.append(_rows(embeddings.learner_losses))
            floats.append(learner_losses)
        if not sizes or len(set(sizes)) != 1:
            raise ValueError(f"embeddings must all have the same number of rows, not {sizes}")
        return Candidates(sizes[0], pb.Selection(embeddings=embeddings), payload, floats=floats)

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
        floats = [values for values in (learner, reference) if values is not None]
        return Candidates(sizes[0], pb.Selection(losses=losses), payload, floats=floats)

    def with_recent(self, recent: ModelEmbeddings | None) -> "Candidates":
        """Adds picks of earlier steps, as the reference sees them, that new picks must not be like; there may be none
        yet. Raises ValueError."""
        if recent is not None and np.shape(recent.image)[:1] != (0,):
            message = pb.RecentPicks(image=self.payload.add(recent.image), text=self.payload.add(recent.text))
            _same_size("recent.text", _rows(message.text), _rows(message.image), "recent.image")
            self.header.recent.CopyFrom(message)
        return self

    def with_tags(self, tags: Tags | None) -> "Candidates":
        """Adds a tag for each candidate, for those who look at slices of the stream. Raises ValueError."""
        if tags is not None:
            self.header.tag_strings.CopyFrom(self.payload.add_bytes(read_tags(tags, self.size)))
        return self

    def closed(self) -> dict[int, str]:
        """Returns, by index, why the client itself would leave candidates out: those it excluded, later ones of an id,
        and embeddings or losses that are not finite. A sidecar finds the last two by itself, so that this is only asked
        where there is none."""
        why = {index: reason for reason, one in self.exclusions.found().items() for index in one.indices.tolist()}
        why |= dict.fromkeys(repeats(self.ids, self.exclusions), REPEATED)
        for values in self.floats:
            wrong = ~np.isfinite(as_array(values)).reshape(self.size, -1).all(axis=1)
            why |= {index: "value" for index in np.flatnonzero(wrong).tolist() if index not in why}
        return why

    def captions(self, picks: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Returns, int64 [b], which of its captions stood for each pick, 0 for those that have one. None if no
        candidate has a list of them."""
        return np.array([self.drawn.get(pick, 0) for pick in picks.tolist()], np.int64) if self.drawn else None

    def selection(self, settings: pb.Selection) -> pb.Selection:
        """Returns the whole header of a request, which does not say yet where its payload is."""
        header = pb.Selection(payload_bytes=self.payload.nbytes)
        header.MergeFrom(self.header)
        header.MergeFrom(settings)
        header.exclusions.extend(self.exclusions.messages())
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


def _packed(ids: Sequence[Id | None], payload: Payload) -> pb.SampleIds:
    """Returns the ids as a message, in which nobody looks at what stands in place of None."""
    if any(isinstance(one, int) for one in ids):
        return pb.SampleIds(integers=payload.add(np.array([one or 0 for one in ids], np.int64)))
    return pb.SampleIds(strings=payload.add_bytes([str(one or "-").encode() for one in ids]))


def _rows(tensor: pb.Tensor) -> int:
    return tensor.shape[0] if tensor.shape else 0


def _add_model(model: ModelEmbeddings, message: pb.ModelEmbeddings, payload: Payload) -> list[int]:
    """Writes a model's embeddings into the message and the payload. Returns the rows of both sides."""
    message.image.CopyFrom(payload.add(model.image))
    message.text.CopyFrom(payload.add(model.text))
    message.logit_scale, message.logit_bias = model.logit_scale, model.logit_bias
    return [_rows(message.image), _rows(message.text)]


def _same_size(field: str, size: int, wanted: int, other: str = "images") -> None:
    if size != wanted:
        raise ValueError(f"{field} has {size} entries, {other} has {wanted}")
