"""Who waits for a request, and until when: asked by whatever works for it, cheaply and from any thread."""

import time
from collections.abc import Sequence

from selector_server.errors import Abandoned, TooLate


class Caller:
    """One client, or the `ranks` that select as one. `stage` is where its request is: receive, preprocess, queue (any
    wait), encode, sample."""

    def __init__(self, seconds: float | None = None, ranks: Sequence["Caller"] = ()) -> None:
        """`seconds` are left until the deadline, None: endless."""
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._ranks = ranks
        self.stage = "receive"
        self.gone = False

    @classmethod
    def joint(cls, ranks: Sequence["Caller"]) -> "Caller":
        """Of the earliest deadline of them all."""
        times = [left for one in ranks if (left := one.remaining()) is not None]
        return cls(min(times, default=None), ranks)

    def remaining(self) -> float | None:
        """Seconds until the deadline, below 0 after it; None without one."""
        return None if self._deadline is None else self._deadline - time.monotonic()

    def enter(self, stage: str) -> None:
        self.stage = stage
        for one in self._ranks:
            one.enter(stage)

    def leave(self) -> None:
        """It went away."""
        self.gone = True

    def check(self, needed: float = 0.0) -> None:
        """Raises Abandoned if it went away, and TooLate if fewer seconds are left than `needed`."""
        if self.gone:
            raise Abandoned("request", "abandoned", f"nobody waits for it any more, at {self.stage}")
        left = self.remaining()
        if left is None or left > needed:
            return
        if left <= 0:
            raise TooLate("deadline", f"{-left:.3f} s ago", f"it passed at {self.stage}")
        raise TooLate("deadline", f"{left:.3f} s away", f"from {self.stage} on, at least {needed:.3f} s are needed")
