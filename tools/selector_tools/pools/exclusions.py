"""Counts the pairs of a pool that cannot be used, by the sidecar's reasons, so that they do not end a long run."""

from dataclasses import dataclass, field
from typing import Any

from selector_server.errors import Exclusion, SelectorError, SetupError
from selector_tools.pools.pool import Batch

MAX_SHARE = 0.5  # as max_excluded_share of a request


@dataclass
class _Reason:
    """How many pairs have one reason, and the name of the first and what was wrong with it."""

    count: int
    first: str
    why: str


@dataclass
class Exclusions:
    """Of `seen` pairs, those that cannot be used. With `strict` the first of them is a mistake, otherwise a share above
    `max_share` is."""

    strict: bool = False
    max_share: float = MAX_SHARE
    seen: int = 0
    reasons: dict[Exclusion, _Reason] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """The number of pairs that cannot be used."""
        return sum(reason.count for reason in self.reasons.values())

    def begin(self, batch: Batch) -> None:
        """Counts what a pool yielded, and what it met that is no pair. Raises SetupError if this is strict."""
        self.seen += len(batch) + len(batch.bad)
        for name, error in batch.bad:
            self.add(name, error)

    def add(self, name: object, error: SelectorError) -> None:
        """Counts one more; `error` must be that pair's alone. Raises SetupError if this is strict."""
        assert error.exclusion is not None
        why = " ".join(f"{error.value}; {error.limit}".split())
        if self.strict:
            raise SetupError("--pool", f"{name}, {error.exclusion.value}", why)
        reason = self.reasons.setdefault(error.exclusion, _Reason(0, str(name), why))
        reason.count += 1

    def merge(self, part: "Exclusions") -> None:
        """Counts what another has counted."""
        self.seen += part.seen
        for kind, found in part.reasons.items():
            reason = self.reasons.setdefault(kind, _Reason(0, found.first, found.why))
            reason.count += found.count

    @staticmethod
    def from_json(found: dict[str, Any]) -> "Exclusions":
        """Reads what `as_json` gave. Raises ValueError, KeyError or TypeError if it is something else."""
        reasons = {
            Exclusion(name): _Reason(int(each["count"]), str(each["first"]), str(each["why"]))
            for name, each in found["reasons"].items()
        }
        return Exclusions(seen=int(found["seen"]), reasons=reasons)

    def check(self, place: str) -> None:
        """Raises SetupError if too many of the pairs at `place` cannot be used."""
        if not self.reasons or (self.count < self.seen and self.count <= self.max_share * self.seen):
            return
        counts = ", ".join(f"{reason.value} {found.count:,}" for reason, found in self._by_count())
        first = next(iter(self.reasons.values()))
        found = f"{self.count:,} of its {self.seen:,} pairs cannot be used ({counts})"
        limit = f"at most the share {self.max_share:g} may be (--max-excluded-share)"
        raise SetupError("--pool", place, f"{found}; {limit}; the first is {first.first}: {first.why}")

    def lines(self) -> list[str]:
        """Returns a table for people; nothing if all is well."""
        if not self.reasons:
            return []
        rows = [(reason.value, f"{found.count:,}", f"{found.first}: {found.why}") for reason, found in self._by_count()]
        table = [
            f"  {name:<12}{count:>10}  {first}" for name, count, first in [("reason", "pairs", "the first"), *rows]
        ]
        return [f"excluded {self.count:,} of {self.seen:,} pairs ({self.count / self.seen:.2%})", *table]

    def as_json(self) -> dict[str, object]:
        """Returns the same for programs."""
        reasons = {
            reason.value: {"count": found.count, "first": found.first, "why": found.why}
            for reason, found in self._by_count()
        }
        return {"seen": self.seen, "excluded": self.count, "reasons": reasons}

    def _by_count(self) -> list[tuple[Exclusion, _Reason]]:
        return sorted(self.reasons.items(), key=lambda item: -item[1].count)
