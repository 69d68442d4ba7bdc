"""How a trainer's batches are chosen, by name: rules that a sidecar picks by, and baselines that draw at random.

A name is that of a rule, and perhaps of what changes it: `mixed`, `mixed_prefilter`, `mixed_prefilter_dedup`.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

# Where a baseline's batches come from:
#   stream       the stream as it comes, batch by batch
#   buffer       a shuffle buffer as large as a super-batch: the candidates that selecting arms are shown
#   shuffled     the whole pool at random
#   filtered     a share of the pool that the reference likes best, at random
#   prefiltered  the PREFILTER b candidates of a super-batch that the reference likes best, at random
#   curated      pool and curated pairs together, at random
Source = Literal["stream", "buffer", "shuffled", "filtered", "prefiltered", "curated"]
OFFLINE_SHARE = 0.25
PREFILTER = 2.5
ALIKE = 0.8  # Two candidates of a larger cosine, of images or of texts, are near-duplicates.


@dataclass(frozen=True)
class Rule:
    """How batches are chosen: by a sidecar with these `settings` or, without settings, at random from `source`, of
    which a filtered one keeps the `share`. With `warm`, training starts from the reference's weights."""

    label: str
    about: str  # one sentence that says what sets the rule apart
    settings: dict[str, Any] = field(default_factory=dict)
    source: Source = "buffer"
    share: float = OFFLINE_SHARE
    warm: bool = False

    @property
    def selects(self) -> bool:
        """Whether a sidecar picks."""
        return bool(self.settings)

    @property
    def joint(self) -> bool:
        """Whether a sidecar looks at pairs."""
        return self.settings.get("policy") == "joint"

    @property
    def asks_reference(self) -> bool:
        """Whether it needs a trained reference: its opinion of candidates, or its weights to start from."""
        if not self.selects:
            return self.warm or self.source in ("filtered", "prefiltered")
        return self.warm or "prefilter" in self.settings or self.settings.get("criterion") != "hard-learner"


def _filtered(label: str, share: float) -> Rule:
    about = f"The reference keeps {share:.0%} of the pool before training; batches are drawn from these at random."
    return Rule(label, about, {}, "filtered", share)


BASELINES = {
    "uniform": Rule(
        "uniform, as the stream comes", "Batches are read from the stream one after the other.", {}, "stream"
    ),
    "buffer": Rule(
        "uniform, shuffle buffer", "Batches are drawn at random from the super-batches that selecting arms are shown."
    ),
    "shuffled": Rule(
        "uniform, shuffled",
        "Batches are drawn at random from the whole pool, which is what a shuffled data set would give.",
        {},
        "shuffled",
    ),
    "filtered": _filtered("filtered offline", OFFLINE_SHARE),
    "filtered_tenth": _filtered("filtered offline, a tenth", 0.1),
    "filtered_twentieth": _filtered("filtered offline, a twentieth", 0.05),
    "prefiltered": Rule(
        "prefiltered, then uniform",
        f"Of each super-batch the reference keeps {PREFILTER:g} b candidates; the batch is drawn from these at random.",
        {},
        "prefiltered",
    ),
    "curated": Rule(
        "uniform with curated",
        "The reference's own training pairs are mixed into the pool; batches are drawn from both at random.",
        {},
        "curated",
    ),
    "warm": Rule(
        "uniform, warm start",
        "Training starts from the reference's weights; batches are drawn at random from the whole pool.",
        {},
        "shuffled",
        warm=True,
    ),
}
RULES = {
    "easy_reference": Rule(
        "easy",
        "Each candidate is judged alone and by the reference only: the lower its loss, the better. The learner is not "
        "asked.",
        {"policy": "independent", "criterion": "easy-reference"},
    ),
    "joint_easy_reference": Rule(
        "joint easy",
        "As in JEST, but only the reference's losses count. The learner is not asked.",
        {"policy": "joint", "criterion": "easy-reference"},
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
    "hard": Rule(
        "hard learner",
        "Each candidate is judged alone and by the learner only: the higher its loss, the better. There is no "
        "reference.",
        {"policy": "independent", "criterion": "hard-learner"},
    ),
}
# What changes a rule: its part of the name, of the label, and the settings that it adds.
CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "prefilter": (f"prefilter {PREFILTER:g}", {"prefilter": PREFILTER}),
    "dedup": (f"nothing alike above {ALIKE:g}", {"max_similarity": ALIKE}),
    "explore": ("explore 0.1", {"explore": 0.1}),
    "gain100": ("gain 100", {"gain": 100.0}),
    "topk": ("highest scores", {"draw": "top-k"}),
    "chunks1": ("1 chunk", {"chunks": 1}),
    "chunks4": ("4 chunks", {"chunks": 4}),
    "chunks64": ("64 chunks", {"chunks": 64}),
}


WARM = "warm"  # This part of a name means a start from the reference's weights.


def parts(name: str) -> tuple[str, tuple[str, ...]]:
    """Returns a rule's name without what changes it, and the changes. Raises KeyError if there is no such rule."""
    longest_first = sorted(BASELINES | RULES, key=len, reverse=True)
    base = next((base for base in longest_first if f"{name}_".startswith(f"{base}_")), "")
    changes = tuple(filter(None, name[len(base) :].split("_")))
    if not base or (base in BASELINES and set(changes) - {WARM}):
        raise KeyError(name)
    return base, changes


def rule(name: str) -> Rule:
    """Returns the rule of this name. Raises KeyError if there is none."""
    base, changes = parts(name)
    found = (BASELINES | RULES)[base]
    for change in changes:
        if change == WARM:
            found = replace(found, label=f"{found.label}, warm start", warm=True)
        else:
            label, settings = CHANGES[change]
            found = replace(found, label=f"{found.label}, {label}", settings=found.settings | settings)
    return found
