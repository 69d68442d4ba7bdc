"""The questions that a study asks, and which of its cells answer each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from selector_tools.study.cells import Cell
from selector_tools.study.results.naming import USUAL
from selector_tools.study.rules import parts
from selector_tools.study.summary import Summary

Found = Mapping[Cell, Summary]


@dataclass(frozen=True)
class Question:
    """What is asked, and `usual`: a cell as it is without what the question varies."""

    number: str
    title: str
    about: str
    usual: Callable[[Cell], Cell]

    def varies(self, cell: Cell) -> bool:
        """Whether the cell differs from the usual one in what is asked."""
        return self.usual(cell) != cell

    def groups(self, found: Found) -> list[list[Summary]]:
        """Returns the selecting cells that answer it: those that differ in nothing else stand together."""
        groups: dict[Cell, list[Summary]] = {}
        for cell, one in found.items():
            if cell.how.selects:
                groups.setdefault(replace(self.usual(cell), learning_rate=0.0), []).append(one)
        return [some for some in groups.values() if any(self.varies(one.cell) for one in some)]

    def pairs(self, found: Found) -> Iterator[tuple[Summary, Summary]]:
        """Yields each cell that differs with the usual one of its group."""
        for group in self.groups(found):
            usual = next((one for one in group if not self.varies(one.cell)), None)
            if usual is not None:
                yield from ((one, usual) for one in group if one is not usual)


def _setting(name: str) -> Callable[[Cell], Cell]:
    return lambda cell: replace(cell, **{name: USUAL[name]})


def _without(*changes: str) -> Callable[[Cell], Cell]:
    def usual(cell: Cell) -> Cell:
        base, found = parts(cell.rule)
        return replace(cell, rule="_".join((base, *(change for change in found if change not in changes))))

    return usual


def _unshuffled(cell: Cell) -> Cell:
    return replace(cell, stream="natural") if cell.stream == "shuffled" else cell


def _full(cell: Cell) -> Cell:
    return cell if cell.resolution is None else replace(cell, resolution="full")


def _small(cell: Cell) -> Cell:
    """With the batch, the number of steps may change, too. Transformers are told of with their resolutions."""
    usual = cell.batch == USUAL["batch"] or cell.resolution is not None
    return cell if usual else replace(cell, batch=USUAL["batch"], steps=USUAL["steps"])


def _short(cell: Cell) -> Cell:
    return replace(cell, steps=USUAL["steps"]) if cell.batch == USUAL["batch"] else cell


RATIO = Question(
    "2",
    "How many to leave out",
    "The filter ratio f is the share of candidates that are not trained on; 0.8 is usual here.",
    _setting("filter_ratio"),
)
DRAW = Question(
    "3",
    "Gain, draw and chunks",
    "Usual are gain 1, a sample, and 16 chunks.",
    _without("gain100", "topk", "chunks1", "chunks4", "chunks64"),
)
TEACHER = Question(
    "4",
    "Above the teacher, and other references",
    "Does a learner end above the reference that chose for it, and what does a worse reference cost?",
    _setting("reference"),
)
RESOLUTION = Question(
    "5",
    "Scoring at low resolution",
    "The learner is a vision transformer; candidates are scored from larger patches, with and without co-training.",
    _full,
)
STALENESS = Question(
    "6",
    "How often weights are published",
    "Every 10 steps is usual. Between two publications the sidecar scores with old weights.",
    _setting("publish_every"),
)
EXPLORE = Question(
    "7",
    "Concepts that the reference does not know",
    "`explore` draws a tenth of each batch at random. The column *unknown* is what it is for.",
    _without("explore"),
)
BATCH = Question("8", "Larger batches", "b is 128 as a rule.", _small)
WARM = Question(
    "9",
    "A learner that starts from the reference's weights",
    "Whoever has a reference of the learner's own form can start from its weights, and select or not.",
    _without("warm"),
)
HORIZON = Question(
    "10",
    "Longer training",
    "What remains of a gain when there are more steps for everybody?",
    _short,
)
# Told with the rules, as question 1.
STREAM = Question(
    "1", "What shuffling brings", "Each arm reads a shuffled stream instead of the natural one.", _unshuffled
)
QUESTIONS = (RATIO, DRAW, TEACHER, RESOLUTION, STALENESS, EXPLORE, BATCH, WARM, HORIZON)
# Rules that differ in one thing: what the first has more than the second.
RULE_PAIRS = (
    ("joint_easy_reference", "easy_reference"),
    ("independent", "easy_reference"),
    ("jest", "independent"),
    ("jest", "joint_easy_reference"),
    ("mixed", "jest"),
    ("mixed", "joint_easy_reference"),
    ("mixed", "independent"),
)


RULES_REFERENCES = ("strong", "weak", "untrained")


def of_rules(found: Found) -> dict[tuple[str, float, str, str], list[Summary]]:
    """Returns the cells of question 1 by stream, share of wrong captions, reference and pool: rules and no more."""
    asked = [question for question in QUESTIONS if question is not TEACHER]
    groups: dict[tuple[str, float, str, str], list[Summary]] = {}
    for cell, one in found.items():
        told_elsewhere = cell.resolution is not None or any(question.varies(cell) for question in asked)
        if cell.how.selects and cell.reference in RULES_REFERENCES and not told_elsewhere:
            groups.setdefault((cell.stream, cell.noise, cell.reference, cell.pool), []).append(one)
    return groups


def rule_pairs(some: Sequence[Summary]) -> Iterator[tuple[Summary, Summary]]:
    """Yields those of cells in one setting that differ in one thing."""
    by_name = {one.cell.rule: one for one in some}
    for first, second in RULE_PAIRS:
        if first in by_name and second in by_name:
            yield by_name[first], by_name[second]
    for one in some:
        base, changes = parts(one.cell.rule)
        plain = "_".join((base, *changes[:-1]))
        if changes and plain in by_name:
            yield one, by_name[plain]
