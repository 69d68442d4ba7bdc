"""A Source of made-up selections, some of whose words are hostile."""

import threading
import time

import numpy as np
from selector_proto.v1 import inspection_pb2 as pb
from selector_proto.v1 import selector_pb2

from selector_server.errors import NotPossible

# What other people may write into captions, ids and tags.
HOSTILE = (
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    '"><svg onload=window.hacked=1>',
    "javascript:window.hacked=1",
    "left \u202egnp.exe right",
    "a\x00b\x07c\x1b[31md\r\ne",
    "__proto__",
    "{{constructor.constructor('window.hacked=1')()}}",
    "https://evil.example/x.png",
    "x" * 1_000_000,
    "e" + "\u0301" * 500,
    "مرحبا بالعالم",
)
CAPTIONS = (
    "a red bicycle leaning against a brick wall",
    "two dogs on a beach at sunset",
    "IMG_2041.jpg",
    "a bowl of ramen with a soft-boiled egg, seen from above",
    "portrait of an old fisherman",
    "black and white photo of a bridge in fog",
    "click here to see more",
    "a child's drawing of a house",
)
BATCH, PICKS, TILES = 640, 128, 8


class MadeUpSource:
    """`advance` makes one more super-batch; with `content` they have pictures, captions, ids and tags."""

    def __init__(self, *, content=True, hostile=True, super_batches=40, run="clip-b16-laion") -> None:
        self.content, self.hostile, self.run = content, hostile, run
        self.verdicts = [
            pb.Verdict(
                level=pb.VERDICT_LEVEL_BAD,
                finding="The newest weights have been refused since step 400: logit_scale is not a number.",
                advice="Look at the trainer's loss; the sidecar goes on with version 39.",
            ),
            pb.Verdict(
                level=pb.VERDICT_LEVEL_ODD,
                finding="A fifth of the picks have a near-duplicate beside them.",
                advice="Shuffle the stream more, or set max_similarity.",
            ),
        ]
        self.asked: list[str] = []
        self.wait = threading.Event()
        self.wait.set()
        self.broken = False
        self._points: list[pb.Point] = []
        for _ in range(super_batches):
            self.advance()

    def advance(self) -> None:
        number = len(self._points) + 1
        noise = np.random.default_rng(number)
        point = pb.Point(
            super_batch=number,
            trainer_step=10 * number,
            at=time.time() - 1,
            picked=1.8 * np.exp(-number / 90) + 0.3 + 0.08 * noise.normal(),
            pool=0.5 * np.exp(-number / 90) + 0.1 + 0.04 * noise.normal(),
            picked_learner_loss=3.1,
            picked_reference_loss=1.2,
            pool_learner_loss=2.6,
            pool_reference_loss=2.0,
            candidates=BATCH,
            picks=PICKS,
            prefiltered=64,
            kept_apart=9,
            excluded=6,
            locality=selector_pb2.Locality(adjacent=0.31, random=0.12, near_duplicates=0.2),
            weights_version=number,
            lag_steps=10,
        )
        self._points.append(point)

    def get_overview(self, request):
        self._enter("overview")
        count = len(self._points)
        response = pb.GetOverviewResponse(
            run=self.run,
            verdicts=self.verdicts,
            totals=pb.Totals(
                selections=count,
                candidates=BATCH * count,
                picked=PICKS * count,
                prefiltered=64 * count,
                kept_apart=9 * count,
                excluded=6 * count,
                fallbacks=3,
            ),
            points=[point for point in self._points if point.super_batch > request.after],
            content=self.content,
            at=time.time(),
            rule={"policy": "joint", "criterion": "learnability", "gain": "1", "chunks": "16", "filter ratio": "0.8"},
        )
        if count:
            response.trainer_step = self._points[-1].trainer_step
            response.weights.CopyFrom(
                selector_pb2.WeightsVersion(version=count, trainer_step=10 * count - 10, age_seconds=4.2, lag_steps=10)
            )
        return response

    def get_super_batch(self, request):
        self._enter("super_batch")
        point = self._point(request.super_batch)
        learner, reference, fates, order = self._losses(point.super_batch)
        return pb.GetSuperBatchResponse(
            point=point,
            fates=fates,
            learner_losses=learner,
            reference_losses=reference,
            scores=learner - reference,
            order=order,
        )

    def list_pictures(self, request):
        self._enter("pictures")
        point = self._point(request.super_batch)
        response = pb.ListPicturesResponse(point=point, content=self.content)
        learner, reference, fates, _ = self._losses(point.super_batch)
        scores = learner - reference
        picked = [index for index in np.argsort(-scores) if fates[index] == pb.FATE_PICKED]
        dropped = [index for index in np.argsort(-scores) if fates[index] == pb.FATE_DROPPED]
        of_fate = {fate: [i for i, one in enumerate(fates) if one == fate] for fate in set(fates)}
        shown = {
            pb.GALLERY_HIGHEST_PICKED: picked[:TILES],
            pb.GALLERY_LOWEST_PICKED: picked[-TILES:],
            pb.GALLERY_HIGHEST_DROPPED: dropped[:TILES],
            pb.GALLERY_RANDOM_DROPPED: dropped[5::40][:TILES],
            pb.GALLERY_KEPT_APART: of_fate[pb.FATE_KEPT_APART][:TILES],
            pb.GALLERY_EXCLUDED: of_fate[pb.FATE_EXCLUDED][:TILES],
            pb.GALLERY_PREFILTERED: of_fate[pb.FATE_PREFILTERED][:TILES],
        }
        for gallery, indices in shown.items():
            if request.galleries and gallery not in request.galleries:
                continue
            candidates = [self._candidate(point.super_batch, int(i), not request.without_pixels) for i in indices]
            response.galleries.add(gallery=gallery, candidates=candidates)
        return response

    def get_sample(self, request):
        self._enter("sample")
        number, index = request.super_batch, request.index
        if request.id:
            if not request.id.isdigit():
                raise NotPossible("id", request.id, "was not seen, or not kept")
            index, number = int(request.id) % BATCH, len(self._points)
        last = self._candidate(self._point(number).super_batch, index, True)
        noise = np.random.default_rng(index)
        response = pb.GetSampleResponse(id=last.id, last=last, seen=12, picked=4)
        for k in range(12):
            response.sightings.add(
                super_batch=k + 1,
                trainer_step=40 * k,
                fate=pb.FATE_PICKED if k % 3 == 0 else pb.FATE_DROPPED,
                learner_loss=4 * np.exp(-k / 8) + 0.2 * noise.random(),
                reference_loss=1.1,
                at=time.time() - 600 + 50 * k,
            )
        return response

    def list_slices(self, request):
        self._enter("slices")
        response = pb.ListSlicesResponse(pick_rate=0.2, content=self.content)
        if not self.content:
            return response
        noise = np.random.default_rng(7)
        names = {"tags": ["cc12m", "laion", "screenshots", "icons"], "words": " ".join(CAPTIONS).split()}
        for kind, plain in names.items():
            words = sorted(set(plain)) + list(HOSTILE if self.hostile else ())
            for place, word in enumerate(words):
                candidates = 40_000 // (place + 1)
                rate = float(np.clip(0.2 + 0.15 * noise.normal(), 0.01, 0.9))
                getattr(response, kind).add(name=word, candidates=candidates, picked=int(candidates * rate))
        response.other_tags.CopyFrom(pb.Slice(name="other", candidates=900, picked=120))
        return response

    def download_super_batches(self, request):
        self._enter("download")
        for data in (b"PAR1", b"x" * 100_000 * (request.last or 1), b"PAR1"):
            yield pb.DownloadSuperBatchesResponse(data=data)

    def _enter(self, call) -> None:
        self.asked.append(call)
        self.wait.wait(30)
        if self.broken:
            raise RuntimeError("on purpose")

    def _point(self, number) -> pb.Point:
        if not self._points:
            raise NotPossible("super_batch", number, "there is none yet")
        if number > len(self._points):
            raise NotPossible("super_batch", number, f"must be one that is kept, 1 to {len(self._points)}")
        return self._points[number - 1]

    def _losses(self, number):
        noise = np.random.default_rng(number)
        reference = noise.gamma(2, 0.8, BATCH).astype(np.float32)
        learner = (reference * 0.6 + noise.gamma(2, 0.7, BATCH)).astype(np.float32)
        fates = np.full(BATCH, pb.FATE_DROPPED)
        fates[:64], fates[64:73], fates[73:79] = pb.FATE_PREFILTERED, pb.FATE_KEPT_APART, pb.FATE_EXCLUDED
        learner[:64] = np.nan
        learner[73:79] = reference[73:79] = np.nan
        chances = np.where(fates == pb.FATE_DROPPED, 1.3 * (learner - reference) + noise.gumbel(size=BATCH), -np.inf)
        best, order = np.argsort(-chances)[:PICKS], np.zeros(BATCH, int)
        fates[best], order[best] = pb.FATE_PICKED, np.arange(1, PICKS + 1)
        return learner, reference, fates.tolist(), order.tolist()

    def _candidate(self, number, index, pixels) -> pb.Candidate:
        learner, reference, fates, order = self._losses(number)
        candidate = pb.Candidate(index=index, fate=fates[index], order=order[index])
        for name, value in (("learner_loss", learner[index]), ("reference_loss", reference[index])):
            if not np.isnan(value):
                setattr(candidate, name, value)
        if not np.isnan(learner[index]):
            candidate.score = learner[index] - reference[index]
        if candidate.fate == pb.FATE_EXCLUDED:
            candidate.reason = selector_pb2.EXCLUSION_REASON_UNREADABLE
        if not self.content:
            return candidate
        words = HOSTILE if self.hostile and index % 2 else CAPTIONS
        candidate.id, candidate.caption, candidate.tag = str(7000 + index), words[index // 2 % len(words)], "laion"
        if candidate.fate in (pb.FATE_EXCLUDED, pb.FATE_PREFILTERED):
            candidate.missing = "there is no picture: only its embeddings came"
        elif pixels:
            candidate.picture.CopyFrom(_picture(index))
        return candidate


def _picture(index) -> pb.Picture:
    noise = np.random.default_rng(index)
    height, width, channels = (64, 64, 3) if index % 3 else (48, 80, 1)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / noise.uniform(4, 20) + y / noise.uniform(4, 20) + noise.uniform(0, 6)) for _ in range(channels)]
    pixels = (127 + 120 * np.stack(waves, -1)).astype(np.uint8)
    return pb.Picture(height=height, width=width, channels=channels, pixels=pixels.tobytes())
