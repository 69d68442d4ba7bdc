"""What the tables come to: the aims that were set before the runs, and where selection does not pay."""

from collections.abc import Iterator, Sequence

from selector_tools.study.comparing import Against, Difference, Rivals, breaks_even, comparable, difference, sooner
from selector_tools.study.results.differences import all_pairs, name_of
from selector_tools.study.results.markdown import link, points, table, times, whole
from selector_tools.study.results.naming import anchor
from selector_tools.study.results.questions import Found, of_rules
from selector_tools.study.results.teachers import above
from selector_tools.study.summary import Summary

# On the natural stream by a strong reference: share of wrong captions, whether candidates are scored at low resolution,
# kind of cost, and how many times less of it was hoped for.
SPEED_AIMS = (
    (0.5, False, "steps", 7.0),
    (0.5, False, "flops", 4.0),
    (0.0, False, "steps", 3.0),
    (0.0, False, "flops", 2.0),
    (0.5, True, "steps", 13.0),
    (0.5, True, "flops", 10.0),
)
PAIR_AIM = ("jest", "independent", 0.02)
TEACHER_AIM = 0.10
COST_WORDS = {"steps": "steps", "flops": "FLOPs", "cpu": "CPU seconds", "wall": "wall clock"}
SHOWN = 6  # Of a list that holds nearly everything, so many.


def arms(found: Found) -> list[Summary]:
    """Returns the cells that select, and do not start from a reference's weights."""
    return [one for cell, one in found.items() if cell.how.selects and not cell.how.warm]


def compared(found: Found, rivals: Rivals = "any") -> list[Against]:
    """Returns all arms against their best baselines."""
    return [against for one in arms(found) if (against := sooner(one, found, rivals=rivals)) is not None]


def aims(found: Found) -> str:
    """Returns what was hoped for before the runs, and what came."""
    rows = []
    for noise, low, what, hoped in SPEED_AIMS:
        wrong = f"{100 * noise:g} % wrong captions" if noise else "captions all right"
        how = ", scored at low resolution" if low else ""
        asked = f"natural stream, {wrong}{how}: {hoped:g} times fewer {COST_WORDS[what]}"
        rows.append(_speed_aim(asked, _natural(found, noise, low), what, hoped, found))
    rows.append(_pair_aim(found))
    rows.append(_teacher_aim(found))
    return table(["aim", "against the best uniform", "met", "against the best baseline", "met", "rows"], rows)


def _natural(found: Found, noise: float, low: bool) -> list[Summary]:
    """Returns the arms that the aims are about, by any rule and filter ratio."""
    asked = ("natural", noise, "strong", low)
    return [
        one
        for one in arms(found)
        if (one.cell.stream, one.cell.noise, one.cell.reference, one.cell.resolution in ("low", "flexi")) == asked
    ]


AGAINST: tuple[tuple[Rivals, str], ...] = (("uniform", "-final-uniform"), ("any", "-final"))


def _speed_aim(asked: str, some: Sequence[Summary], what: str, hoped: float, found: Found) -> list[str]:
    if not some:
        return [asked, "not run", "", "", "", ""]
    told, rows = [], []
    for rivals, suffix in AGAINST:
        against = [one for arm in some if (one := sooner(arm, found, rivals=rivals)) is not None and one.ratios]
        best = max(against, key=lambda one: one.ratios[what], default=None)
        if best is None:
            told += ["never as good", "no"]
        else:
            told += [times(best.ratios[what]), "yes" if best.ratios[what] >= hoped else "no"]
            rows.append(link(f"{anchor(best.arm.cell)}{suffix}"))
    return [asked, *told, ", ".join(rows)]


def _pair_aim(found: Found) -> list[str]:
    first, second, hoped = PAIR_AIM
    asked = f"JEST over independent, natural stream, captions all right: {100 * hoped:g} points"
    by_name = {one.cell.rule: one for one in of_rules(found).get(("natural", 0.0, "strong", "icons"), [])}
    if first not in by_name or second not in by_name:
        return [asked, "not run", "", "", "", ""]
    told = difference(by_name[first], by_name[second], lambda run: run["test"])
    if told is None:
        return [asked, "not run by the same seeds", "", "", "", ""]
    row = link(name_of(by_name[first], by_name[second]))
    return [asked, points(told.mean, told.error, sign=True), "yes" if told.mean >= hoped else "no", "", "", row]


def _teacher_aim(found: Found) -> list[str]:
    asked = f"a learner {100 * TEACHER_AIM:g} points above its reference, on a large pool"
    large = [one for one in arms(found) if one.cell.pool != "icons"]
    if not large:
        return [asked, "no large pool was run", "", "", "", ""]
    best = max(large, key=lambda one: above(one).mean)
    told = above(best)
    met = "yes" if told.mean >= TEACHER_AIM else "no"
    return [asked, points(told.mean, told.error, sign=True), met, "", "", link(anchor(best.cell))]


