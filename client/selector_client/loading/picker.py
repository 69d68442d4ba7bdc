"""Asks a selector for the picks of one super-batch after another, as a loader needs them."""

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from selector_client.loading.batch_layout import default_view
from selector_client.loading.dataset import IndexView
from selector_client.loading.order import digest_of
from selector_client.selecting.selection import Selection
from selector_client.selecting.selector_base import SelectorBase
from selector_client.selecting.settings import TooFew

log = logging.getLogger(__name__)

# A selection may take so many steps for each that it may be ahead, and never less than a second is allowed: a selection
# that is later than that has cost the trainer more than it brings.
DEADLINE_STEPS = 5.0
MIN_DEADLINE_SECONDS = 1.0
# A step's time is the median of the last OBSERVED_STEPS, once there are ENOUGH_STEPS of them.
OBSERVED_STEPS = 20
ENOUGH_STEPS = 10


@dataclass(frozen=True)
class Shown:
    """What a selector is shown of a super-batch: the `arguments` of its `select`, or of its `select_by_ids`, how many
    candidates these are, and a word that tells them from others."""

    arguments: Mapping[str, Any]
    size: int
    digest: str


class Picker:
    """A selector, and how a loader uses it. Any object with `select` will do; only those with `resume`, as `Selector`
    is, have seeds that a state can restore, a timeout, and ranks that select as one.

    `view` gives the arguments of `select`. `deadline` seconds bound each selection; with None they follow the steps
    that `took` observes. How many are picked of each super-batch follows from `nominal`, the size that super-batches
    have if nothing is missing, or else from `guess`, if the first one has nearly that size, or else from the size of
    the first one. `keep_short` also keeps super-batches that have fewer candidates than that; fewer are picked of
    them."""

    def __init__(
        self,
        selector: Any,
        view: Callable[[Any], Mapping[str, Any]],
        *,
        prefetch: int,
        deadline: float | None,
        keep_short: bool,
        nominal: int | None = None,
        guess: int | None = None,
    ) -> None:
        self._selector, self._view = selector, view
        self._prefetch, self._deadline, self._keep_short = prefetch, deadline, keep_short
        self._resumable: SelectorBase | None = selector if hasattr(selector, "resume") else None
        self._step_seconds: deque[float] = deque(maxlen=OBSERVED_STEPS)
        # A selector of another kind picks as many as it likes.
        self._selects: SelectorBase | None = selector if isinstance(selector, SelectorBase) else None
        # With a prefilter, samples of a dataset are looked at once it is known which of them go on.
        shortlists = self._selects is not None and self._selects.settings.shortlists
        self._by_ids = view if shortlists and isinstance(view, IndexView) else None
        self._warned = nominal is not None
        # How many are picked of a super-batch; of a selector of another kind, the most that it has picked so far.
        self.picks: int | None = None
        self._guess = None if nominal is not None else guess
        if self._selects is not None and (nominal is not None or guess is not None):
            with nullcontext() if nominal is not None else suppress(TooFew):
                self.picks = self._selects.settings.picks(nominal or guess or 0)

    @property
    def joint(self) -> bool:
        """Whether several ranks select as one."""
        return self._resumable is not None and self._resumable.settings.world_size > 1

    @property
    def seed(self) -> int | None:
        """The selector's seed, or None if it has none."""
        return None if self._resumable is None else self._resumable.seed

    @property
    def count(self) -> int:
        """How many selections the selector has begun. With its seed this decides the noise of the next one."""
        return 0 if self._resumable is None else self._resumable.count

    def resume(self, count: int, seed: int | None, picks: int | None) -> None:
        """Makes the next selection the one that follows `count` others with that seed; None keeps the selector's. So
        many are picked of a super-batch, if that is known."""
        if picks is not None:
            self.picks, self._guess = picks, None
        if self._resumable is not None:
            self._resumable.resume(count, seed)

    def took(self, seconds: float) -> None:
        """Observes how long the trainer took for a step."""
        self._step_seconds.append(seconds)

    def look(self, super_batch: Any) -> Shown:
        """Returns what a selector is shown of a super-batch. Raises what the view raises."""
        if self._by_ids is not None:
            ids = self._by_ids.ids(super_batch)
            arguments = {"ids": ids, "view": partial(self._by_ids.rows, super_batch)}
            return Shown(arguments, len(super_batch), digest_of({"ids": ids}))
        arguments = dict(self._view(super_batch))
        if self._selects is None and self._view is default_view:
            arguments.pop("tags", None)  # A selector of another kind may not know them.
        return Shown(arguments, _size(arguments), digest_of(arguments))

    def pick(self, shown: Shown, step: int) -> Selection | None:
        """Returns the selection, or None if there are too few candidates and the super-batch is to be dropped. Raises
        what the selector raises; the very first super-batch that is too short raises TooFew."""
        arguments = dict(shown.arguments)
        if (timeout := self._timeout()) is not None:
            arguments["timeout"] = timeout
        try:
            if (picks := self._fixed(shown.size)) is not None:
                arguments["sub_batch_size"] = picks
            select = self._selector.select if self._by_ids is None else self._selector.select_by_ids
            selection: Selection = select(**arguments, step=step)
        except TooFew:
            if self.picks is None:
                raise
            return None
        if len(selection.indices) < (self.picks or 0) and not self._keep_short:
            return None
        if len(selection.unusable) and not self.joint:
            return None
        if self._selects is None or self.picks is None:
            self.picks = max(self.picks or 0, len(selection.indices))
        return selection

    def _fixed(self, size: int) -> int | None:
        """Returns how many to pick of `size` candidates if it is not what the settings say. Raises TooFew."""
        if self._guess is not None and not self._guess / 2 < size <= self._guess:
            self.picks = None
        self._guess = None
        if self._selects is None or self.picks is None:
            return None
        own = self._selects.settings.picks(size)
        if size < self.picks:
            if self._keep_short:
                return None
            raise TooFew(f"{self.picks} picks of {size} candidates are not possible")
        if own > 1.25 * self.picks and not self._warned:
            self._warned = True
            log.warning(
                "%d of %d candidates are picked, as of the first super-batch, which had fewer; "
                "super_batch_size=%d of the loader would pick %d",
                self.picks,
                size,
                size,
                own,
            )
        return None if own == self.picks else self.picks

    def _timeout(self) -> float | None:
        """Returns the seconds that the next selection may take; None leaves them to the selector, as for ranks that
        select as one."""
        if self._deadline is not None or self.joint or len(self._step_seconds) < ENOUGH_STEPS:
            return self._deadline
        most = math.inf if self._resumable is None else self._resumable.timeout
        observed = DEADLINE_STEPS * (1 + self._prefetch) * median(self._step_seconds)
        return None if observed >= most else min(most, max(MIN_DEADLINE_SECONDS, observed))


def _size(arguments: Mapping[str, Any]) -> int:
    """Returns how many candidates these are, or 0 if that cannot be seen."""
    columns = [arguments[name] for name in ("images", "texts") if name in arguments]
    return next((len(column) for column in columns if hasattr(column, "__len__")), 0)
