"""Learners beside the references that chose for them."""

from collections.abc import Sequence

from selector_tools.study.comparing import Difference, gained, sooner
from selector_tools.study.results.markdown import NOTHING, mark, points, table
from selector_tools.study.results.naming import anchor, label, setting
from selector_tools.study.results.questions import Found
from selector_tools.study.summary import Summary


def above(one: Summary) -> Difference:
    """Returns by how much learners end above their own references, in the test."""
    values = tuple(run["test"] - run["reference"]["test"] for run in one.runs)
    return Difference(one, one, values)


def teachers(rows: Sequence[Summary], found: Found, prefix: str = "") -> str:
    """Returns a table of learners, their references, and the best baselines at the same horizon."""
    head = ["row", "rule", "setting", "seeds", "learner", "reference", "learner above reference"]
    head += ["best baseline", "its test", "learner above it"]
    lines = []
    for one in rows:
        beside, more = sooner(one, found), gained(one, found)
        teacher = above(one)
        best = [NOTHING] * 3
        if beside is not None and more is not None:
            test = points(beside.baseline.mean("test"))
            best = [label(beside.baseline.cell), test, points(more.mean, more.error, sign=True)]
        lines.append(
            [
                mark(f"{anchor(one.cell, prefix)}-teacher"),
                label(one.cell),
                setting(one.cell),
                str(len(one.runs)),
                points(one.mean("test"), one.error("test")),
                points(one.reference("test")),
                points(teacher.mean, teacher.error, sign=True),
                *best,
            ]
        )
    return table(head, lines)
