"""What the demo's command line chooses from, by name, in words for its page: the arms and the order of the pool."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Rule:
    """How an arm's batches are chosen. A sidecar picks them by `settings`; without settings they are drawn at random,
    from super-batches of neighbours or, if `shuffled`, from the whole pool."""

    label: str
    about: str  # one sentence that says what sets the arm apart
    settings: dict[str, Any] = field(default_factory=dict)
    shuffled: bool = False


RULES = {
    "uniform": Rule("uniform", "Batches are drawn at random from the super-batches that the selecting arms are shown."),
    "shuffled": Rule(
        "uniform, shuffled",
        "Batches are drawn at random from the whole pool, which is what a shuffled data set would give.",
        shuffled=True,
    ),
    "independent": Rule(
        "independent",
        "Each candidate is judged alone, by its learnability: the learner's loss of the pair minus the reference's.",
        {"policy": "independent"},
    ),
    "jest": Rule(
        "JEST",
        "Each candidate is also judged with those picked before it, by the learnability of its picture with their "
        "captions and of their pictures with its caption.",
        {"policy": "joint"},
    ),
    "mixed": Rule(
        "mixed",
        "As in JEST, but of a picture with another pair's caption only the reference's loss counts: what it takes for "
        "a match does not come into one batch.",
        {"policy": "joint", "pair_criterion": "easy-reference"},
    ),
    "easy": Rule(
        "easy",
        "Each candidate is judged alone and by the reference only: the lower its loss, the better. The learner is not "
        "asked.",
        {"policy": "independent", "criterion": "easy-reference"},
    ),
    "joint-easy": Rule(
        "joint easy",
        "As in JEST, but only the reference's losses count. The learner is not asked.",
        {"policy": "joint", "criterion": "easy-reference"},
    ),
}
ORDERS = {
    "stored": "The pool is read as a crawl would have stored it: neighbours come from one font and resemble each "
    "other, and a super-batch holds a few runs of neighbours.",
    "shuffled": "The pool was shuffled before, so that a super-batch is a random sample of it.",
}
DEFAULT = ("uniform", "shuffled", "independent", "jest", "mixed")
