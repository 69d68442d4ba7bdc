"""What the demo's command line chooses from, by name: the arms and the order of the pool."""

from dataclasses import replace

from selector_tools.study.rules import Rule, rule

# The demo's uniform arm is shown the same super-batches as those that select.
RULES: dict[str, Rule] = {
    "uniform": replace(rule("buffer"), label="uniform"),
    "shuffled": rule("shuffled"),
    "independent": rule("independent"),
    "jest": rule("jest"),
    "mixed": rule("mixed"),
    "easy": rule("easy_reference"),
    "joint-easy": rule("joint_easy_reference"),
}
ORDERS = {
    "stored": "The pool is read as a crawl would have stored it: neighbours come from one font and resemble each "
    "other, and a super-batch holds a few runs of neighbours.",
    "shuffled": "The pool was shuffled before, so that a super-batch is a random sample of it.",
}
DEFAULT = ("uniform", "shuffled", "independent", "jest", "mixed")