def against_selection(found: Found) -> str:
    """Returns a list of where selection does not pay; each line names its rows."""
    return "\n".join(f"- {line}" for line in _against_selection(found))


def _against_selection(found: Found) -> Iterator[str]:
    for rivals, rival, suffix in WORDS:
        yield from _dear(found, rivals, rival, suffix)
    some = compared(found)
    even = [(one, breaks_even(one, "cpu")) for one in compared(found, "uniform") if "cpu" in one.ratios]
    yield from _line(
        "**What is saved in CPU seconds against the best uniform pays for the reference only after more steps than "
        "were run, or never**",
        [(f"{anchor(one.arm.cell)}-once", whole(steps), steps > one.arm.cell.steps) for one, steps in even],
    )
    yield from _line(
        "**Classes that the reference does not know: worse than the best baseline** (test, baseline in brackets)",
        [
            (
                _row(one),
                f"{points(one.arm.apart('unknown'))} ({points(one.baseline.apart('unknown'))})",
                one.arm.apart("unknown") < one.baseline.apart("unknown"),
            )
            for one in some
        ],
    )
    yield from _line(
        "**Below its own reference** (test, points)",
        [
            (anchor(one.cell), points(above(one).mean, above(one).error, sign=True), above(one).mean < 0)
            for one in arms(found)
        ],
    )
    yield from _warm(found)
    yield from _differences(found)


WORDS: tuple[tuple[Rivals, str, str], ...] = (
    ("any", "the best baseline", ""),
    ("uniform", "the best uniform", "-uniform"),
)


def _dear(found: Found, rivals: Rivals, rival: str, suffix: str) -> Iterator[str]:
    """Says which arms are never as good as their rivals, or need more to be so."""
    some = compared(found, rivals)
    yield from _line(
        f"**Never as good as {rival} in as many steps** (validation, baseline in brackets)",
        [
            (f"{_row(one)}-final{suffix}", f"{points(one.arm.final)} ({points(one.target)})", not one.ratios)
            for one in some
        ],
    )
    for what, word in COST_WORDS.items():
        reaching = sorted((one for one in some if what in one.ratios), key=lambda one: one.ratios[what])
        yield from _line(
            f"**More {word} than {rival} to be as good** (the baseline's divided by the arm's)",
            [(f"{_row(one)}-final{suffix}", times(one.ratios[what]), one.ratios[what] < 1) for one in reaching],
        )
    yield from _line(
        f"**Never as good as {rival} of four times as many steps** (validation, baseline in brackets)",
        [
            (f"{anchor(one.cell)}-four{suffix}", f"{points(four.arm.final)} ({points(four.target)})", not four.ratios)
            for one in arms(found)
            if (four := sooner(one, found, "four", rivals)) is not None
        ],
    )


def _differences(found: Found) -> Iterator[str]:
    told = [
        (name_of(first, second), one)
        for first, second in all_pairs(found)
        if (one := difference(first, second, lambda run: run["test"])) is not None and one.error is not None
    ]
    for title, meets in (("No difference beyond twice its error", _unclear), ("Worse, beyond twice the error", _worse)):
        chosen = [f"{link(name)} {points(one.mean, one.error, sign=True)}" for name, one in told if meets(one)]
        if chosen:
            yield f"**{title}** (test, points; {len(chosen)} of {len(told)} that have an error): {'; '.join(chosen)}."


def _unclear(found: Difference) -> bool:
    return not found.clear


def _worse(found: Difference) -> bool:
    return bool(found.clear) and found.mean < 0


def _warm(found: Found) -> Iterator[str]:
    for cell, one in found.items():
        if cell.how.selects or not cell.how.warm:
            continue
        rivals = [arm for arm in arms(found) if comparable(arm.cell, cell)]
        best = max(rivals, key=lambda arm: arm.final, default=None)
        if best is not None and best.mean("test") < one.mean("test"):
            yield (
                f"**Starting from the reference's weights, without selection, ends higher**: {link(anchor(cell))} "
                f"{points(one.mean('test'))} against {points(best.mean('test'))} of the best arm, "
                f"{link(anchor(best.cell))} (test)."
            )


def _line(title: str, rows: Sequence[tuple[str, str, bool]]) -> Iterator[str]:
    """Says which rows (their name, a figure, and whether the title is true of them) it is true of; where these are most
    of them, which are the exceptions."""
    true = [f"{link(name)} {figure}" for name, figure, holds in rows if holds]
    false = [f"{link(name)} {figure}" for name, figure, holds in rows if not holds]
    if not true:
        return
    told = f"{title}: {len(true)} of {len(rows)}"
    if len(true) <= max(SHOWN, len(false)):
        yield f"{told}, {'; '.join(true)}."
    elif false:
        yield f"{told}, all but {'; '.join(false)}."
    else:
        yield f"{told}, such as {'; '.join(true[:SHOWN])}."


def _row(one: Against) -> str:
    return anchor(one.arm.cell)
