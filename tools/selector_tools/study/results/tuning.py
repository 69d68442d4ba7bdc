"""How learning rates were chosen, and whether a shorter run gives the same figures."""

from collections.abc import Mapping
from dataclasses import replace

from selector_tools.study.cells import Cell
from selector_tools.study.comparing import sooner
from selector_tools.study.results.markdown import NOTHING, mark, points, table, times
from selector_tools.study.results.naming import anchor, label, setting
from selector_tools.study.results.questions import Found
from selector_tools.study.summary import Summary

WITHIN = 0.25  # Speed-ups that are repeated are to be as close.


def rates(found: Found) -> str:
    """Returns the accuracies by learning rate, the best one in bold. At an edge, a rate beyond it may be better."""
    groups: dict[Cell, dict[float, Summary]] = {}
    for cell, one in found.items():
        groups.setdefault(replace(cell, learning_rate=0.0), {})[cell.learning_rate] = one
    tried = sorted({cell.learning_rate for cell in found})
    rows = [_rates(cell, by_rate, tried) for cell, by_rate in groups.items()]
    return table(["row", "rule", "setting", "seeds", *(f"{rate:g}" for rate in tried), "best"], rows)


def _rates(cell: Cell, by_rate: Mapping[float, Summary], tried: list[float]) -> list[str]:
    best = max(by_rate, key=lambda rate: by_rate[rate].final)
    edge = len(by_rate) > 1 and best in (min(by_rate), max(by_rate))
    told = [points(by_rate[rate].final) if rate in by_rate else NOTHING for rate in tried]
    told[tried.index(best)] = f"**{told[tried.index(best)]}**"
    seeds = str(len(by_rate[best].runs))
    return [
        mark(f"rate-{anchor(cell)}"),
        label(cell),
        setting(cell),
        seeds,
        *told,
        f"{best:g}, at the edge" if edge else f"{best:g}",
    ]


def repeated(again: Found, found: Found) -> str:
    """Returns the speed-ups of a profile that was run apart, beside those of this page against the same baselines."""
    head = ["row", "rule", "setting", "seeds", "steps", "here", "FLOPs", "here", "CPU s", "here", "all within 25 %"]
    rows = []
    names = set(map(anchor, again))
    found = {cell: one for cell, one in found.items() if anchor(cell) in names}
    for cell, one in again.items():
        other = next((them for theirs, them in found.items() if anchor(theirs) == anchor(cell)), None)
        if not cell.how.selects or other is None:
            continue
        ours, theirs = sooner(one, again), sooner(other, found)
        if ours is None or theirs is None:
            continue
        told: list[str] = []
        close = True
        for what in ("steps", "flops", "cpu"):
            new, old = ours.ratios.get(what), theirs.ratios.get(what)
            told += [times(new), times(old)]
            close &= new == old if new is None or old is None else abs(new / old - 1) <= WITHIN
        verdict = "yes" if close else "no"
        rows.append(
            [mark(f"{anchor(cell)}-again"), label(cell), setting(cell), str(len(one.runs)), *told, verdict],
        )
    return table(head, rows)
