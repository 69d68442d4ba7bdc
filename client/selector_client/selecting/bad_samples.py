"""What a selector keeps of bad samples between selections: it says each reason once, warns when they are many, and
remembers the ids of those that were left out."""

import logging
from collections import OrderedDict, deque
from collections.abc import Sequence

from selector_client.selecting.selection import Selection

log = logging.getLogger(__name__)

Id = int | str
# So many ids of samples that were left out are remembered; those that were not met for the longest time go first.
REMEMBERED = 100_000
# The share of bad samples is that of the last so many selections, and is judged once there are ENOUGH of them.
LAST = 100
ENOUGH = 10
REPEATED = "repeated"


class BadSamples:
    """`warn_share` is the share of candidates left out above which there is a warning, once."""

    def __init__(self, warn_share: float) -> None:
        self._warn_share = warn_share
        self._last: deque[tuple[int, int]] = deque(maxlen=LAST)
        self._reasons: OrderedDict[Id, str] = OrderedDict()
        self._said: set[str] = set()
        self._warned = self._warned_of_picks = False

    def saw(self, selection: Selection, candidates: int, ids: Sequence[Id | None]) -> None:
        """Takes note of one selection. `ids` are those of all candidates, or empty."""
        bad, taken = sum(len(one.indices) for one in selection.excluded.values()), selection.unusable
        self._last.append((bad, candidates))
        if len(taken) and not self._warned_of_picks:
            self._warned_of_picks = True
            log.warning(
                "%d of the %d picks of a uniform sub-batch cannot be used: only %d of %d candidates can; "
                "`Selection.unusable` has them, and this is said once",
                len(taken),
                len(selection.indices),
                candidates - bad,
                candidates,
            )
        for reason, one in selection.excluded.items():
            if not len(one.indices):
                continue
            if reason not in self._said:
                self._said.add(reason)
                index = int(one.indices[0])
                name = f"id {ids[index]!r}" if ids and ids[index] is not None else f"candidate {index}"
                fate = "was taken for want of others" if index in taken else "was left out"
                log.warning("%s %s (%s): %s; more of these are only counted", name, fate, reason, one.first)
            if ids and reason != REPEATED:
                self._remember([ids[index] for index in one.indices.tolist()], reason)
        self._judge()

    def known(self, ids: Sequence[Id | None]) -> dict[int, str]:
        """Returns, by index, why samples of these ids were left out before."""
        found = {}
        for index, name in enumerate(ids):
            if name is not None and name in self._reasons:
                found[index] = self._reasons[name]
                self._reasons.move_to_end(name)
        return found

    def _remember(self, ids: Sequence[Id | None], reason: str) -> None:
        for name in ids:
            if name is not None:
                self._reasons[name] = reason
                self._reasons.move_to_end(name)
        while len(self._reasons) > REMEMBERED:
            self._reasons.popitem(last=False)

    def _judge(self) -> None:
        if self._warned or len(self._last) < ENOUGH:
            return
        bad, candidates = (sum(numbers) for numbers in zip(*self._last, strict=True))
        if bad > self._warn_share * candidates:
            self._warned = True
            log.warning(
                "%.1f %% of the last %d candidates were left out, more than warn_excluded_share, %g %%; "
                "`statistics.excluded` counts them by reason",
                100 * bad / candidates,
                candidates,
                100 * self._warn_share,
            )
