"""Answers from this process's own memory of what was selected."""

import time
from collections.abc import Callable, Iterator
from math import isnan

from selector_proto.v1 import inspection_pb2 as pb
from selector_proto.v1 import selector_pb2

from selector_server.encoding.reference_cache import integer_key, string_key
from selector_server.errors import InvalidRequest, NotPossible
from selector_server.inspection import parquet
from selector_server.inspection.history import Sighting
from selector_server.inspection.messages import SHOWN, candidates, message_of, super_batch
from selector_server.inspection.observation import Fate, Observation
from selector_server.inspection.pictures import galleries
from selector_server.inspection.stores import Inspection, Totals
from selector_server.inspection.verdicts import verdicts

# So many slices of each kind, and so many sightings of a sample, are listed.
SLICES, SIGHTINGS = 200, 256
_PIECE = 1 << 20


class LocalSource:
    """`unserved` says why the newest weights are not served, if they are not."""

    def __init__(
        self,
        inspection: Inspection,
        run: str,
        unserved: Callable[[], selector_pb2.UnservedWeights | None] = lambda: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._inspection, self._run, self._unserved, self._now = inspection, run, unserved, now
        self._judged: tuple[object, list[pb.Verdict]] = (None, [])

    def get_overview(self, request: pb.GetOverviewRequest) -> pb.GetOverviewResponse:
        unserved, at = self._unserved(), self._now()
        with self._inspection.reading:
            seen, totals = list(self._inspection.window), _totals(self._inspection.totals)
        last = seen[-1] if seen else None
        return pb.GetOverviewResponse(
            run=self._run,
            trainer_step=None if last is None else last.step,
            weights=_weights(last, at),
            unserved_weights=unserved,
            rule={} if last is None else last.rule,
            verdicts=self._verdicts(seen, unserved, totals.fallbacks),
            totals=totals,
            points=[one.point for one in seen if one.number > request.after],
            content=self._inspection.content,
            at=at,
        )

    def _verdicts(
        self, seen: list[Observation], unserved: selector_pb2.UnservedWeights | None, fallbacks: int
    ) -> list[pb.Verdict]:
        """Every page asks every second, so that they are not worked out again while nothing is new."""
        of = (seen[-1].number if seen else 0, unserved, fallbacks)
        last, found = self._judged
        if of != last:
            found = verdicts(seen, unserved, fallbacks)
            self._judged = of, found
        return found

    def get_super_batch(self, request: pb.GetSuperBatchRequest) -> pb.GetSuperBatchResponse:
        return super_batch(self._found(request.super_batch))

    def list_pictures(self, request: pb.ListPicturesRequest) -> pb.ListPicturesResponse:
        seen = self._found(request.super_batch, pictures=True)
        wanted = set(request.galleries) or set(pb.Gallery.values())
        shown = [
            pb.GalleryPictures(
                gallery=pb.Gallery.ValueType(gallery),
                candidates=candidates(seen, rows.tolist(), not request.without_pixels),
            )
            for gallery, rows in galleries(seen).items()
            if gallery in wanted
        ]
        return pb.ListPicturesResponse(point=seen.point, galleries=shown, content=self._inspection.content)

    def get_sample(self, request: pb.GetSampleRequest) -> pb.GetSampleResponse:
        name, inspection = request.id, self._inspection
        here = None
        if not name and request.super_batch:
            here = self._placed(request.super_batch, request.index)
            name = here.last.id
            if not name:
                return here
        if inspection.history is None:
            raise NotPossible(
                "content", "not kept", "samples have no ids here: start the server with --inspect-content"
            )
        if not 1 <= len(name) <= SHOWN:
            raise InvalidRequest("id", repr(name[:SHOWN]), f"must have 1 to {SHOWN} characters")
        reply = pb.GetSampleResponse(id=name)
        for key in _keys(name):
            with inspection.reading:
                sightings, shown = inspection.history.of(key), list(inspection.window.with_content())
            if not sightings:
                continue
            reply.seen = len(sightings)
            reply.picked = sum(one.fate == Fate.PICKED for one in sightings)
            reply.sightings.extend(map(_sighting, sightings[-SIGHTINGS:]))
            if (last := _last(shown, key)) is not None:
                reply.last.CopyFrom(last)
            break
        return here if here is not None and not reply.seen else reply

    def _placed(self, number: int, index: int) -> pb.GetSampleResponse:
        """What is known of the candidate of that place, by this super-batch alone."""
        seen = self._found(number)
        if index >= seen.size:
            raise InvalidRequest("index", index, f"must be below the number of candidates, {seen.size}")
        [last] = candidates(seen, [index])
        sighting = pb.Sighting(super_batch=seen.number, trainer_step=seen.step, fate=last.fate, at=seen.at)
        for loss in ("learner_loss", "reference_loss"):
            if last.HasField(loss):
                setattr(sighting, loss, getattr(last, loss))
        picked = int(last.fate == pb.FATE_PICKED)
        return pb.GetSampleResponse(id=last.id, sightings=[sighting], last=last, seen=1, picked=picked)

    def list_slices(self, request: pb.ListSlicesRequest) -> pb.ListSlicesResponse:  # noqa: ARG002 - it has no fields
        with self._inspection.reading:
            tags, others = self._inspection.tags.most_frequent(SLICES)
            words, _ = self._inspection.words.most_frequent(SLICES)
            totals = _totals(self._inspection.totals)
        return pb.ListSlicesResponse(
            tags=[_slice(*one) for one in tags],
            words=[_slice(*one) for one in words],
            other_tags=_slice("", *others),
            pick_rate=totals.picked / totals.candidates if totals.candidates else 0.0,
            content=self._inspection.content,
        )

    def download_super_batches(
        self, request: pb.DownloadSuperBatchesRequest
    ) -> Iterator[pb.DownloadSuperBatchesResponse]:
        with self._inspection.reading:
            seen = list(self._inspection.window)
        if not seen:
            raise NotPossible("super_batch", "none", "nothing was selected yet")
        seen = seen[-request.last :] if request.last else seen
        data = parquet.written(seen, self._run, self._inspection.content)
        for start in range(0, len(data), _PIECE):
            yield pb.DownloadSuperBatchesResponse(data=data[start : start + _PIECE])

    def _found(self, number: int, pictures: bool = False) -> Observation:
        with self._inspection.reading:
            seen = self._inspection.window.find(number, pictures)
            last = self._inspection.totals.selections
        if seen is not None:
            return seen
        if not last:
            raise NotPossible("super_batch", number, "nothing was selected yet")
        raise InvalidRequest("super_batch", number, f"is not kept; the last one is {last}")


def _totals(totals: Totals) -> pb.Totals:
    fates = totals.fates
    return pb.Totals(
        selections=totals.selections,
        candidates=totals.candidates,
        picked=fates[Fate.PICKED],
        prefiltered=fates[Fate.PREFILTERED],
        kept_apart=fates[Fate.KEPT_APART],
        excluded=fates[Fate.EXCLUDED],
        fallbacks=sum(totals.fallbacks.values()),
    )


def _weights(last: Observation | None, at: float) -> selector_pb2.WeightsVersion | None:
    if last is None or (weights := last.weights) is None:
        return None
    age = weights.age_seconds + max(0.0, at - last.at)
    return selector_pb2.WeightsVersion(
        version=weights.version, trainer_step=weights.trainer_step, age_seconds=age, lag_steps=weights.lag_steps
    )


def _keys(name: str) -> Iterator[bytes]:
    """What a name may stand for: an integer that is written so, or a text."""
    try:
        number = int(name)
        if str(number) == name:
            yield integer_key(number)
    except (ValueError, OverflowError):  # It is no integer, or one that no id can be.
        pass
    yield string_key(name)


def _sighting(one: Sighting) -> pb.Sighting:
    return pb.Sighting(
        super_batch=one.number,
        trainer_step=one.step,
        fate=pb.Fate.ValueType(one.fate),
        learner_loss=None if isnan(one.learner) else one.learner,
        reference_loss=None if isnan(one.reference) else one.reference,
        at=one.at,
    )


def _last(shown: list[Observation], key: bytes) -> pb.Candidate | None:
    """The candidate of that id as it was seen last, with the newest picture that is kept of it. `shown` is newest
    first."""
    last = None
    for seen in shown:
        if seen.content is None or key not in seen.content.ids:
            continue
        row = seen.content.ids.index(key)
        last = last or candidates(seen, [row])[0]
        if (picture := seen.content.pictures.get(row)) is not None:
            last.picture.CopyFrom(message_of(picture))
            last.missing = "" if last.caption else seen.content.no_caption
            break
    return last


def _slice(name: str, count: int, picked: int) -> pb.Slice:
    return pb.Slice(name=name, candidates=count, picked=picked)
