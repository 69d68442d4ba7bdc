"""The sampler, its matrix products alone, and the paper's pseudo-code, on the same candidates in turns."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from selector_server.sampling import Draw, Embedded, PairScores, Plan, chunk_sizes
from selector_server.sampling.policies import Joint
from selector_server.sampling.strips import Side, tiles
from selector_tools.bench import literal
from selector_tools.bench.measuring import describe
from selector_tools.bench.memory import HOW, peak_mib
from selector_tools.bench.synthetic import candidates


@dataclass(frozen=True)
class Race:
    """One setting. `dim` is the embeddings' width, `seed` that of candidates and noise."""

    super_batch: int
    picks: int
    dim: int
    chunks: int
    gain: float
    seed: int
    device: str
    threads: int

    def run(self, repeats: int, literal_repeats: int, say: Callable[[str], None]) -> dict[str, Any]:
        """Medians, memory and whether the picks agree, with everything that a figure depends on."""
        torch.set_num_threads(self.threads)
        machine = describe(self.device)  # the load before we make it ourselves
        scores, plan = candidates(self.super_batch, self.dim, self.seed, self.device), self.plan
        ours = sampled(scores, plan)  # warms up, too
        runs: dict[str, Callable[[], Tensor | None]] = {
            "sampler": partial(sampled, scores, plan),
            "products": partial(products, scores, torch.split(ours, list(plan.sizes))),
            "pseudo-code": partial(pseudo_code, scores, plan),
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        theirs = ours
        for repeat in range(repeats):
            for name, call in runs.items():
                if name != "pseudo-code" or repeat < literal_repeats:
                    picks, elapsed = self._timed(call)
                    seconds[name].append(elapsed)
                    theirs = picks if name == "pseudo-code" and picks is not None else theirs
                    say(f"{name} {repeat + 1}: {elapsed:.3f} s")
        say("memory")
        middle = {name: median(values) for name, values in seconds.items()}
        return {
            "seconds": middle["sampler"],
            "literal_seconds": middle["pseudo-code"],
            "matmul_seconds": middle["products"],
            "speedup": middle["pseudo-code"] / middle["sampler"],
            "over_matmul": middle["sampler"] / middle["products"],
            "peak_mib": peak_mib(partial(_prepare, self, sampled), self.device, self.threads),
            "literal_peak_mib": peak_mib(partial(_prepare, self, pseudo_code), self.device, self.threads),
            "peak_is": HOW,
            "same_picks": bool(torch.equal(ours.sort().values, theirs.sort().values)),
            "runs": seconds,
            "setting": {name: value for name, value in asdict(self).items() if name != "threads"},
            **machine,
        }

    @property
    def plan(self) -> Plan:
        return Plan(chunk_sizes(self.picks, self.chunks), self.gain, Draw.SAMPLE, self.seed)

    def _timed(self, call: Callable[[], Tensor | None]) -> tuple[Tensor | None, float]:
        started = perf_counter()
        result = call()
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return result, perf_counter() - started


def sampled(scores: PairScores, plan: Plan) -> Tensor:
    return Joint().pick(scores, plan).indices


def pseudo_code(scores: PairScores, plan: Plan) -> Tensor:
    assert scores.learner is not None
    assert scores.reference is not None
    return literal.pick(scores.learner, scores.reference, plan)


def products(scores: PairScores, chunks: tuple[Tensor, ...]) -> None:
    """The products of every round, tile by tile as the sampler forms them, and nothing else. In the last round only
    picks meet picks."""
    for round_, rows in enumerate(chunks):
        for _, model in scores.models:
            picked = model.at(rows)
            sides: Embedded = model if round_ + 1 < len(chunks) else picked
            for _ in tiles([Side(sides.text), Side(sides.image)], [picked.image, picked.text], scores.tile_bytes):
                pass


def _prepare(race: Race, pick: Callable[[PairScores, Plan], Tensor]) -> Callable[[], Tensor]:
    """What to measure the memory of; a small draw beforehand loads what the first one loads."""
    pick(candidates(64, race.dim, race.seed, race.device), Plan((8, 8), race.gain, Draw.SAMPLE, race.seed))
    return partial(pick, candidates(race.super_batch, race.dim, race.seed, race.device), race.plan)
