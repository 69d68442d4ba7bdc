"""Asks a selector for the picks of one super-batch after another, as a loader needs them."""

import math
from collections import deque
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from selector_client.selecting.selection import Selection
from selector_client.selecting.selector_base import SelectorBase
from selector_client.selecting.settings import TooFew

# A selection may take so many steps for each that it may be ahead, and never less than a second is allowed: a selection
# that is later than that has cost the trainer more than it brings.
DEADLINE_STEPS = 5.0
MIN_DEADLINE_SECONDS = 1.0
# A step's time is the median of the last OBSERVED_STEPS, once there are ENOUGH_STEPS of them.
OBSERVED_STEPS = 20
ENOUGH_STEPS = 10


class Picker:
    """A selector, and how a loader uses it. Any object with `select` will do; only those with `resume`, as `Selector`
    is, have seeds that a state can restore, a timeout, and ranks that select as one.

    `view` gives the arguments of `select`. `deadline` seconds bound each selection; with None they follow the steps
    that `took` observes. `keep_short` also keeps super-batches of which fewer can be picked than of others before."""

    def __init__(
        self,
        selector: Any,
        view: Callable[[Any], Mapping[str, Any]],
        *,
        prefetch: int,
        deadline: float | None,
        keep_short: bool,
    ) -> None:
        self._selector, self._view = selector, view
        self._prefetch, self._deadline, self._keep_short = prefetch, deadline, keep_short
        self._resumable: SelectorBase | None = selector if hasattr(selector, "resume") else None
        self._step_seconds: deque[float] = deque(maxlen=OBSERVED_STEPS)
        self.picks: int | None = None  # the most that were picked of a super-batch so far

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

    def resume(self, count: int, seed: int | None) -> None:
        """Makes the next selection the one that follows `count` others with that seed; None keeps the selector's."""
        if self._resumable is not None:
            self._resumable.resume(count, seed)

    def took(self, seconds: float) -> None:
        """Observes how long the trainer took for a step."""
        self._step_seconds.append(seconds)

    def pick(self, super_batch: Any, step: int) -> tuple[Selection, int] | None:
        """Returns the selection and the number of candidates, or None if the super-batch is too short and is to be
        dropped. Raises what view and selector raise; the first super-batch that is too short raises TooFew."""
        arguments = dict(self._view(super_batch))
        if (timeout := self._timeout()) is not None:
            arguments["timeout"] = timeout
        try:
            selection: Selection = self._selector.select(**arguments, step=step)
        except TooFew:
            if self.picks is None:
                raise
            return None
        if len(selection.indices) < (self.picks or 0) and not self._keep_short:
            return None
        self.picks = max(self.picks or 0, len(selection.indices))
        return selection, len(arguments.get("images", ()))

    def _timeout(self) -> float | None:
        """Returns the seconds that the next selection may take; None leaves them to the selector, as for ranks that
        select as one."""
        if self._deadline is not None or self.joint or len(self._step_seconds) < ENOUGH_STEPS:
            return self._deadline
        most = math.inf if self._resumable is None else self._resumable.timeout
        observed = DEADLINE_STEPS * (1 + self._prefetch) * median(self._step_seconds)
        return None if observed >= most else min(most, max(MIN_DEADLINE_SECONDS, observed))
