"""The tables of the page, one row for each cell."""

from collections.abc import Iterable, Sequence

from selector_tools.study.comparing import RIVALS, Rivals, Target, breaks_even, gained, seed_by_seed, sooner
from selector_tools.study.results.markdown import big, mark, points, table, times, whole
from selector_tools.study.results.naming import anchor, label, setting
from selector_tools.study.results.questions import Found
from selector_tools.study.summary import Summary

PARTS, KINDS = ("train", "embed"), ("cpu_seconds", "flops")  # of what a reference costs once


def accuracies(rows: Sequence[Summary], found: Found, prefix: str = "", *, settings: bool = True) -> str:
    """Returns how well learners end, and how many times sooner than the best baseline they reach its end."""
    some = ["setting"] if settings else []
    head = ["row", "rule", *some, "seeds", "validation", "test", "above best baseline"]
    head += ["known", "unknown", *(f"{name}: {what}" for name in ("best", "uniform") for what in SHORT)]
    return table(head, [_accuracy(one, found, prefix, settings) for one in rows])


def baselines(rows: Sequence[Summary], prefix: str = "") -> str:
    """Returns how well the baselines end."""
    head = ["row", "baseline", "setting", "seeds", "learning rate", "validation", "test", "known", "unknown"]
    return table(head, [_baseline(one, prefix) for one in rows])


def _baseline(one: Summary, prefix: str) -> list[str]:
    return [
        mark(anchor(one.cell, prefix)),
        label(one.cell),
        setting(one.cell),
        str(len(one.runs)),
        f"{one.cell.learning_rate:g}",
        *_ends(one),
    ]


def _ends(one: Summary) -> list[str]:
    """Returns the accuracies of the validation, the test, and of known and unknown classes of the test."""
    whole = [points(one.final, one.error("validation")), points(one.mean("test"), one.error("test"))]
    return [*whole, points(one.apart("known")), points(one.apart("unknown"))]


def _accuracy(one: Summary, found: Found, prefix: str, settings: bool) -> list[str]:
    cell = one.cell
    more = gained(one, found) if cell.how.selects else None
    ratios = [told for rivals in RIVALS for told in _ratios(one, found, rivals)]
    whole, apart = _ends(one)[:2], _ends(one)[2:]
    return [
        mark(anchor(cell, prefix)),
        label(cell),
        *([setting(cell)] if settings else []),
        str(len(one.runs)),
        *whole,
        "" if more is None else points(more.mean, more.error, sign=True),
        *apart,
        *ratios,
    ]


SHORT = ("steps", "FLOPs", "CPU s")


def _ratios(one: Summary, found: Found, rivals: Rivals) -> list[str]:
    """Returns how many times less is needed in steps, with the range over seeds, in FLOPs and in CPU seconds."""
    compared = sooner(one, found, rivals=rivals)
    if not one.cell.how.selects or one.cell.how.warm or compared is None:
        return [""] * len(SHORT)
    ratios = [times(compared.ratio(what)) for what in ("steps", "flops", "cpu")]
    alone = seed_by_seed(compared, "steps")
    there = [ratio for ratio in alone if ratio is not None]
    if len(alone) > 1 and there:
        ratios[0] += f" ({times(min(there) if len(there) == len(alone) else None)} to {times(max(there))})"
    return ratios


def references(rows: Sequence[Summary]) -> str:
    """Returns how good the references of these cells are by themselves, and what each cost once."""
    head = ["row", "reference", "seeds", "validation", "test", "known", "unknown"]
    head += ["CPU s", "FLOPs", "CPU s to embed the pool", "FLOPs to embed it"]
    by_kind: dict[tuple[str, str, float], Summary] = {}
    for one in rows:  # what learns from the pool depends on the pool's captions
        noise = one.cell.noise if one.cell.reference == "uncurated" else 0.0
        kept = by_kind.setdefault((one.cell.pool, one.cell.reference, noise), one)
        if len(one.runs) > len(kept.runs):
            by_kind[one.cell.pool, one.cell.reference, noise] = one
    return table(head, [_reference(one, noise) for (_, _, noise), one in by_kind.items()])


