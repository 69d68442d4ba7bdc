"""Which cells are run, by the name of a profile, each by its seeds.

Choices are made on validation families only and by a seed of their own (`tuning`); RATES_CHOSEN holds what came of it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from selector_tools.study.cells import Cell
from selector_tools.study.executing import Job

TUNING_SEED = 99
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
LOWER = (2.5e-4,)  # Wrong captions want smaller steps.
STEPS, LONG = 600, 2400
NOISES = (0.0, 0.5)
FAIR = ("uniform", "buffer", "shuffled", "filtered", "prefiltered", "curated", "warm", "filtered_warm")
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
    """Returns the runs of two cores and an hour and a half. What a claim rests on is run by three seeds, other cells by
    one or two; baselines come first."""
    jobs: list[Job] = []

    def add(some: Iterator[Cell] | Sequence[Cell], by: int = seeds) -> None:
        jobs.extend(_jobs(list(some), min(by, seeds)))

    add([Cell("icons", rule, noise=noise) for noise in NOISES for rule in FAIR])
    add([Cell("icons", rule, noise=noise) for noise in NOISES for rule in HEADLINE])
    add([Cell("icons", rule, "shuffled") for rule in HEADLINE if rule != "joint_easy_reference"])
    add([Cell("icons", rule, "shuffled", 0.5) for rule in ("easy_reference", "independent", "jest", "mixed_prefilter")])
    add([Cell("icons", rule) for rule in ("jest_prefilter", "easy_reference_dedup", "mixed_prefilter_dedup")], 2)
    add([Cell("icons", "mixed_prefilter_warm", "shuffled", noise) for noise in NOISES], 2)
    add(
        [
            Cell("icons", rule, noise=noise, steps=LONG)
            for noise in NOISES
            for rule in ("uniform", "shuffled", "filtered")
        ],
        1,
    )
    add([Cell("icons", "mixed_prefilter", "shuffled", noise, steps=LONG) for noise in NOISES], 1)
    add([Cell("icons", rule, "hot") for rule in ("buffer", "easy_reference", "jest", "mixed")], 1)
    add([Cell("icons", rule, reference="weak") for rule in ("jest", "mixed")], 1)
    ratios = [(0.5, "jest"), (0.9, "jest"), (0.9, "mixed_prefilter")]
    add([Cell("icons", rule, noise=0.5, filter_ratio=ratio) for ratio, rule in ratios], 1)
    add([Cell("icons", "mixed", reference="uncurated"), Cell("icons", "jest_topk")], 1)
    add([Cell("icons", "mixed_explore"), Cell("icons", "jest", publish_every=100)], 1)
    return jobs


def full(seeds: int = 3) -> list[Job]:
    """Returns everything that is asked, by all seeds: days on two cores. It goes on where it was stopped."""
    cells = [cell for cell, seed in cpu(1)]
    cells += [Cell("icons", rule) for rule in ("hard", "jest_gain100", "jest_chunks1", "jest_chunks4", "jest_chunks64")]
    both = ("independent", "jest")
    cells += [
        Cell("icons", rule, noise=noise, filter_ratio=ratio)
        for noise in NOISES
        for ratio in (0.5, 0.9, 0.95)
        for rule in both
    ]
    cells += [Cell("icons", rule, noise=0.5, reference="weak") for rule in (*both, "mixed")]
    cells += [Cell("icons", "jest", publish_every=every) for every in (1, 5, 20, 100)]
    cells += [Cell("icons", rule, resolution="full") for rule in ("shuffled", "filtered")]
    cells += [Cell("icons", "jest", "shuffled", resolution=form) for form in ("full", "low", "flexi")]
    large = ("uniform", "buffer", "shuffled", "filtered", *HEADLINE)
    cells += [Cell("iconify", rule, noise=noise) for noise in NOISES for rule in large]
    cells += [Cell("iconify", rule, "shuffled", steps=LONG) for rule in ("shuffled", "filtered", "mixed_prefilter")]
    for batch, steps in ((512, 300), (2048, 150)):
        some = ("shuffled", "filtered", *both, "mixed")
        cells += [Cell("iconify", rule, "shuffled", batch=batch, steps=steps) for rule in some]
    return list(dict.fromkeys(_jobs(cells, seeds)))


PROFILES: dict[str, Callable[[int], list[Job]]] = {
    "tuning": tuning,
    "headline": headline,
    "cpu": cpu,
    "full": full,
}

# By kind (a baseline's name, or "select"), stream, share of wrong captions and steps: the rate that ended highest on
# the validation families. What is not listed has the rate of what is nearest, as `rated` says.
RATES_CHOSEN: dict[tuple[str, str, float, int], float] = {
    ("uniform", "natural", 0.0, 600): 1e-3,
    ("uniform", "natural", 0.0, 2400): 1e-3,
    ("uniform", "natural", 0.5, 600): 5e-4,
    ("uniform", "natural", 0.5, 2400): 5e-4,
    ("buffer", "natural", 0.0, 600): 1e-3,
    ("buffer", "natural", 0.5, 600): 5e-4,
    ("buffer", "hot", 0.0, 600): 4e-3,
    ("shuffled", "natural", 0.0, 600): 2e-3,
    ("shuffled", "natural", 0.0, 2400): 1e-3,
    ("shuffled", "natural", 0.5, 600): 5e-4,
    ("shuffled", "natural", 0.5, 2400): 5e-4,
    ("filtered", "natural", 0.0, 600): 2e-3,
    ("filtered", "natural", 0.5, 600): 1e-3,
    ("prefiltered", "natural", 0.0, 600): 1e-3,
    ("prefiltered", "natural", 0.5, 600): 1e-3,
    ("curated", "natural", 0.0, 600): 1e-3,
    ("curated", "natural", 0.5, 600): 5e-4,
    ("warm", "natural", 0.0, 600): 1e-3,
    ("warm", "natural", 0.5, 600): 1e-3,
    ("filtered_warm", "natural", 0.0, 600): 2e-3,
    ("filtered_warm", "natural", 0.5, 600): 2.5e-4,
    ("select", "natural", 0.0, 600): 2e-3,
    ("select", "natural", 0.5, 600): 1e-3,
    ("select", "shuffled", 0.0, 600): 2e-3,
    ("select", "shuffled", 0.5, 600): 2e-3,
    ("select", "hot", 0.0, 600): 4e-3,
}


def rated(cell: Cell) -> Cell:
    """Returns the cell with the learning rate that was chosen for its like."""
    kind = cell.rule
    if cell.how.selects:
        kind = "warm" if cell.how.warm else "select"
    horizon = LONG if cell.steps >= LONG else STEPS
    for key in ((kind, cell.stream, cell.noise, horizon), (kind, "natural", cell.noise, STEPS)):
        if key in RATES_CHOSEN:
            return replace(cell, learning_rate=RATES_CHOSEN[key])
    return cell


def _jobs(cells: Sequence[Cell], seeds: int) -> list[Job]:
    """Returns each cell by each seed: all cells by the first seed, then all by the next one."""
    return [(rated(cell), seed) for seed in range(seeds) for cell in cells]
