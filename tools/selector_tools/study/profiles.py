"""Which cells are run, by the name of a profile, each by its seeds.

Choices are made on validation families only and by a seed of their own (`tuning`, `gpu_tuning`); `rates.py` holds what
came of it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product

from selector_tools.study.cells import Cell, Resolution
from selector_tools.study.executing import Job
from selector_tools.study.rates import LONG, rated
from selector_tools.study.streams import READERS, Kind

TUNING_SEED = 99
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
LOWER = (2.5e-4,)  # Wrong captions want smaller steps.
STREAMS: tuple[Kind, Kind] = ("natural", "shuffled")
FORMS: tuple[Resolution, ...] = ("flexi", "low", "full")
NOISES = (0.0, 0.5)
FAIR = ("uniform", "buffer", "shuffled", "filtered", "prefiltered", "curated", "warm", "filtered_warm")
HARDER = ("filtered_tenth", "filtered_twentieth")
HEADLINE = (
    "easy_reference",
    "joint_easy_reference",
    "independent",
    "jest",
    "mixed",
    "mixed_prefilter",
)


def tuning(seeds: int = 1) -> list[Job]:
    """Returns the runs by which learning rates were chosen: for baselines and for selection, by stream, share of wrong
    captions and horizon."""
    cells: list[Cell] = []
    for noise in NOISES:
        cells += [Cell("icons", rule, noise=noise) for rule in (*FAIR, "mixed")]
        cells.append(Cell("icons", "mixed", "shuffled", noise))
        cells += [Cell("icons", rule, noise=noise, steps=LONG) for rule in ("uniform", "shuffled")]
    cells += [Cell("icons", rule, "hot") for rule in ("mixed", "buffer")]
    return [
        (replace(cell, learning_rate=rate), TUNING_SEED + number)
        for number in range(seeds)
        for cell in cells
        for rate in (RATES if cell.noise == 0 or cell.how.selects else (*LOWER, *RATES))
    ]


def headline(seeds: int = 1) -> list[Job]:
    """Returns the runs that show in a quarter of an hour what selection brings: the natural stream, with captions all
    right and half of them wrong."""
    cells = [
        Cell("icons", rule, noise=noise)
        for noise in NOISES
        for rule in ("uniform", "buffer", "shuffled", "filtered", *HEADLINE)
    ]
    return _jobs(cells, seeds)


def cpu(seeds: int = 3) -> list[Job]:
    """Returns the runs of two cores and an hour and a half, baselines first. Longer training is run by two seeds."""
    jobs: list[Job] = []

    def add(some: Iterator[Cell] | Sequence[Cell], by: int = seeds) -> None:
        jobs.extend(_jobs(list(some), min(by, seeds)))

    add([Cell("icons", rule, noise=noise) for noise in NOISES for rule in (*FAIR, *HARDER)])
    add([Cell("icons", rule, noise=noise) for noise in NOISES for rule in HEADLINE])
    add([Cell("icons", rule, "shuffled") for rule in HEADLINE if rule != "joint_easy_reference"])
    add([Cell("icons", rule, "shuffled", 0.5) for rule in ("easy_reference", "independent", "jest", "mixed_prefilter")])
    add([Cell("icons", rule) for rule in ("jest_prefilter", "easy_reference_dedup", "mixed_prefilter_dedup")])
    add([Cell("icons", "mixed_prefilter_warm", "shuffled", noise) for noise in NOISES])
    fair = ("uniform", "shuffled", "filtered")
    add([Cell("icons", rule, noise=noise, steps=LONG) for noise in NOISES for rule in fair], 2)
    add([Cell("icons", "mixed_prefilter", "shuffled", noise, steps=LONG) for noise in NOISES], 2)
    add([Cell("icons", rule, "hot") for rule in ("buffer", "easy_reference", "jest", "mixed")])
    add([Cell("icons", rule, reference="weak") for rule in ("jest", "mixed")])
    ratios = [(0.5, "jest"), (0.9, "jest"), (0.9, "mixed_prefilter")]
    add([Cell("icons", rule, noise=0.5, filter_ratio=ratio) for ratio, rule in ratios])
    add([Cell("icons", "mixed", reference="uncurated"), Cell("icons", "jest_topk")])
    add([Cell("icons", "mixed_explore"), Cell("icons", "jest", publish_every=100)])
    return jobs


def gpu(seeds: int = 2) -> list[Job]:
    """Returns the runs that want a GPU: the large pool, batches of up to 2,048, a transformer that scores at low
    resolution, learners that pass their reference, and glyphs, whose captions are whole definitions."""
    cells: list[Cell] = []
    # What takes longest comes first.
    for batch in (2048, 512):
        large = [Cell("iconify", rule, "shuffled", batch=batch) for rule in ("jest", "mixed", "independent")]
        cells += [*large, *_fair(large[0], "shuffled", "filtered")]
    low = [Cell("iconify", "mixed", "shuffled", 0.5, steps=1200, resolution=form) for form in FORMS]
    low.append(replace(low[0], stream="natural", rule="mixed_prefilter"))
    cells += [*low, *_fair(low[0], "uniform", "shuffled", "filtered")]
    rules, fair = ("jest", "mixed_prefilter"), ("shuffled", "filtered")
    for pool, warm_rules, warm_fair in (
        ("iconify", ("mixed_prefilter_warm",), ("warm", "filtered_warm")),
        ("glyphs", (), ()),
    ):
        long = [Cell(pool, rule, "shuffled", steps=LONG) for rule in (*rules, *warm_rules)]
        cells += [*long, *_fair(long[0], *fair, *warm_fair)]
    for noise, stream in product(NOISES, STREAMS):
        usual = [Cell("iconify", rule, stream, noise) for rule in ("jest", "mixed", "independent", "mixed_prefilter")]
        cells += [*usual, replace(usual[-1], filter_ratio=0.95)]
        cells += _fair(usual[0], "uniform", *fair, *HARDER) if stream == "natural" else []
    return _jobs(cells, seeds)


def gpu_tuning(seeds: int = 1) -> list[Job]:
    """Returns the runs by which the learning rates of `gpu` were chosen: those of its baselines."""
    baselines = dict.fromkeys(cell for cell, _ in gpu(1) if not cell.how.selects)
    return [
        (replace(cell, learning_rate=rate), TUNING_SEED + number)
        for number in range(seeds)
        for cell in baselines
        for rate in RATES
    ]


def _fair(cell: Cell, *rules: str) -> list[Cell]:
    """Returns baselines for a cell, which name no way to score."""
    form: Resolution | None = None if cell.resolution is None else "full"
    return [replace(cell, rule=rule, stream="natural", resolution=form) for rule in rules]


def full(seeds: int = 3) -> list[Job]:
    """Returns everything that is asked of the demo's pool, by all seeds: half a day on two cores. It goes on where it
    was stopped."""
    cells = [cell for cell, seed in cpu(1)]
    cells += [
        Cell("icons", rule)
        for rule in ("hard", "jest_gain100", "mixed_gain100", "jest_chunks1", "jest_chunks4", "jest_chunks64")
    ]
    both = ("independent", "jest")
    cells += [
        Cell("icons", rule, noise=noise, filter_ratio=ratio)
        for noise in NOISES
        for ratio in (0.5, 0.9, 0.95)
        for rule in both
    ]
    cells += [
        Cell("icons", "mixed_prefilter", stream, noise, filter_ratio=0.95) for noise, stream in product(NOISES, STREAMS)
    ]
    cells += [Cell("icons", rule, noise=0.5, reference="weak") for rule in (*both, "mixed")]
    cells += [Cell("icons", "jest", publish_every=every) for every in (1, 5, 20, 100)]
    cells += [Cell("icons", rule, "hot") for rule in ("filtered", "independent", "mixed_prefilter")]
    cells.append(Cell("icons", "mixed", "shuffled", 0.5))
    cells += [
        Cell("icons", rule, reader) for reader in READERS for rule in ("uniform", "independent", "mixed_prefilter")
    ]
    return list(dict.fromkeys(_jobs(cells, seeds)))


PROFILES: dict[str, Callable[[int], list[Job]]] = {
    "tuning": tuning,
    "headline": headline,
    "cpu": cpu,
    "gpu": gpu,
    "full": full,
    "gpu_tuning": gpu_tuning,
}


def _jobs(cells: Sequence[Cell], seeds: int) -> list[Job]:
    """Returns each cell by each seed: all cells by the first seed, then all by the next one."""
    return [(rated(cell), seed) for seed in range(seeds) for cell in cells]
