"""Puts the page together: first what came, then where it does not pay, then every figure."""

from collections.abc import Iterator, Mapping
from itertools import product

from selector_tools.study.comparing import RIVALS, Target, best_baseline
from selector_tools.study.results import batches, documents, prose, tables, tuning
from selector_tools.study.results.differences import differences
from selector_tools.study.results.documents import Study
from selector_tools.study.results.findings import against_selection, aims, arms
from selector_tools.study.results.markdown import link, once, paragraphs
from selector_tools.study.results.naming import anchor, label
from selector_tools.study.results.questions import BATCH, QUESTIONS, STREAM, TEACHER, Found, of_rules, rule_pairs
from selector_tools.study.results.teachers import above, teachers
from selector_tools.study.rules import parts
from selector_tools.study.summary import Summary

STREAMS = {
    "natural": "Natural stream",
    "shuffled": "Shuffled stream",
    "hot": "Hot stream (half of the entries are copies of 1,000 items)",
    "sequential": "Shards as stored, one after the other",
    "buffered": "Shards one after the other, a buffer of 1,000 samples",
    "interleaved": "8 shards at once, a buffer of 1,000 samples",
}
TARGET_WORDS: dict[Target, str] = {
    "final": "To the end of {}",
    "half": "To half the end of {}",
    "four": "To the end of {} of four times as many steps",
}
NOT_RUN = "Not run."


def render(studies: Mapping[str, Study], plots: bool = True) -> str:
    """Returns the page as Markdown."""
    about = documents.together(studies)
    found = about.found
    pictures = (
        "![Accuracy against steps](results-curves.svg)\n\n![Times less than the best baseline](results-speed.svg)"
    )
    parts = [
        prose.HEADER,
        f"## In short\n\n{aims(found)}\n\n{prose.IN_SHORT}",
        pictures if plots else "",
        f"## Where it does not pay\n\n{prose.NEGATIVE}\n\n{against_selection(found) or 'Nothing was found.'}",
        f"## How it was done\n\n{prose.evidence(about)}",
        prose.pools(about.document),
        f"Machines:\n\n{prose.machines(studies)}",
        f"References:\n\n{prose.recipes(about.document)}",
        tables.references(list(found.values())),
        f"## Baselines\n\n{_baselines(found)}",
        *_questions(found),
        *_all_costs(found),
        *_others(studies, found),
    ]
    return once(paragraphs(parts)) + "\n"


def _baselines(found: Found, prefix: str = "") -> str:
    rows = [one for cell, one in found.items() if not cell.how.selects]
    best = {
        rivals: ", ".join(
            f"{link(anchor(one.cell, prefix))} ({label(one.cell)})"
            for one in rows
            if best_baseline(one.cell, found, rivals) is one
        )
        for rivals in RIVALS
    }
    note = (
        f"The best of those that are comparable, by the validation: {best['any']}. The best *uniform* ones, which do "
        f"not ask the reference: {best['uniform']}."
    )
    abouts = {one.cell.rule: f"- *{label(one.cell)}*: {one.cell.how.about}" for one in rows}
    return paragraphs([tables.baselines(rows, prefix), note, "\n".join(abouts.values())])


def _questions(found: Found) -> Iterator[str]:
    yield (
        "## 1. Which rule\n\nSteps, FLOPs and CPU s: how many times less is needed to reach the end of the *best* "
        "baseline, and that of the best *uniform*, which does not ask the reference."
    )
    for (stream, noise, reference, pool), some in of_rules(found).items():
        wrong = f"{100 * noise:g} % wrong captions" if noise else "captions all right"
        where = "" if pool == "icons" else f"{pool}: "
        yield f"### {where}{STREAMS[stream]}, {wrong}, {reference} reference"
        best = best_baseline(some[0].cell, found)
        yield tables.accuracies([*([best] if best else []), *some], found, settings=False)
        yield differences(rule_pairs(some))
    if shuffled := differences(STREAM.pairs(found)):
        yield f"### {STREAM.title}\n\n{STREAM.about}\n\n{shuffled}"
    plain = {cell.rule: cell for cell in found if cell.how.selects and not parts(cell.rule)[1]}
    yield "\n".join(f"- *{label(cell)}*: {cell.how.about}" for cell in plain.values())
    for question in QUESTIONS:
        yield f"## {question.number}. {question.title}\n\n{question.about}"
        rows = [one for group in question.groups(found) for one in group]
        if not rows:
            yield NOT_RUN
        elif question is TEACHER:
            above_it = [one for one in arms(found) if above(one).mean > 0 and one not in rows]
            yield teachers([*rows, *above_it], found)
        else:
            yield tables.accuracies(_beside(rows, found), found)
        yield differences(question.pairs(found))
        if question is BATCH and (told := batches.weights(rows)):
            yield f"{differences(batches.pairs(rows))}\n\n{batches.ABOUT}\n\n{told}"


def _beside(rows: list[Summary], found: Found) -> list[Summary]:
    """Returns the rows, with the best baseline of each setting before them, and with all warm ones if some are warm."""
    baselines = {one.cell: one for row in rows if (one := best_baseline(row.cell, found)) is not None}
    if any(row.cell.how.warm for row in rows):
        baselines |= {cell: one for cell, one in found.items() if cell.how.warm and not cell.how.selects}
    return [*baselines.values(), *rows]


def _all_costs(found: Found) -> Iterator[str]:
    cold = arms(found)
    yield "## All speed-ups"
    for rivals, (target, words) in product(RIVALS, TARGET_WORDS.items()):
        if told := tables.speeds(cold, found, target, rivals):
            name = {"any": "the best baseline", "uniform": "the best uniform"}[rivals]
            yield f"### {words.format(name)}\n\n{told}"
    yield (
        "## One-off costs\n\nThe reference is trained and embeds the pool once. Against a baseline that asks the "
        "reference, too, it costs nothing more; against the best uniform it has paid for itself after so many of the "
        "baseline's steps, if the arm saves the same share at every horizon."
    )
    yield tables.one_off(cold, found)
    yield (
        "## What each run did and cost\n\nOf the examples `shown` as candidates, those `decoded` had to be looked at, "
        "those `scored` passed the learner, and those `embedded` the reference, as its cache lacked them."
    )
    yield tables.costs(found.values())


def _others(studies: Mapping[str, Study], found: Found) -> Iterator[str]:
    for name in ("tuning", "gpu_tuning"):
        if name in studies:
            title = "## Learning rates" if name == "tuning" else "### Of the profile `gpu`"
            yield f"{title}\n\n{RATES if name == 'tuning' else GPU_RATES}\n\n{tuning.rates(studies[name].found)}"
    if "headline" in studies and not studies.keys().isdisjoint(documents.TOGETHER):
        again = tuning.repeated(studies["headline"].found, found)
        yield f"## Profile `headline`, run apart\n\n{again}"


RATES = (
    "The validation's accuracy at the end, by the peak of the learning rate. If the best one is at the edge of what "
    "was tried, one beyond it may be better."
)
GPU_RATES = "Here only baselines were tuned, and what selects has the rate of *filtered offline* beside it."
