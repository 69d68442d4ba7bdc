"""What a user is told of the arms, in words."""

import math
from collections.abc import Iterator
from statistics import fmean

from selector_tools.study.comparing import against, breaks_even
from selector_tools.study.own.comparing import Outcome
from selector_tools.study.own.decision import Compared, Decision, Estimate

KNOWS = 2.0  # What ranks less than so many times as high as guessing knows next to nothing.


def headline(outcome: Outcome) -> str:
    """Sums up in a few sentences whether there is a gain."""
    decision, best = outcome.decision, outcome.decision.best
    base = f"{decision.baseline.cell.how.label} (the best baseline)"
    speed, cpu = (_shown(best.ratios[what]) for what in ("steps", "cpu"))
    ended = f"at the end its rank on the test differs from that by {_points(best.accuracy)} points"
    with_ = f"With the rule {best.arm.how.label}"
    if best.verdict == "none":
        return (
            f"**No gain** was found. {with_}, the best of {len(decision.arms)}, your learner was {speed} times as fast "
            f"as {base} in steps, {cpu} times in CPU seconds, and {ended}. No rule is better than it, in steps or on "
            f"the test, by more than {decision.bound:.1f} times the error, which is what would count.{_lost(decision)}"
        )
    if best.verdict == "worse":
        return (
            f"**No gain** was found, but a loss. {with_}, the best of {len(decision.arms)}, your learner was {speed} "
            f"times as fast as {base} in steps, {cpu} times in CPU seconds, and {ended}."
        )
    begin = "**A mixed result.** " if best.verdict == "mixed" else ""
    if best.steps is None:
        told = f"{begin}{with_} your learner was {speed} times as fast as {base} in steps"
    else:
        told = (
            f"{begin}{with_} your learner was as good as {base} at its end after {best.steps:,.0f} of "
            f"{outcome.steps:,} steps, {speed} times sooner"
        )
    return f"{told}; in CPU seconds {cpu}{_dear(best)}; {ended}."


def _lost(decision: Decision) -> str:
    worse = [one.arm.how.label for one in decision.arms if one.verdict == "worse"]
    return f" By the same measure, worse than it: {'; '.join(worse)}." if worse else ""


def _dear(best: Compared) -> str:
    ratio = best.ratios["cpu"]
    return " (below 1: selecting cost more than it saved)" if ratio.value < 1 else ""


def cautions(outcome: Outcome) -> Iterator[str]:
    """Yields what limits the finding."""
    asked, pairs, baseline = outcome.asked, outcome.pairs, outcome.decision.baseline
    if baseline.mean("test") < KNOWS * outcome.test.chance:
        yield (
            f"The learner learnt next to nothing in {outcome.steps:,} steps: its rank is {baseline.mean('test'):.3f}, "
            f"and guessing has {outcome.test.chance:.3f}. Nothing can be said of selection by that; raise the budget, "
            "or change the learning rate."
        )
    if fmean(one.test.rank for one in outcome.references) < KNOWS * outcome.test.chance:
        yield "The reference knows next to nothing of these pairs, so it cannot tell which are worth training on."
    if outcome.steps < asked.cell.steps:
        yield (
            f"{outcome.steps:,} of {asked.cell.steps:,} steps fitted into {asked.budget_seconds / 60:g} minutes. What "
            "selection brings changes with the horizon."
        )
    if outcome.seeds < asked.seeds:
        yield f"The budget allowed {outcome.seeds} of {asked.seeds} seeds, so that errors are hardly known."
    if pairs["train"] < pairs["in_the_pool"]:
        yield (
            f"{pairs['train']:,} of {pairs['in_the_pool']:,} training pairs were used, in runs of neighbours drawn at "
            "random: the super-batches of these steps hold no more."
        )
    if lost := sum(run["fallbacks"] for run in outcome.runs):
        yield f"{lost:,} batches were uniform, because no selection came in time; see sidecars.log."
    yield (
        f"The learning rate, {asked.cell.learning_rate:g}, is the same for all arms and was not tuned. One that is too "
        "low for uniform batches makes selection look better than it is."
    )


def about_reference(outcome: Outcome) -> str:
    """Says where the reference came from, what that means, how good it is, and what it cost."""
    asked, some = outcome.asked, outcome.references
    rank = fmean(one.test.rank for one in some)
    cost = fmean(one.train_cpu_seconds + one.embed_cpu_seconds for one in some)
    if asked.reference is not None:
        came = f"The reference is the bundle {asked.reference}, the same for all seeds."
    else:
        steps = fmean(one.steps for one in some)
        where = f"the {outcome.pairs['reference']:,} curated pairs of {asked.curated}"
        if asked.curated is None:
            where = (
                f"{outcome.pairs['reference']:,} pairs that were drawn at random from the pool and then left out of it"
            )
        came = f"Each seed has a reference of its own, trained on {where}, for {steps:,.0f} steps in the mean."
        if asked.curated is None:
            came += (
                " Nobody chose these pairs: their captions are wrong as often as the pool's, and the reference knows "
                "no more than they do. One that was trained on pairs that you trust (--curated) may bring more."
            )
    judged = f"It has the rank {rank:.3f} on the test, the best baseline {outcome.decision.baseline.mean('test'):.3f}."
    return f"{came} {judged} It cost {cost:,.1f} CPU seconds once, training and embeddings together.{_even(outcome)}"


def _even(outcome: Outcome) -> str:
    best, baseline = outcome.decision.best, outcome.decision.baseline
    arm = next(one for one in outcome.arms if one.cell == best.arm)
    ratio = best.ratios["cpu"]
    if best.verdict != "gain" or ratio.value <= 1:
        return ""
    steps = breaks_even(against(arm, baseline, baseline.final), "cpu")
    return f" What selection saves has paid for that after {steps:,.0f} steps." if 0 < steps < math.inf else ""


def _shown(ratio: Estimate) -> str:
    return f"{ratio.value:.1f} ± {ratio.error:.1f}" if ratio.value >= 2 else f"{ratio.value:.2f} ± {ratio.error:.2f}"


def _points(share: Estimate) -> str:
    return f"{100 * share.value:+.1f} ± {100 * share.error:.1f}"
