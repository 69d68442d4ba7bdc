"""`selector bench chunks`: how much of Gibbs sampling's learnability joint selection in N chunks reaches."""

import argparse
from pathlib import Path
from time import perf_counter
from typing import Any

from selector_proto.contract import sub_batch_size

from selector_tools import plots
from selector_tools.bench import harness

# The ratios in the middle of the paper's figure 2, read off its plot.
PAPER = {"1": 0.0, "2": 0.69, "4": 0.885, "8": 0.96, "16": 0.995, "32": 1.0}


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "chunks",
        help="learnability of N chunks against brute-force Gibbs sampling",
        description="Trains the demo's models shortly, draws sub-batches from its pool in 1 to 32 chunks and by Gibbs "
        "sampling, and compares their total learnability: 0 is independent selection, 1 is Gibbs sampling.",
    )
    parser.set_defaults(handler=run, extra="demo")
    parser.add_argument("--super-batch", type=int, default=2560, help="candidates (default %(default)s)")
    parser.add_argument("--filter-ratio", type=float, default=0.8, help="share not picked (default %(default)s)")
    parser.add_argument("--gain", type=float, default=100.0, help="multiplier on scores (default %(default)s)")
    parser.add_argument("--learner-steps", type=int, default=100, help="before it is frozen (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=24, help="super-batches and draws (default %(default)s)")
    harness.add_plot(parser)
    harness.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    a = arguments
    picks = sub_batch_size(a.super_batch, a.filter_ratio)
    mistakes = [
        (not 0 < a.filter_ratio < 1, "--filter-ratio", a.filter_ratio, "must lie between 0 and 1"),
        (picks < 32, "--super-batch", a.super_batch, "must leave at least 32 picks"),
        (a.super_batch > 16384, "--super-batch", a.super_batch, "must be at most 16384: Gibbs holds a B x B matrix"),
        (not a.gain > 0, "--gain", a.gain, "must be positive"),
        (a.learner_steps < 1, "--learner-steps", a.learner_steps, "must be at least 1"),
        (a.seeds < 2, "--seeds", a.seeds, "must be at least 2, for standard errors"),
    ]

    def measure(_: Path) -> dict[str, Any]:
        return _measure(a.super_batch, picks, a.gain, a.learner_steps, a.seeds)

    return harness.run(a, mistakes, measure, _table, _plot)


def _measure(super_batch: int, picks: int, gain: float, learner_steps: int, seeds: int) -> dict[str, Any]:
    import numpy as np  # noqa: PLC0415 - heavy, as are the others
    import torch  # noqa: PLC0415

    from selector_tools.bench import chunks_study as study  # noqa: PLC0415
    from selector_tools.bench.measuring import describe  # noqa: PLC0415
    from selector_tools.progress import bar  # noqa: PLC0415

    torch.set_num_threads(1)  # Gibbs sampling is a chain, so more threads would only wait
    started, machine, trials = perf_counter(), describe("cpu"), []
    with bar("train models", study.REFERENCE_STEPS + learner_steps) as advance:
        pool = study.embed_pool(learner_steps, lambda: advance(1))
    with bar("draw", seeds) as advance:
        for seed in range(seeds):
            rows = torch.from_numpy(np.random.default_rng(seed).permutation(pool.size)[:super_batch])
            trials.append(study.trial(study.at(pool, rows), picks, gain, seed))
            advance(1)
    setting = {
        "super_batch": super_batch,
        "picks": picks,
        "gain": gain,
        "seeds": seeds,
        "data": f"the demo's pool, {study.NOISE:.0%} of its captions shuffled",
        "models": f"the demo's, trained at batch {study.BATCH}",
        "learner_steps": learner_steps,
        "reference_steps": study.REFERENCE_STEPS,
        "gibbs": "starts from the draw in 1 chunk; a step re-draws one member; until a sweep brings less than 0.1 %",
    }
    return {**study.summary(trials), "paper": PAPER, "setting": setting, "seconds": perf_counter() - started, **machine}


def _table(result: dict[str, Any]) -> str:
    lines = [f"{'chunks':>6}{'ratio':>8}{'error':>8}{'paper':>8}"]
    for chunks, ratio in result["learnability_ratio"].items():
        lines.append(f"{chunks:>6}{ratio:8.3f}{result['standard_error'][chunks]:8.3f}{PAPER[chunks]:8.3f}")
    gap, errors = result["gap_nats_per_pick"], result["gap_in_standard_errors"]
    lines.append(f"Gibbs over 1 chunk: {gap:.4f} nats per pick, {errors:.0f} standard errors")
    return "\n".join(lines)


def _plot(result: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure  # noqa: PLC0415 - heavy

    chunks = [int(count) for count in PAPER]
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(1.0, color="#8a8780", linewidth=0.8)
    axes.plot(chunks, list(PAPER.values()), "s--", color="#c2570c", label="paper (figure 2, read off)")
    ratios, errors = (list(result[key].values()) for key in ("learnability_ratio", "standard_error"))
    axes.errorbar(chunks, ratios, errors, fmt="o-", capsize=3, color="#0b62c4", label="here, with standard errors")
    axes.set_xscale("log", base=2)
    axes.set_xticks(chunks, [str(count) for count in chunks])
    axes.set(xlabel="chunks", ylabel="learnability\n0: independent, 1: Gibbs")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    plots.save(figure, path)
