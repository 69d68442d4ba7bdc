"""How arms differ that were run by the same seeds, with the error of the difference."""

from collections.abc import Iterable, Iterator

from selector_tools.study.comparing import Difference, difference
from selector_tools.study.results.markdown import NOTHING, mark, points, table
from selector_tools.study.results.naming import anchor, label, setting
from selector_tools.study.results.questions import QUESTIONS, STREAM, Found, of_rules, rule_pairs
from selector_tools.study.summary import Run, Summary

Pair = tuple[Summary, Summary]


def name_of(first: Summary, second: Summary, prefix: str = "") -> str:
    """Returns the name of a difference's row."""
    other = "usual"
    if first.cell.rule != second.cell.rule:
        other = second.cell.rule
    elif first.cell.stream != second.cell.stream:
        other = second.cell.stream
    return f"{anchor(first.cell, prefix)}-minus-{other.replace('_', '-')}"


def words_of(first: Summary, second: Summary) -> str:
    """Returns what is compared, in words."""
    if setting(first.cell) == setting(second.cell):
        return f"{label(first.cell)} minus {label(second.cell)}"
    return f"{label(first.cell)}: {setting(first.cell)} minus {setting(second.cell)}"


def differences(pairs: Iterable[Pair], prefix: str = "") -> str:
    """Returns a table of how much more the first of each pair has, in points."""
    head = ["row", "difference", "setting", "seeds", "test", "known", "unknown", "validation", "beyond twice its error"]
    return table(head, [row for first, second in pairs if (row := _row(first, second, prefix))])


def _row(first: Summary, second: Summary, prefix: str) -> list[str]:
    test = difference(first, second, lambda run: run["test"])
    if test is None:
        return []
    others = [difference(first, second, value) for value in (_known, _unknown, lambda run: run["validation"])]
    return [
        mark(name_of(first, second, prefix)),
        words_of(first, second),
        setting(first.cell),
        str(len(test.values)),
        *map(_points, (test, *others)),
        {True: "yes", False: "no", None: "one seed"}[test.clear],
    ]


def _points(found: Difference | None) -> str:
    return NOTHING if found is None else points(found.mean, found.error, sign=True)


def _known(run: Run) -> float | None:
    return _apart(run, "known")


def _unknown(run: Run) -> float | None:
    return _apart(run, "unknown")


def _apart(run: Run, name: str) -> float | None:
    value: float | None = run["test_apart"][name]
    return value


def all_pairs(found: Found) -> Iterator[Pair]:
    """Yields every pair that the page compares."""
    for some in of_rules(found).values():
        yield from rule_pairs(some)
    for question in (STREAM, *QUESTIONS):
        yield from question.pairs(found)
