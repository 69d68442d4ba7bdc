"""One selection as people look at it: what became of each candidate, in arrays that nobody changes any more."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from selector_proto.v1 import inspection_pb2 as pb
from selector_proto.v1 import selector_pb2

from selector_server.engine.task import ServedWeights
from selector_server.errors import Exclusion
from selector_server.sampling.locality import Locality

Losses = NDArray[np.float32]


class Fate(IntEnum):
    """What became of a candidate; the numbers are the contract's."""

    PICKED = pb.FATE_PICKED
    DROPPED = pb.FATE_DROPPED
    PREFILTERED = pb.FATE_PREFILTERED
    KEPT_APART = pb.FATE_KEPT_APART
    EXCLUDED = pb.FATE_EXCLUDED


@dataclass(frozen=True)
class Content:
    """Of B candidates what may be shown, each column empty where the request had none of it: `ids` as the reference
    cache has them, `captions` in UTF-8 and clipped, `tags` as integers [B] or in UTF-8. `pictures` are uint8
    [height, width, channels] by index, of a few candidates; `missing` says why the others' and, where it is not empty,
    all captions are not there."""

    ids: Sequence[bytes] = ()
    captions: Sequence[bytes] = ()
    tags: NDArray[np.integer[Any]] | Sequence[bytes] = ()
    pictures: Mapping[int, NDArray[np.uint8]] = field(default_factory=dict)
    no_picture: str = ""
    no_caption: str = ""

    @cached_property
    def nbytes(self) -> int:
        """About how much memory it takes."""
        columns = [self.ids, self.captions, [] if isinstance(self.tags, np.ndarray) else self.tags]
        # A list has 8 bytes for each entry, and an entry that is not empty 33 of its own.
        texts = sum(sum(map(len, column)) + 8 * len(column) + 33 * sum(map(bool, column)) for column in columns)
        return texts + sum(picture.nbytes for picture in self.pictures.values())


@dataclass(frozen=True)
class Observation:
    """One selection from B candidates: `fates` uint8 [B]; `order` in the draw, from 1, uint32 [B], 0 for what was not
    picked; own losses and `scores` in nats, float32 [B], NaN where a model did not look, None where it looked at none.
    `shuffled_loss` is the reference's mean loss of images beside captions of others. `at` is in Unix seconds. `number`
    counts from 1. `trainer` and `fallbacks` say how often which trainer drew uniformly."""

    at: float
    step: int | None
    rule: Mapping[str, str]
    fates: NDArray[np.uint8]
    order: NDArray[np.uint32]
    learner: Losses | None = None
    reference: Losses | None = None
    scores: Losses | None = None
    reasons: Mapping[int, Exclusion] = field(default_factory=dict)
    weights: ServedWeights | None = None
    locality: Locality | None = None
    shuffled_loss: float | None = None
    trainer: str = ""
    fallbacks: int | None = None
    content: Content | None = None
    number: int = 0

    @property
    def size(self) -> int:
        """B, the number of candidates."""
        return len(self.fates)

    @cached_property
    def spread(self) -> float:
        """The standard deviation of the scores that there are; 0 without any."""
        if self.scores is None or np.isnan(self.scores).all():
            return 0.0
        return float(np.nanstd(self.scores, dtype=np.float64))

    @cached_property
    def point(self) -> pb.Point:
        """The selection in a few numbers. It is computed once, and not to be changed."""
        picked = self.fates == Fate.PICKED
        competed = picked | (self.fates == Fate.DROPPED) | (self.fates == Fate.KEPT_APART)
        point = pb.Point(
            super_batch=self.number,
            trainer_step=self.step,
            at=self.at,
            candidates=self.size,
            picks=int(picked.sum()),
            prefiltered=self.count(Fate.PREFILTERED),
            kept_apart=self.count(Fate.KEPT_APART),
            excluded=self.count(Fate.EXCLUDED),
            locality=None if self.locality is None else selector_pb2.Locality(**asdict(self.locality)),
            weights_version=0 if self.weights is None else self.weights.version,
            lag_steps=None if self.weights is None else self.weights.lag_steps,
        )
        means = {"": self.scores, "_learner_loss": self.learner, "_reference_loss": self.reference}
        for kind, values in means.items():
            for of, rows in (("picked", picked), ("pool", competed)):
                if values is not None and rows.any():
                    setattr(point, of + kind, float(values[rows].mean(dtype=np.float64)))
        return point

    def count(self, fate: Fate) -> int:
        """How many candidates met this fate."""
        return int((self.fates == fate).sum())

    @property
    def nbytes(self) -> int:
        """About how much memory it takes, its content apart."""
        arrays = (self.fates, self.order, self.learner, self.reference, self.scores)
        return sum(array.nbytes for array in arrays if array is not None) + 200 * len(self.reasons)