def _reference(one: Summary, noise: float) -> list[str]:
    name = one.cell.reference + (f"-wrong{100 * noise:g}" if noise else "")
    pool = "" if one.cell.pool == "icons" else f"{one.cell.pool}-"
    accuracy = [one.reference("validation"), one.reference("test")]
    accuracy += [one.reference_apart("known"), one.reference_apart("unknown")]
    costs = [(f"{one.reference(f'{part}_cpu_seconds'):.1f}", big(one.reference(f"{part}_flops"))) for part in PARTS]
    return [mark(f"reference-{pool}{name}"), name, str(len(one.runs)), *map(points, accuracy), *costs[0], *costs[1]]


def speeds(rows: Iterable[Summary], found: Found, target: Target, rivals: Rivals) -> str:
    """Returns how many times less each arm needs to reach a target than its best rival, by kind of cost."""
    head = ["row", "rule", "setting", "best baseline", "target", "at step", "seeds"]
    head += ["steps", "FLOPs", "FLOPs, paper's model", "CPU s", "wall clock"]
    lines = []
    for one in rows:
        if (compared := sooner(one, found, target, rivals)) is None:
            continue
        ratios = [times(compared.ratio(what)) for what in ("steps", "flops", "paper_flops", "cpu", "wall")]
        reached = "never" if compared.steps is None else f"{compared.steps:,.0f}"
        count = str(len(compared.arm.runs))
        best = f"[{label(compared.baseline.cell)}](#{anchor(compared.baseline.cell)})"
        name = mark(f"{anchor(one.cell)}-{target}{'-uniform' * (rivals == 'uniform')}")
        lines.append([name, label(one.cell), setting(one.cell), best, points(compared.target), reached, count, *ratios])
    return table(head, lines)


def one_off(rows: Iterable[Summary], found: Found) -> str:
    """Returns what has to be spent before training, and after how many of the baseline's steps it has paid."""
    head = ["row", "rule", "setting", "best uniform", "CPU s once", "pays in CPU s after", "FLOPs once"]
    lines = []
    for one in rows:
        if (compared := sooner(one, found, rivals="uniform")) is None:
            continue
        asks = one.cell.how.asks_reference
        once = [sum(one.reference(f"{part}_{what}") for part in PARTS) if asks else 0.0 for what in KINDS]
        pays = [whole(breaks_even(compared, what)) for what in ("cpu", "flops")]
        name = mark(f"{anchor(one.cell)}-once")
        best = label(compared.baseline.cell)
        told = [f"{once[0]:.1f}", pays[0], big(once[1]), pays[1]]
        lines.append([name, label(one.cell), setting(one.cell), best, *told])
    return table([*head, "pays in FLOPs after"], lines)


def costs(rows: Iterable[Summary], prefix: str = "") -> str:
    """Returns what one run of each cell did and cost, in the mean over its seeds."""
    head = [
        "row",
        "rule",
        "setting",
        "trained",
        "shown",
        "decoded",
        "scored",
        "embedded",
        "FLOPs",
        "FLOPs, paper's model",
    ]
    head += ["trainer's CPU s", "sidecar's CPU s", "wall s", "of it waiting", "fallbacks"]
    return table(head, [_cost(one, prefix) for one in rows])


def _cost(one: Summary, prefix: str) -> list[str]:
    def count(name: str) -> str:
        return f"{sum(run['counts'][name] for run in one.runs) / len(one.runs):,.0f}"

    seconds = ("trainer_cpu_seconds", "sidecar_cpu_seconds", "train_seconds", "wait_seconds")
    return [
        mark(f"{anchor(one.cell, prefix)}-cost"),
        label(one.cell),
        setting(one.cell),
        *map(count, ("trained", "shown", "decoded", "scored", "embedded")),
        big(one.cost("flops")),
        big(one.cost("paper_flops")),
        *(f"{one.mean(name):.1f}" for name in seconds),
        f"{one.mean('fallbacks'):g}",
    ]
