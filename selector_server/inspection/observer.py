"""Makes an observation of each selection on the thread that drew, and keeps it on a thread of lower priority."""

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from queue import Empty, Full, Queue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selector_server.engine.candidates.base import Scorable
from selector_server.engine.task import Result, Task
from selector_server.inspection.budget import Budget
from selector_server.inspection.observation import Content, Fate, Losses, Observation
from selector_server.inspection.pictures import galleries, reduced, shown_rows, taken
from selector_server.inspection.recorder import Recorder
from selector_server.inspection.stores import Inspection
from selector_server.sampling import Needs, PairScores, Scores

log = logging.getLogger(__name__)

# So many selections may wait to be kept; one more is not.
WAITING = 4
# What is kept of a caption; a character has at most four bytes.
CAPTION_BYTES = 4 * 512
# So many candidates tell what the reference makes of captions that are not theirs.
SHUFFLED = 256
# Pictures are kept this often, however little the budget leaves: who looks sees something of now.
PICTURE_SECONDS = 4.0
# So often a recorder is asked, where nothing is selected.
LOOK_SECONDS = 5.0
NICE = 10


class SelectionObserver:
    """What a Scorer calls. A `recorder` gets each kept selection, too. With `content`, captions, ids, tags and a few
    pictures are kept, as far as the budget allows and every PICTURE_SECONDS anyway; `dropped` is called for each
    selection that is not kept at all."""

    def __init__(
        self,
        inspection: Inspection,
        content: bool,
        recorder: Recorder | None = None,
        dropped: Callable[[], None] = lambda: None,
        budget: Budget | None = None,
    ) -> None:
        self._inspection, self._content, self._recorder, self._dropped = inspection, content, recorder, dropped
        self._budget = budget or Budget()
        self._next_pictures = -math.inf
        self._queue: Queue[Observation | None] = Queue(WAITING)
        self._thread = threading.Thread(target=self._keep, name="inspection", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Keeps what waits, then ends."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def observe(self, task: Task[Scorable], scores: Scores, result: Result, near: Tensor | None) -> None:
        """Never raises, and never waits."""
        started = time.thread_time()
        self._budget.earn()
        try:
            with torch.inference_mode():
                seen = observation(task, scores, result, near)
            if self._content:
                seen = replace(seen, content=_content(task, seen, self._with_pictures()))
            self._queue.put_nowait(seen)
        except Full:
            self._dropped()
        except Exception:
            log.exception("a selection could not be looked at")
            self._dropped()
        self._budget.spend(time.thread_time() - started)

    def _with_pictures(self) -> bool:
        """Whether pictures of this one are to be kept."""
        now = time.monotonic()
        if not self._budget.left and now < self._next_pictures:
            return False
        self._next_pictures = now + PICTURE_SECONDS
        return True

    def _keep(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)  # Linux: of this thread alone
        going_on = True
        while going_on:
            started = time.thread_time()
            try:
                going_on = self._keep_one()
            except Exception:
                log.exception("a selection could not be kept for inspection")
                self._dropped()
            self._budget.spend(time.thread_time() - started)
        if self._recorder is not None:
            self._recorder.flush()

    def _keep_one(self) -> bool:
        """Keeps the next selection. Returns False if there will be no more."""
        try:
            seen = self._queue.get(timeout=LOOK_SECONDS)
        except Empty:
            if self._recorder is not None:
                self._recorder.look()
            return True
        if seen is None:
            return False
        rich = seen.content is not None and bool(seen.content.pictures)
        kept = self._inspection.add(_reduced(seen), rich or self._budget.left)
        if self._recorder is not None:
            self._recorder.add(kept)
        return True


def observation(task: Task[Scorable], scores: Scores, result: Result, near: Tensor | None) -> Observation:
    """What became of the candidates of a task, without their content. `near` is that of sampling.Picks."""
    size, closed = task.size, result.closed
    fates = np.full(size, Fate.DROPPED, np.uint8)
    if near is not None and len(near) == size:
        fates[near.cpu().numpy()] = Fate.KEPT_APART
    if closed.reasons:
        fates[list(closed.reasons)] = Fate.EXCLUDED
    if closed.prefiltered is not None:
        fates[closed.prefiltered.rows] = Fate.PREFILTERED
    fates[result.indices] = Fate.PICKED
    order = np.zeros(size, np.uint32)
    order[result.indices] = np.arange(1, len(result.indices) + 1)
    open_ = closed.open(size)
    learner = reference = own = shuffled = None
    if task.policy.needs is not Needs.NOTHING:
        own = _numbers(scores.own(), open_)
        if isinstance(scores, PairScores):
            learner, reference = (_numbers(one, open_) for one in scores.own_losses())
            shuffled = _shuffled(scores, open_)
    freshness, annotations = task.freshness, task.annotations
    return Observation(
        at=time.time(),
        step=freshness.trainer_step,
        rule=rule_of(task),
        fates=fates,
        order=order,
        learner=learner,
        reference=reference,
        scores=own,
        reasons=closed.reasons,
        weights=result.weights,
        locality=result.locality,
        shuffled_loss=shuffled,
        trainer=annotations.trainer,
        fallbacks=annotations.fallbacks,
    )


def rule_of(task: Task[Any]) -> dict[str, str]:
    """The rule that a task asks for, by name and value, as people read it."""
    rule, plan = task.rule, task.plan
    shown: dict[str, object] = {"policy": task.policy.name, "candidates": task.size, "picks": plan.picks}
    if task.policy.needs is not Needs.NOTHING:
        shown |= {
            "criterion": rule.criterion.name.lower().replace("_", "-"),
            "pair_criterion": rule.pair_criterion.name.lower().replace("_", "-"),
            "loss": rule.loss.value,
            "gain": f"{plan.gain:g}",
            "chunks": len(plan.sizes),
            "draw": plan.draw.value,
        }
    options = {"prefilter": rule.prefilter, "max_similarity": rule.max_similarity}
    shown |= {name: f"{value:g}" for name, value in options.items() if value is not None}
    shown |= {"explore": plan.explore} if plan.explore else {}
    shown |= {"ranks": plan.ranks} if plan.ranks > 1 else {}
    return {name: str(value) for name, value in shown.items()}


def _numbers(values: Tensor | None, open_: NDArray[np.bool_]) -> Losses | None:
    """The values of open candidates, NaN in place of the others."""
    if values is None:
        return None
    array: Losses = values.float().cpu().numpy()
    return np.where(open_, array, np.float32(np.nan))


def _shuffled(scores: PairScores, open_: NDArray[np.bool_]) -> float | None:
    """The reference's mean own loss of images beside the caption of the next open candidate."""
    rows = np.flatnonzero(open_)[:SHUFFLED]
    if scores.reference is None or len(rows) < 2:
        return None
    some = scores.reference.at(torch.from_numpy(rows).to(scores.device))
    return float(scores.loss.running.own_losses(replace(some, text=some.text.roll(1, 0))).mean())


def _content(task: Task[Any], seen: Observation, pictures: bool) -> Content:
    """What may be shown of the candidates; pictures only where they are asked for."""
    told = task.annotations
    captions = [caption[:CAPTION_BYTES] for caption in told.captions]
    found, reason = taken(task, shown_rows(galleries(seen))) if pictures else ({}, "no pictures of this one were kept")
    no_caption = "" if captions else "captions came as tokens" if task.candidates.encoded else "there are no captions"
    return Content(told.ids, captions, told.tags, found, reason, no_caption)


def _reduced(seen: Observation) -> Observation:
    """The same, its pictures small."""
    if seen.content is None or not seen.content.pictures:
        return seen
    pictures = {index: reduced(picture) for index, picture in seen.content.pictures.items()}
    return replace(seen, content=replace(seen.content, pictures=pictures))
