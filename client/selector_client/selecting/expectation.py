"""What a selection is expected to take. A trainer is told before its first step what does not fit, and a selector
without a timeout of its own waits as long as its sidecar needs."""

import logging
from dataclasses import dataclass, field

from selector_proto.v1 import selector_pb2 as pb

from selector_client.errors import SelectorClientError
from selector_client.selecting.selection import Selection
from selector_client.selecting.settings import Settings

log = logging.getLogger(__name__)

# A selection gets so many seconds while nobody knows what it takes. One that takes longer is called slow.
DEFAULT_SECONDS = 10.0
# It gets so many times what it is expected to take, for a trainer may compute on the same cores, and never more seconds
# than the second number.
PATIENCE, MOST_SECONDS = 4.0, 120.0
# What the sidecar measured when nothing else ran is multiplied by this before it is compared with a timeout.
MARGIN = 1.5
# Asking the sidecar what it is may take this part of a selection's time.
ASK_SHARE = 0.25
# After these failures the sidecar is asked again with the next selection.
_UNANSWERED = ("unavailable", "deadline_exceeded", "untrusted", "proxy", "unauthenticated", "permission_denied")
# So many selections without one known id are no accident.
UNKNOWN_SELECTIONS = 3
# Micro-batches below this waste a processor's time.
SMALL_MICRO_BATCH = 8


