"""Which cells are run: by name, each with its seeds.

Choices are made on validation families only, by a seed of their own; see LEARNING_RATES.
"""

from dataclasses import replace

from selector_tools.study.cells import Cell
from selector_tools.study.executing import Job

TUNING_SEED = 99
RATES = (1e-3, 2e-3, 4e-3)
STEPS, LONG = 600, 2400


def tuning(pool: str = "icons") -> list[Job]:
    """Returns the runs by which learning rates were chosen: for baselines and for selection, by stream, share of wrong
    captions and horizon."""
    groups: list[Cell] = []
    for noise in (0.0, 0.5):
        for rule in ("uniform", "buffer", "shuffled", "warm", "mixed"):
            groups.append(Cell(pool, rule, noise=noise))
        groups.append(Cell(pool, "mixed", "shuffled", noise))
        groups.extend(Cell(pool, rule, noise=noise, steps=LONG) for rule in ("uniform", "shuffled"))
    groups.append(Cell(pool, "mixed", "hot"))
    groups.append(Cell(pool, "buffer", "hot"))
    return [(replace(cell, learning_rate=rate), TUNING_SEED) for cell in groups for rate in RATES]
