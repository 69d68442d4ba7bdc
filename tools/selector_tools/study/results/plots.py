"""The page's plots: accuracy against steps, and how many times less the arms need."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from selector_tools.plots import save
from selector_tools.study.cells import Cell
from selector_tools.study.comparing import RIVALS, Against, best_baseline, sooner
from selector_tools.study.results.naming import label
from selector_tools.study.results.questions import Found
from selector_tools.study.summary import Summary

# White paper is readable in a dark page, too. Arms differ by colour for colour-blind readers, baselines by dashes.
ARMS = {
    "easy_reference": "#11805f",
    "independent": "#0b62c4",
    "jest": "#c2570c",
    "mixed": "#8a3fb0",
    "mixed_prefilter": "#d0357f",
}
GREY = "#6f6c66"
BASELINES: dict[str, Any] = {
    "uniform": ":",
    "buffer": (0, (5, 1, 1, 1, 1, 1)),
    "shuffled": "-",
    "filtered": "--",
    "curated": "-.",
}
BASELINES |= {"prefiltered": (0, (8, 2))}
ALWAYS = ("uniform", "shuffled")  # drawn beside the best baselines
COSTS = {"steps": "#0b62c4", "flops": "#c2570c", "cpu": "#8a8780"}
NAMES = {"steps": "steps", "flops": "FLOPs", "cpu": "CPU seconds"}
NOISES = (0.0, 0.5)


def _natural(found: Found, rule: str, noise: float) -> Summary | None:
    usual = Cell("icons", rule, noise=noise)
    same = ("pool", "rule", "stream", "noise", "reference", "steps", "batch", "filter_ratio", "publish_every")
    return next(
        (one for cell, one in found.items() if all(getattr(cell, name) == getattr(usual, name) for name in same)), None
    )


def draw(found: Found, folder: Path) -> list[Path]:
    """Writes the plots into `folder`, and returns their files; the same runs give the same bytes."""
    files = {folder / "results-curves.svg": curves(found), folder / "results-speed.svg": bars(found)}
    for file, figure in files.items():
        save(figure, file)
    return list(files)


def curves(found: Found) -> Figure:
    """Draws the validation's mean accuracy on the natural stream, captions all right on the left, half wrong on the
    right."""
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    for axes, noise in zip(figure.subplots(1, len(NOISES), sharey=True), NOISES, strict=True):
        best = [best_baseline(Cell("icons", "mixed", noise=noise), found, rivals) for rivals in RIVALS]
        shown = {*ALWAYS, *(one.cell.rule for one in best if one is not None)}
        grey = [rule for rule in BASELINES if rule in shown]
        for rule in (*grey, *ARMS):
            if (one := _natural(found, rule, noise)) is not None:
                style = {"color": ARMS[rule]} if rule in ARMS else {"color": GREY, "linestyle": BASELINES[rule]}
                steps, values = zip(*one.curve, strict=True)
                axes.plot(steps, [100 * value for value in values], linewidth=1.6, label=label(one.cell), **style)
                last = one
        if axes.lines:
            level = 100 * last.reference("validation")
            axes.axhline(level, color="#1d1c1a", linestyle=(0, (6, 4)), linewidth=0.9)
            axes.annotate("the reference", (0.01, level), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
        axes.set_title(f"{100 * noise:g} % wrong captions", fontsize=10)
        axes.set_xlabel("steps")
        axes.set_ylim(0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("zero-shot top-1 of the validation, %")
    _legend(figure, 5)
    return figure


def bars(found: Found) -> Figure:
    """Draws how many times less each arm needs to be as good as its rival is at its end: the best baseline above, the
    best uniform one below."""
    figure = Figure(figsize=(9.6, 7.0), layout="constrained")
    grid = figure.subplots(len(RIVALS), len(NOISES), sharey=True, sharex=True)
    for (row, rivals), (column, noise) in product(enumerate(RIVALS), enumerate(NOISES)):
        axes = grid[row][column]
        some = [one for rule in ARMS if (one := _natural(found, rule, noise)) is not None]
        _bars(axes, some, [sooner(one, found, rivals=rivals) for one in some])
        best = best_baseline(Cell("icons", "mixed", noise=noise), found, rivals)
        against = "no baseline" if best is None else label(best.cell)
        axes.set_title(f"{100 * noise:g} % wrong captions, against “{against}”", fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("times less to be as good")
    if grid[0][0].patches:
        grid[0][0].invert_yaxis()
    _legend(figure, len(COSTS))
    return figure


def _bars(axes: Any, some: Sequence[Summary], against: Sequence[Against | None]) -> None:
    for number, (what, colour) in enumerate(COSTS.items()):
        places = [row + 0.26 * (number - 1) for row in range(len(some))]
        ratios = [one.ratios.get(what, 0.0) if one is not None else 0.0 for one in against]
        drawn = axes.barh(places, ratios, height=0.24, color=colour, label=NAMES[what])
        axes.bar_label(drawn, [f"{ratio:.1f}" if ratio else "never" for ratio in ratios], padding=3, fontsize=7)
    axes.set_yticks(range(len(some)), [label(one.cell) for one in some])
    axes.axvline(1.0, color="#1d1c1a", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, columns: int) -> None:
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        found: tuple[Sequence[Any], Sequence[str]] = axes.get_legend_handles_labels()
        handles |= dict(zip(found[1], found[0], strict=True))
    if handles:
        figure.legend(handles.values(), handles.keys(), frameon=False, loc="outside lower center", ncols=columns)
