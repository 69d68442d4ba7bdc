"""What joint selection brings at each size of a batch, beside how much its pairs weigh."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean

from selector_tools.study.cells import Cell
from selector_tools.study.results.markdown import mark, points, table
from selector_tools.study.results.naming import anchor, label, setting
from selector_tools.study.results.questions import rule_pairs
from selector_tools.study.summary import Summary

ABOUT = (
    "A joint rule's score has two parts: the candidate's own, and what its pairs with the picks add. The share is the "
    "second one's variance over a super-batch's candidates, against the sum of both variances, with all picks made."
)


def weights(rows: Sequence[Summary]) -> str:
    """Returns which share of the variance of scores comes from pairs, on the way, for the joint rules of some cells."""
    head, lines = [], []
    for one in rows:
        runs = [run["pair_variance"] for run in one.runs if run.get("pair_variance")]
        if not runs:
            continue
        steps = [step for step, _ in runs[0]]
        head = ["row", "rule", "setting", "seeds", *(f"{number} / {len(steps)}" for number in range(1, len(steps) + 1))]
        shares = [points(fmean(share for _, share in some)) for some in zip(*runs, strict=True)]
        lines.append([mark(f"{anchor(one.cell)}-pairs"), label(one.cell), setting(one.cell), str(len(runs)), *shares])
    return table(head, lines)


def pairs(rows: Sequence[Summary]) -> Iterator[tuple[Summary, Summary]]:
    """Yields the cells among these that differ in one part of their rules only."""
    groups: dict[Cell, list[Summary]] = {}
    for one in rows:
        groups.setdefault(replace(one.cell, rule="jest", learning_rate=0.0), []).append(one)
    for some in groups.values():
        yield from rule_pairs(some)
