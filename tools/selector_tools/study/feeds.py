"""What feeds a trainer: batches drawn at random, or sub-batches that a sidecar picks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from selector_client import SelectingLoader, Selection, Selector, WeightPublisher
from selector_client.selecting.settings import Settings

from selector_tools.datasets.pairs import Pairs
from selector_tools.processes import sidecar
from selector_tools.study.costs import Counts
from selector_tools.study.rules import PREFILTER, Rule
from selector_tools.study.streams import Stream, draws

# The weight of scores in a draw, unless a rule says otherwise; at 1, the probabilities are in the proportion of
# exp(-loss).
GAIN = 1.0
# A selection that is not answered becomes a uniform batch, which is for jobs that must go on; a study may wait.
DEADLINE_SECONDS = 60.0

OnSelection = Callable[[int, NDArray[np.int64], Selection], None]


@dataclass(frozen=True)
class Source:
    """What is read: pairs in the order of a stream, in batches of `batch`, or in super-batches of `super_batch`. All
    feeds of one seed are shown the same ones. `captions` and `tags`, of each pair, are for the sidecar alone: captions
    in place of tokens, so that people can read them there."""

    pairs: Pairs
    stream: Stream
    batch: int
    super_batch: int
    seed: int
    captions: NDArray[np.object_] | None = None
    tags: NDArray[np.object_] | None = None

    def super_batches(self, size: int | None = None) -> Iterator[NDArray[np.int64]]:
        """Yields the entries of one super-batch after the other."""
        return self.stream.super_batches(size or self.super_batch, self.seed)

    def at(self, entries: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        """Returns these entries as a super-batch or a batch; the entries are their ids."""
        return self.pairs.at(self.stream.rows[entries]) | {"ids": entries}

    def shown(self, super_batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what the sidecar is shown of a super-batch."""
        rows = self.stream.rows[super_batch["ids"]]
        texts = {} if self.captions is None else {"texts": self.captions[rows]}
        return {**super_batch, **texts, **({} if self.tags is None else {"tags": self.tags[rows]})}


