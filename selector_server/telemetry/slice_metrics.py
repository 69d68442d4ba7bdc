"""How often candidates of a tag, or with a word in their caption, are picked, for a bounded number of names."""

from collections import Counter
from collections.abc import Iterable
from threading import Lock

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from selector_proto.contract import printable

# So many names of a kind have series of their own: the most frequent ones of the first super-batches.
NAMES = 50
OTHER = "other"
KINDS = ("tag", "word")
_LABELS = ("kind", "slice")


class SliceMetrics(Collector):
    """Counts of candidates and of picks by kind (one of KINDS) and name. What comes later than the NAMES of a kind
    counts for OTHER."""

    _labelnames = _LABELS

    def __init__(self, registry: CollectorRegistry) -> None:
        # An increase from nothing is none to Prometheus, so that there is something from the start.
        self._names: dict[str, dict[str, list[int]]] = {kind: {OTHER: [0, 0]} for kind in KINDS}
        self._lock = Lock()
        registry.register(self)

    def add(self, kind: str, candidates: Counter[str], picked: Counter[str]) -> None:
        """Counts the names of one super-batch."""
        with self._lock:
            known = self._names[kind]
            for name, count in candidates.most_common():
                shown = printable(name)
                if len(known) <= NAMES:
                    known.setdefault(shown, [0, 0])
                sums = known.get(shown, known[OTHER])
                sums[0] += count
                sums[1] += picked[name]

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            rows = [([kind, name], sums[:]) for kind, names in self._names.items() for name, sums in names.items()]
        words = "by tag and by word of their caption; slice: one of 50 of a kind, or other."
        for place, (of, text) in enumerate({"candidates": "Candidates", "picked": "Picks"}.items()):
            family = CounterMetricFamily(f"selector_slice_{of}", f"{text} {words}", labels=_LABELS)
            for labels, sums in rows:
                family.add_metric(labels, sums[place])
            yield family