@dataclass
class Expectation:
    """What the sidecar says that a selection by these settings takes, and what selections took since."""

    settings: Settings
    info: pb.GetServerInfoResponse | None = None
    _done: bool = False  # whether the sidecar has been asked
    _seen: float = 0.0  # seconds for one candidate, in the selection that was answered last
    _least: float = DEFAULT_SECONDS
    _unknown: int = 0  # selections with ids of which the cache knew none; -1 once it knew one, or nobody needs to count
    _said: set[str] = field(default_factory=set)

    def asks(self, candidates: pb.Selection) -> bool:
        """Whether the sidecar should be asked what it is before it gets these candidates."""
        return not self._done and self._scores(candidates)

    def learn(self, info: pb.GetServerInfoResponse) -> None:
        """Notes what the sidecar is."""
        self.info, self._done = info, True

    def unanswered(self, error: SelectorClientError) -> None:
        """Notes that the sidecar did not say what it is."""
        self._done = error.reason not in _UNANSWERED

    def patience(self, candidates: pb.Selection, size: int) -> float:
        """How many seconds a selection from these `size` candidates may take if nobody has set a timeout."""
        needed = self.seconds(size) if self._scores(candidates) else 0.0
        return min(MOST_SECONDS, max(self._least, PATIENCE * needed))

    def seconds(self, size: int) -> float:
        """How many seconds a selection from `size` candidates is expected to take, or 0 if that is not known."""
        return size * (self._seen or sum(self._told().values()) * self._ranks())

    def say(self, candidates: pb.Selection, size: int, allowed: float, argument: str) -> None:
        """Logs, once, that a selection from these `size` candidates is slow, or that it takes longer than the `allowed`
        seconds, which `argument` sets."""
        if not self._scores(candidates):
            return
        needed = self.seconds(size)
        late = needed * (1.0 if self._seen else MARGIN) > allowed
        kind = f"late {argument}" if late else "slow" if needed > DEFAULT_SECONDS else ""
        if not kind or kind in self._said:
            return
        self._said |= {kind, "slow"}
        begin = f"a selection of {size:,} candidates takes the sidecar about {_short(needed)} s{self._parts()}"
        if late:
            fits = max(1, int(allowed / needed / (1.0 if self._seen else MARGIN) * size))
            most = _number(self.info, "stall_seconds")
            stall = " and the sidecar's --stall-seconds above that" if 0 < most < 2 * needed else ""
            ways = [f"set {argument}={_short(2 * needed)}{stall}", f"choose B <= {fits:,}", *self._advice()]
            do = ", or ".join(ways)
            log.warning("%s, but it has %s s, so that batches will be uniform: %s", begin, _short(allowed), do)
        else:
            do = ", or ".join(["fewer candidates", *self._advice()])
            log.warning("%s, and it is given up to %s s. It is faster with %s", begin, _short(allowed), do)

    def took(self, candidates: pb.Selection, size: int, seconds: float, selection: Selection) -> None:
        """Notes that a selection took so many seconds, in which it may have waited for weights or other ranks."""
        if self._scores(candidates):
            waited = sum(selection.stage_seconds.get(name, 0.0) for name in ("wait", "group"))
            self._seen, self._least = max(0.0, seconds - waited) / size, DEFAULT_SECONDS
            self._count_unknown(candidates, selection.cached_references)

    def missed(self, allowed: float) -> None:
        """Notes that a selection was not answered in time. Until one is, the next gets twice as long."""
        if not self._seen:
            self._least = min(MOST_SECONDS, max(self._least, 2 * allowed))

    def _count_unknown(self, candidates: pb.Selection, cached: int) -> None:
        if self.info is None or not self.info.reference.cached_samples or self._unknown < 0:
            return
        if not self.settings.needs("reference") or not candidates.HasField("sample_ids"):
            return
        self._unknown = -1 if cached else self._unknown + 1
        if self._unknown == UNKNOWN_SELECTIONS:
            self._unknown = -1
            log.warning(
                "none of the ids of the first %d selections is in the sidecar's reference cache, which holds samples "
                "such as %r: ids must be those that it was filled with (of WebDataset's shards SHARD/KEY, or KEY alone "
                "after selector cache fill --ids key)",
                UNKNOWN_SELECTIONS,
                self.info.reference.cached_id,
            )

    def _scores(self, candidates: pb.Selection) -> bool:
        """Whether the sidecar's models look at these candidates."""
        raw = candidates.HasField("samples") or candidates.HasField("sample_ids")
        return raw and self.settings.policy != "uniform"

    def _told(self) -> dict[str, float]:
        """The seconds that each model that is needed takes for one candidate, as far as the sidecar says it."""
        if self.info is None:
            return {}
        models = {name: getattr(self.info, name) for name in ("learner", "reference") if self.settings.needs(name)}
        told = {name: model.encode_seconds_per_sample for name, model in models.items()}
        return {name: seconds for name, seconds in told.items() if 0 < seconds < MOST_SECONDS}

    def _ranks(self) -> int:
        """How many ranks' candidates the same sidecar encodes."""
        return 1 if self.info is None or self.info.config.get("peers") else self.settings.world_size

    def _parts(self) -> str:
        told = [f"{name} {1000 * seconds:.3g} ms" for name, seconds in self._told().items()]
        return f" ({' and '.join(told)} for each, on {self.info.device})" if told and self.info is not None else ""

    def _advice(self) -> list[str]:
        """What makes selections faster, as far as it is not so already."""
        if self.info is None:
            return []
        advice = []
        if side := self.info.learner.image.height or self.info.reference.image.height:
            advice.append(f"smaller images than {side} px (selector export --image-size)")
        if self.settings.needs("reference"):
            how = (
                "ids, and selector cache fill"
                if self.info.config.get("cache")
                else "--cache, ids, and selector cache fill"
            )
            advice.append(f"a reference cache ({how})")
        if self.settings.needs("learner") and self.settings.needs("reference"):
            advice.append("criterion='easy-reference', which needs no learner")
        if 0 < (micro_batch := _number(self.info, "micro_batch")) < SMALL_MICRO_BATCH:
            advice.append(f"a larger --micro-batch than {micro_batch:.0f}")
        return [*advice, "--device cuda"] if self.info.device == "cpu" else advice


def _number(info: pb.GetServerInfoResponse | None, setting: str) -> float:
    """Returns a setting of the sidecar that is a number, or 0 if it does not say it."""
    try:
        return 0.0 if info is None else float(info.config.get(setting, 0))
    except ValueError:
        return 0.0


def _short(seconds: float) -> str:
    """Returns a time as people write it: two digits count."""
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"
