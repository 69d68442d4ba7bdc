"""The demo's report is a table for the terminal, and a folder with a page, its plot and the raw figures.

Nothing is measured here. The headline compares the best arm that selects with the first arm, uniform.
"""

import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from operator import methodcaller
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from selector_tools.demo import page
from selector_tools.demo.results import Arm, Report


@dataclass(frozen=True)
class Theme:
    """Colours of the plot; those of the arms that select differ for colour-blind readers, too."""

    text: str
    faint: str
    paper: str
    random: str
    selecting: tuple[str, ...]


LIGHT = Theme("#1d1c1a", "#8a8780", "#ffffff", "#6f6c66", ("#11805f", "#0b62c4", "#c2570c", "#8a3fb0"))
DARK = Theme("#e9e7e3", "#8f8c85", "#1d1f22", "#a8a59e", ("#4fc79d", "#6cb2ff", "#f2995a", "#cf94ee"))
WIDE, NARROW = (10.0, 5.6), (4.2, 4.4)  # inches, for a desktop's window and for a telephone's


class Column(NamedTuple):
    """One measure of all arms."""

    header: str  # for the terminal, hence narrow and of up to three lines
    name: str
    cells: list[str]  # one for each arm


def write(report: Report, folder: Path) -> Path:
    """Writes index.html, accuracy.png and results.json into `folder`, which is made if needed, and returns the page.

    The page carries its plot and the inspector in itself, so that this one file can be passed on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plot(report, WIDE, LIGHT).savefig(folder / "accuracy.png", dpi=100)
    # A caller's numbers may be numpy's, some of which json does not know.
    document = json.dumps(figures(report), indent=2, ensure_ascii=False, default=methodcaller("item"))
    (folder / "results.json").write_text(document + "\n", "utf-8")
    plots = page.Plots(*(_svg(plot(report, size, theme)) for size in (WIDE, NARROW) for theme in (LIGHT, DARK)))
    rows = [(column.name, column.cells) for column in columns(report)]
    index = folder / "index.html"
    index.write_text(page.render(report, headline(report), rows, reference(report), plots), "utf-8")
    return index


def table(report: Report) -> Table:
    """Returns the arms one below the other, for a terminal of 100 columns or more."""
    names, *measures = columns(report)
    result = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    result.add_column(
        names.header, overflow="fold", min_width=14
    )  # in a narrow terminal names give way, figures do not
    for measure in measures:
        result.add_column(measure.header, justify="right", no_wrap=True)
    for cells in zip(names.cells, *(measure.cells for measure in measures), strict=True):
        result.add_row(*map(Text, cells))  # brackets in a name are no markup
    result.caption = Text(reference(report))
    result.caption_justify = "left"
    return result


def columns(report: Report) -> list[Column]:
    """Returns what terminal and page tell of every arm, its name first."""
    arms = report.arms

    def column(header: str, name: str, cell: Callable[[Arm], str]) -> Column:
        return Column(header, name, [cell(arm) for arm in arms])

    def reached(arm: Arm) -> str:
        found = _reached(arm, arms[0])
        if found is None:
            return "never"
        return f"{found[0]:,.0f}" if arm is arms[0] else f"{found[0]:,.0f} ({found[1]:.1f}x)"

    def final(arm: Arm) -> str:
        spread = f" ± {100 * np.std(arm.finals, ddof=1):.1f}" if len(arm.finals) > 1 else ""
        return page.percent(arm.final, 1).replace(" %", f"{spread} %")

    found = [
        column("arm", "Arm", lambda arm: arm.name),
        column("examples\ntrained", "Examples trained", lambda arm: f"{arm.trained:,}"),
        column("examples\nscored", "Examples scored", lambda arm: f"{arm.scored:,}"),
        column("final\naccuracy", "Final zero-shot accuracy", final),
        column("steps to\nuniform's\nfinal", "Steps to uniform's final accuracy", reached),
        column("waited\nfor\npicks", "Trainer waited for selection", lambda arm: f"{arm.wait_seconds:.1f} s"),
        column("weights\nserved", "Weights versions served", lambda arm: f"{arm.versions:,}"),
        column("concepts\nin a\nbatch", "Different concepts in a batch", lambda arm: f"{arm.concepts:.0f}"),
    ]
    if report.pool_mislabelled:
        found.append(
            column("mis-\nlabelled", "Mislabelled pairs trained on", lambda arm: page.percent(arm.mislabelled))
        )
    if any(arm.fallbacks for arm in arms):
        found.append(column("fall-\nbacks", "Fallbacks to a uniform batch", lambda arm: f"{arm.fallbacks:,}"))
    return found


def headline(report: Report) -> str:
    """Returns one sentence that says how soon the best arm was as good as uniform was at its end, if ever."""
    uniform, best = report.arms[0], report.best
    target = page.percent(uniform.final, 1)
    if uniform.final <= 0:
        return f"Uniform learned nothing in {uniform.steps:,} steps, so there is nothing to compare with."
    if best is None:
        return f"Uniform reached {target} in {uniform.steps:,} steps."
    name, reached, ended = best.name[0].upper() + best.name[1:], _reached(best, uniform), page.percent(best.final, 1)
    if reached is None:
        return f"{name} did not reach uniform's final accuracy of {target}: it ended at {ended}."
    steps, ratio = reached
    saved = f"{ratio:.1f} times fewer than"
    if ratio < 1.05:
        saved = "about as many as" if ratio > 0.95 else "more than"
    return (
        f"{name} reached uniform's final accuracy of {target} in {steps:,.0f} steps, "
        f"{saved} uniform's {ratio * steps:,.0f}, and ended at {ended}."
    )


def reference(report: Report) -> str:
    """Returns one sentence that compares the reference alone with the arms."""
    found = f"The reference alone reaches {page.percent(report.reference_accuracy, 1)}"
    better = [arm.name for arm in report.arms if arm.final > report.reference_accuracy]
    if not better:
        return f"{found}, more than any arm."
    return f"{found}, less than {' and '.join(filter(None, [', '.join(better[:-1]), better[-1]]))}."


def figures(report: Report) -> dict[str, Any]:
    """Returns what results.json holds: the report, and what is derived from it for the table."""
    document = asdict(replace(report, inspected=None))
    del document["inspected"]
    for arm, entry in zip(report.arms, document["arms"], strict=True):
        steps, ratio = _reached(arm, report.arms[0]) or (None, None)
        entry |= {"final": arm.final, "steps_to_uniform_final": steps, "times_fewer_steps": ratio}
    return document


def plot(report: Report, size: tuple[float, float], theme: Theme) -> Figure:
    """Draws accuracy against steps for every arm, with the reference (dashed) and uniform's final accuracy (thin).
    Arms that draw at random are grey, and those after the first are dotted."""
    figure = Figure(figsize=size, layout="constrained", facecolor=theme.paper)
    axes = figure.add_subplot(facecolor=theme.paper, axisbelow=True)
    points = 12 if size is WIDE else 10
    uniform, best = report.arms[0], report.best
    highest = max(report.reference_accuracy, *(value for arm in report.arms for _, value in arm.accuracy), 0.01)
    axes.set(xlim=(0, max(arm.steps for arm in report.arms)), ylim=(0, 1.12 * highest))

    axes.axhline(uniform.final, color=theme.random, linewidth=0.8)
    label = f"reference {page.percent(report.reference_accuracy, 1)}"
    axes.axhline(report.reference_accuracy, color=theme.text, linewidth=1.4, linestyle="--", label=label)
    colors = cycle(theme.selecting)
    drawn = {arm.name: next(colors) if arm.selects else theme.random for arm in report.arms}
    for arm in report.arms:
        color = drawn[arm.name]
        look: dict[str, Any] = (
            {"linewidth": 2.4} if arm.selects or arm is uniform else {"linewidth": 1.8, "linestyle": ":"}
        )
        steps, accuracy = zip(*arm.accuracy, strict=True)
        axes.plot(steps, accuracy, color=color, label=f"{arm.name} {page.percent(arm.final, 1)}", **look)
        axes.plot(steps[-1], accuracy[-1], "o", color=color, clip_on=False)
    if best and (reached := _reached(best, uniform)):
        crossing, color = (reached[0], uniform.final), drawn[best.name]
        axes.plot(*crossing, "o", color=color, markersize=9, markeredgecolor=theme.paper, zorder=3)
        text = f"{best.name} is there\nafter {reached[0]:,.0f} steps"
        offset = (-8, 8)  # to where no line is, since this one is the highest
        look = {"ha": "right", "va": "bottom", "color": color, "fontsize": points}
        axes.annotate(text, crossing, offset, textcoords="offset points", **look)

    axes.set_xlabel("training steps", color=theme.text, fontsize=points)
    axes.set_ylabel("zero-shot top-1 accuracy (%)", color=theme.text, fontsize=points)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}"))
    axes.tick_params(colors=theme.text, labelsize=points, length=0, pad=6)
    axes.grid(axis="y", color=theme.faint, alpha=0.25, linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(theme.faint)
    if size is WIDE:
        _label_ends(axes, 1.6 * points / (72 * size[1]), points)
    else:
        figure.legend(loc="outside upper left", frameon=False, labelcolor="linecolor", fontsize=points)
    return figure


def spread(values: list[float], gap: float) -> list[float]:
    """Returns the values in their order, moved up as far as needed for any two to be `gap` apart."""
    moved, lowest = list(values), -np.inf
    for index in np.argsort(values, kind="stable"):
        moved[index] = max(values[index], lowest)
        lowest = moved[index] + gap
    return moved


def _label_ends(axes: Axes, gap: float, points: int) -> None:
    """Names the lines right of the axes; two names are `gap` apart, a share of the height of the axes."""
    lines = [
        line for line in axes.lines if not str(line.get_label()).startswith("_")
    ]  # an underscore stands for no label
    ends = [float(np.asarray(line.get_ydata(), float)[-1]) for line in lines]
    right = axes.get_yaxis_transform()
    for line, height in zip(lines, spread(ends, gap * axes.get_ylim()[1]), strict=True):
        text = str(line.get_label())
        axes.text(1.02, height, text, transform=right, va="center", color=line.get_color(), fontsize=points)


def _reached(arm: Arm, uniform: Arm) -> tuple[float, float] | None:
    """Returns the steps of `arm` to uniform's final accuracy, and how many times as many uniform itself took."""
    steps, own = arm.steps_to(uniform.final), uniform.steps_to(uniform.final)
    return (steps, own / steps) if steps and own else None  # at 0 steps there was nothing to reach


def _svg(figure: Figure) -> bytes:
    """Returns the figure with its letters as shapes, so that it is the same in every browser, whatever fonts it has."""
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()
