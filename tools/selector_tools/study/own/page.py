"""Writes what came of a user's study on one page, with a plot, and as JSON; nothing is computed here."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from selector_tools import plots
from selector_tools.study.own import words
from selector_tools.study.own.comparing import Outcome
from selector_tools.study.own.decision import Compared, Estimate
from selector_tools.study.summary import Summary

COLOURS = ("#8a8780", "#1d1c1a", "#8a3fb0", "#2a9d6f", "#0b62c4", "#c2570c")
SHOWN = ("steps", "flops", "cpu", "wall")


def write(outcome: Outcome, excluded: Sequence[str], more: dict[str, Any]) -> dict[str, Any]:
    """Writes report.md, with lines about what was `excluded`, report.svg, and report.json into the study's folder.
    Returns what the latter holds, with `more` in it, but for the runs."""
    folder, found = outcome.asked.folder, as_json(outcome) | more
    (folder / "report.md").write_text(_page(outcome, excluded), "utf-8")
    (folder / "report.json").write_text(json.dumps(found | {"runs": outcome.runs}, indent=1) + "\n", "utf-8")
    _plot(outcome, folder / "report.svg")
    return found


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Returns what came of it as programs take it."""
    decision = outcome.decision
    compared = {one.arm: one for one in decision.arms}
    arms = {}
    for one in outcome.arms:
        row: dict[str, Any] = {"validation": one.final, "test": one.mean("test"), "found": _found(one)}
        if one.cell in compared:
            against = compared[one.cell]
            row |= {
                "verdict": against.verdict,
                "steps_to_baselines_end": against.steps,
                "speedup": {what: vars(ratio) for what, ratio in against.ratios.items()},
                "test_gain": vars(against.accuracy),
            }
        arms[one.cell.rule] = row
    return {
        "verdict": decision.best.verdict,
        "headline": words.headline(outcome),
        "best": decision.best.arm.rule,
        "best_baseline": decision.baseline.cell.rule,
        "bound": decision.bound,
        "arms": arms,
        "steps": outcome.steps,
        "seeds": outcome.seeds,
        "pairs": outcome.pairs,
        "reference_rank": [one.test.rank for one in outcome.references],
        "chance": outcome.test.chance,
        "seconds": outcome.seconds,
    }


def _found(one: Summary) -> dict[str, float]:
    return {name: float(np.mean([run["found"][name] for run in one.runs])) for name in one.runs[0]["found"]}


def _page(outcome: Outcome, excluded: Sequence[str]) -> str:
    asked, pairs, cell = outcome.asked, outcome.pairs, outcome.decision.baseline.cell
    lines = [
        f"# Does selection help on {asked.pool}?",
        "",
        words.headline(outcome),
        "",
        *_table(outcome),
        "",
        "![Rank of the own partner by step](report.svg)",
        "",
        "## What limits this",
        "",
        *(f"- {caution}" for caution in words.cautions(outcome)),
        "",
        "## How it was measured",
        "",
        f"- Each arm trained the same model for {outcome.steps:,} steps of {cell.batch} pairs, by {outcome.seeds} "
        f"seeds. Super-batches of {cell.super_batch:,} hold runs of 32 neighbours, as the pool stores them.",
        f"- {pairs['train']:,} pairs were trained on. Curves and the choice of the best arms are by "
        f"{pairs['validation']:,} others, the test by {pairs['test']:,} more; a pair's picture decides what it is for.",
        "- The rank is the mean of 1 / the place of the own caption among the different ones, and of the own image "
        f"among as many (guessing: {outcome.test.chance:.3f}). First: how often it is at the top.",
        "- Times sooner: how many times less a rule needs for what both it and the best baseline have in the end, in "
        "the geometric mean over seeds. CPU seconds are those of trainer and sidecar, clock seconds are this "
        "machine's.",
        f"- Errors are standard errors, by the spread over seeds of all rules together. A gain is more than "
        f"{outcome.decision.bound:.1f} times its error, in steps or on the test: for so few seeds and the best of "
        f"{len(outcome.decision.arms)} rules, chance alone would show one in about 1 of 20 studies by each measure.",
        f"- {words.about_reference(outcome)}",
        *(f"- {line}" for line in excluded),
        f"- It took {outcome.seconds / 60:.1f} minutes.",
    ]
    return "\n".join(lines) + "\n"


def _table(outcome: Outcome) -> list[str]:
    compared = {one.arm: one for one in outcome.decision.arms}
    lines = [
        "| | rank | first: image to text | text to image | more than the best baseline, points | times sooner: steps "
        "| FLOPs | CPU | clock |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in outcome.arms:
        found = _found(one)
        cells = [one.cell.how.label, f"{found['rank']:.3f}"]
        cells += [f"{found[name]:.1%}" for name in ("image_to_text", "text_to_image")]
        cells += _against(compared[one.cell]) if one.cell in compared else [""] * (1 + len(SHOWN))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _against(one: Compared) -> list[str]:
    return [
        f"{100 * one.accuracy.value:+.1f} ± {100 * one.accuracy.error:.1f}",
        *(_ratio(one.ratios[what]) for what in SHOWN),
    ]


def _ratio(ratio: Estimate) -> str:
    return f"{ratio.value:.2f} ± {ratio.error:.2f}"


def _plot(outcome: Outcome, path: Path) -> None:
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for one, colour in zip(outcome.arms, COLOURS, strict=True):
        steps = [step for step, _ in one.curve]
        values = np.array([[value for _, value in run["curve"]] for run in one.runs])
        style = "-" if one.cell.how.selects else "--"
        axes.plot(steps, values.mean(axis=0), style, color=colour, label=one.cell.how.label)
        axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.12, linewidth=0)
    axes.set(xlabel="step", ylabel="rank of the own partner (validation)")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    plots.save(figure, path)