class AtRandom:
    """Batches without a sidecar. `own`, float32 [n], is what the reference thinks of each entry (higher is better), for
    the rules that ask it before training; `curated` are the pairs that the rule of that name adds."""

    publisher: WeightPublisher | None = None
    wait_seconds = 0.0
    fallbacks = versions = 0
    pid: int | None = None

    def __init__(
        self, rule: Rule, source: Source, own: NDArray[np.float32] | None = None, curated: Pairs | None = None
    ) -> None:
        self._rule, self._source, self._own, self._curated = rule, source, own, curated
        self.counts, self.pairs_drawn = Counts(), 0.0

    def state(self) -> dict[str, Any]:
        """Returns where it is."""
        return {"trained": self.counts.trained}

    def resume(self, state: dict[str, Any]) -> None:
        """Goes on from there: what was drawn before is drawn again and left out."""
        self.counts = Counts(trained=state["trained"])

    def __iter__(self) -> Iterator[Any]:
        for batch in islice(self._batches(), self.counts.trained // self._source.batch, None):
            self.counts.trained += len(batch["ids"])
            yield batch

    def _batches(self) -> Iterator[Any]:
        s, rng = self._source, np.random.default_rng([self._source.seed, 3])
        match self._rule.source:
            case "stream":
                yield from map(s.at, s.super_batches(s.batch))
            case "buffer":
                for entries in s.super_batches():
                    yield s.at(rng.choice(entries, s.batch, replace=False))
            case "shuffled":
                yield from map(s.at, draws(len(s.stream), s.batch, s.seed))
            case "filtered":
                assert self._own is not None
                kept = np.argsort(-self._own, kind="stable")[: max(s.batch, round(self._rule.share * len(s.stream)))]
                yield from (s.at(kept[rows]) for rows in draws(len(kept), s.batch, s.seed))
            case "prefiltered":
                assert self._own is not None
                for entries in s.super_batches():
                    kept = np.argsort(-self._own[entries], kind="stable")[: int(PREFILTER * s.batch)]
                    yield s.at(entries[rng.choice(kept, s.batch, replace=False)])
            case "curated":
                assert self._curated is not None
                both = Pairs(
                    np.concatenate([s.pairs.pixels, self._curated.pixels]),
                    np.concatenate([s.pairs.tokens, self._curated.tokens]),
                )
                yield from map(both.at, draws(len(both.pixels), s.batch, s.seed))


@dataclass(frozen=True)
class Service:
    """What a sidecar is started with: bundles, the reference's cache, a Redis server, and the file of its log; on what
    it computes; and more flags."""

    learner: Path
    reference: Path
    cache: Path
    redis: str
    log: Path
    device: str = "cpu"
    threads: int = 1
    flags: tuple[str, ...] = ()


class Selected:
    """Sub-batches that a sidecar of this training's own picks; it scores with the weights that the trainer publishes.
    `on_selection` is told of each: its step, the super-batch's entries, and the selection."""

    def __init__(
        self,
        rule: Rule,
        source: Source,
        service: Service,
        stack: ExitStack,
        *,
        run: str,
        steps: int,
        publish_every: int,
        on_selection: OnSelection = lambda *_: None,
    ) -> None:
        self._source, self._on_selection = source, on_selection
        self.counts, self.pairs_drawn = Counts(), 0.0
        self._before = {"wait_seconds": 0.0, "versions": 0, "fallbacks": 0}  # a stop, if there was one
        self._last: tuple[int, int, int] | None = None
        settings = {"gain": GAIN} | rule.settings
        self._running = stack.enter_context(_serve(service, run))
        self._selector = stack.enter_context(
            Selector(
                self._running.address,
                run=run,
                seed=source.seed,
                sub_batch_size=source.batch,
                # Each selection is scored with the newest weights that were published before it was asked for, however
                # long they take, so that a study's figures do not depend on the machine's speed.
                max_lag_steps=publish_every,
                when_stale="wait",
                **settings,
            )
        )
        asked = Settings(**settings)
        self._asks = {model: asked.needs(model) for model in ("learner", "reference")}
        self._models_of_pairs = self._pair_models(settings)
        # Version 0, the bundle's weights, and the first one published must be the same, for either may score first.
        self.publisher: WeightPublisher | None = stack.enter_context(
            WeightPublisher(service.redis, run, every=publish_every, dtype="fp32")
        )
        entries = source.super_batches()
        super_batches = (source.at(next(entries)) for _ in range(steps))
        # A small learner changes much with every step, so scores of one step ago are better than those of two.
        self._loader = SelectingLoader(
            super_batches,
            self._selector,
            view=source.shown,
            take=self._take,
            prefetch=1,
            deadline=DEADLINE_SECONDS,
        )

    def state(self) -> dict[str, Any]:
        """Returns where it is, with the picks that were made ahead."""
        told = {name: getattr(self, name) for name in self._before}
        return told | {
            "loader": self._loader.state_dict(),
            "counts": asdict(self.counts),
            "pairs_drawn": self.pairs_drawn,
            "last": self._last,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Goes on from there, with another sidecar."""
        self._loader.load_state_dict(state["loader"])
        self.counts, self.pairs_drawn = Counts(**state["counts"]), state["pairs_drawn"]
        self._last = state["last"] and tuple(state["last"])
        self._before = {name: state[name] for name in self._before}

    def __iter__(self) -> Iterator[Any]:
        for step, batch in enumerate(self._loader, start=self._loader.progress.steps):
            selection, shown = self._loader.last, batch.pop("candidates")
            if selection is not None:
                self._count(selection, len(shown))
                self._on_selection(step, shown, selection)
            yield batch

    @property
    def address(self) -> str:
        """The sidecar's."""
        address: str = self._running.address
        return address

    @property
    def pid(self) -> int | None:
        """The sidecar's process."""
        pid: int = self._running.pid
        return pid

    @property
    def wait_seconds(self) -> float:
        """How long the trainer waited for picks, by the wall clock."""
        return self._before["wait_seconds"] + self._loader.wait_seconds

    @property
    def versions(self) -> int:
        """How many weights versions scored."""
        return int(self._before["versions"]) + len(self._selector.statistics.weights_versions)

    @property
    def fallbacks(self) -> int:
        """How many batches were uniform because no selection came."""
        return int(self._before["fallbacks"]) + self._selector.statistics.fallbacks.total()

    def _count(self, selection: Selection, candidates: int) -> None:
        looked_at, cached = candidates - selection.not_examined, selection.cached_references
        left_out = selection.prefiltered.left_out if selection.prefiltered else 0
        if not selection.stage_seconds and self._last is not None:
            # A checkpoint kept these picks without what they cost, which is the same at every step.
            looked_at, cached, left_out = self._last
        self._last = (looked_at, cached, left_out)
        counts, picks = self.counts, len(selection.indices)
        counts.trained += picks
        counts.shown += candidates
        counts.decoded += looked_at
        if self._asks["learner"]:
            counts.scored += looked_at
        if self._asks["reference"]:
            counts.embedded += candidates - cached
        self.pairs_drawn += self._models_of_pairs * picks * (candidates - left_out)

    def _take(self, super_batch: Any, indices: NDArray[np.int64]) -> Any:
        picked = {key: values[indices] for key, values in super_batch.items()}
        return picked | {"candidates": super_batch["ids"]}

    @staticmethod
    def _pair_models(settings: dict[str, Any]) -> int:
        """Returns of how many models the pairs' logits are computed; keeping picks apart takes products, too."""
        criterion = settings.get("pair_criterion", settings.get("criterion", "learnability"))
        joint = {"learnability": 2}.get(criterion, 1) if settings["policy"] == "joint" else 0
        return joint + ("max_similarity" in settings)


def _serve(service: Service, run: str) -> Any:
    flags = {
        "learner": service.learner,
        "reference": service.reference,
        "redis": service.redis,
        "run": run,
        "device": service.device,
        "threads": service.threads,
        "cache": service.cache,
        "metrics-listen": "",
    }
    parts = (part for name, value in flags.items() for part in (f"--{name}", str(value)))
    return sidecar(service.log, *parts, *service.flags)
