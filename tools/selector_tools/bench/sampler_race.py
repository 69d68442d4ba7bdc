"""The sampler races its matrix products alone and the paper's pseudo-code, in turns and on the same candidates."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from selector_server.sampling import Criterion, Draw, Embedded, PairScores, Plan, chunk_sizes
from selector_server.sampling.losses.strips import Side, for_each_tile
from selector_server.sampling.policies import Joint
from selector_server.sampling.threads import use_threads
from selector_tools.bench import baselines
from selector_tools.bench.measuring import describe, in_turns, medians, paired_ratio, seconds_of
from selector_tools.bench.memory import HOW, peak_mib
from selector_tools.bench.neighbours import Neighbours
from selector_tools.bench.synthetic import candidates


@dataclass(frozen=True)
class Race:
    """One setting: `dim` is the embeddings' width, and `seed` makes both candidates and noise. By `pair_criterion`
    pairs count in a further draw, whose candidates by themselves count by learnability, as in all others."""

    super_batch: int
    picks: int
    dim: int
    chunks: int
    gain: float
    seed: int
    device: str
    threads: int
    pair_criterion: str

    def run(self, repeats: int, literal_repeats: int, busy: int, say: Callable[[str], None]) -> dict[str, Any]:
        """Returns medians, memory and whether the picks agree, with everything that a figure depends on; and how much
        slower the sampler is beside so many busy processes."""
        use_threads(self.threads)
        machine = describe(self.device)  # before the race loads the machine
        scores, plan = candidates(self.super_batch, self.dim, self.seed, self.device), self.plan
        ours = theirs = sampled(scores, plan)  # this warms up, too

        def literal() -> None:
            nonlocal theirs
            torch.set_num_threads(self.threads)
            theirs = pseudo_code(scores, plan)
            torch.set_num_threads(1)

        calls: dict[str, Callable[[], object]] = {
            "sampler": partial(sampled, scores, plan),
            "other pairs": partial(sampled, replace(scores, pair_criterion=self._pairs_by), plan),
            "products": partial(products, scores, torch.split(ours, list(plan.sizes))),
            "pseudo-code": literal,
        }
        contenders = {name: partial(self._seconds, call) for name, call in calls.items()}
        with Neighbours(busy) as neighbours:
            if busy:
                contenders["beside"] = partial(neighbours.beside, contenders["sampler"])
            seconds = in_turns(
                contenders,
                repeats,
                fewer={"pseudo-code": literal_repeats},
                on_run=lambda name, turn, took: say(f"{name} {turn + 1}: {took:.3f} s"),
            )
        say("memory")
        middle = medians(seconds)
        return {
            "seconds": middle["sampler"],
            "literal_seconds": middle["pseudo-code"],
            "matmul_seconds": middle["products"],
            "other_pairs_seconds": middle["other pairs"],
            "other_pairs_ratio": paired_ratio(seconds["other pairs"], seconds["sampler"]),
            "speedup": middle["pseudo-code"] / middle["sampler"],
            "over_matmul": middle["sampler"] / middle["products"],
            "busy": busy,
            "slowdown": paired_ratio(seconds["beside"], seconds["sampler"]) if busy else None,
            "peak_mib": peak_mib(partial(_prepare, self, sampled), self.device, self.threads),
            "literal_peak_mib": peak_mib(partial(_prepare, self, pseudo_code), self.device, self.threads),
            "peak_is": HOW,
            "same_picks": bool(torch.equal(ours.sort().values, theirs.sort().values)),
            "runs": seconds,
            "setting": {name: value for name, value in asdict(self).items() if name != "threads"},
            **machine,
            "threads": self.threads,
        }

    @property
    def plan(self) -> Plan:
        return Plan(chunk_sizes(self.picks, self.chunks), self.gain, Draw.SAMPLE, self.seed)

    @property
    def _pairs_by(self) -> Criterion:
        return Criterion[self.pair_criterion.upper().replace("-", "_")]

    def _seconds(self, call: Callable[[], object]) -> float:
        def finished() -> None:
            call()
            torch.get_device_module(self.device).synchronize()

        return seconds_of(finished)


def sampled(scores: PairScores, plan: Plan) -> Tensor:
    return Joint().pick(scores, plan).indices


def pseudo_code(scores: PairScores, plan: Plan) -> Tensor:
    assert scores.learner is not None
    assert scores.reference is not None
    return baselines.pseudo_code(scores.learner, scores.reference, plan)


def products(scores: PairScores, chunks: tuple[Tensor, ...]) -> None:
    """Forms the products of every round, tile by tile as the sampler does, and nothing else. In the last round only
    picks meet picks."""
    for round_, rows in enumerate(chunks):
        for _, model in scores.models:
            picked = model.at(rows)
            sides: Embedded = model if round_ + 1 < len(chunks) else picked
            for_each_tile(
                [Side(sides.text), Side(sides.image)], [picked.image, picked.text], scores.tile_bytes, lambda *_: None
            )


def _prepare(race: Race, pick: Callable[[PairScores, Plan], Tensor]) -> Callable[[], Tensor]:
    """Returns the draw whose memory is measured. A small draw beforehand loads what only the first one loads."""
    use_threads(race.threads)
    pick(candidates(64, race.dim, race.seed, race.device), Plan((8, 8), race.gain, Draw.SAMPLE, race.seed))
    return partial(pick, candidates(race.super_batch, race.dim, race.seed, race.device), race.plan)
