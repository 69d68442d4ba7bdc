"""The learning rates that were chosen on the validation families, by a seed that no result uses."""

from dataclasses import replace

from selector_tools.study.cells import Cell

STEPS, LONG = 600, 2400

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


# The same for the baselines of `gpu`, by rule, pool, share of wrong captions, batch, steps and whether the learner is a
# transformer.
RATES_CHOSEN_GPU: dict[tuple[str, str, float, int, int, bool], float] = {
    ("filtered", "glyphs", 0.0, 128, 2400, False): 0.0005,
    ("shuffled", "glyphs", 0.0, 128, 2400, False): 0.001,
    ("filtered", "iconify", 0.0, 128, 600, False): 0.002,
    ("shuffled", "iconify", 0.0, 128, 600, False): 0.002,
    ("uniform", "iconify", 0.0, 128, 600, False): 0.001,
    ("filtered", "iconify", 0.5, 128, 600, False): 0.002,
    ("shuffled", "iconify", 0.5, 128, 600, False): 0.001,
    ("uniform", "iconify", 0.5, 128, 600, False): 0.001,
    ("filtered", "iconify", 0.0, 128, 2400, False): 0.001,
    ("filtered_warm", "iconify", 0.0, 128, 2400, False): 0.002,
    ("shuffled", "iconify", 0.0, 128, 2400, False): 0.001,
    ("warm", "iconify", 0.0, 128, 2400, False): 0.001,
    ("filtered", "iconify", 0.0, 512, 600, False): 0.004,
    ("shuffled", "iconify", 0.0, 512, 600, False): 0.002,
    ("filtered", "iconify", 0.0, 2048, 600, False): 0.004,
    ("shuffled", "iconify", 0.0, 2048, 600, False): 0.004,
    # Those of the transformer were tuned at b = 512.
    ("filtered", "iconify", 0.5, 128, 1200, True): 0.002,
    ("shuffled", "iconify", 0.5, 128, 1200, True): 0.001,
    ("uniform", "iconify", 0.5, 128, 1200, True): 0.001,
}


def rated(cell: Cell) -> Cell:
    """Returns the cell with the learning rate that was chosen for its like. What selects in `gpu` has the rate of the
    baseline that the reference filtered, as each has its own pool or size, and so has what it filters harder."""
    baseline = "filtered" if cell.how.source == "filtered" and not cell.how.warm else cell.rule
    if (cell.pool, cell.batch, cell.resolution) != ("icons", 128, None):
        rule = f"filtered{'_warm' * cell.how.warm}" if cell.how.selects else baseline
        like = (rule, cell.pool, cell.noise, cell.batch, cell.steps, cell.resolution is not None)
        return replace(cell, learning_rate=RATES_CHOSEN_GPU.get(like, cell.learning_rate))
    kind = baseline
    if cell.how.selects:
        kind = "warm" if cell.how.warm else "select"
    horizon = LONG if cell.steps >= LONG else STEPS
    for key in ((kind, cell.stream, cell.noise, horizon), (kind, "natural", cell.noise, STEPS)):
        if key in RATES_CHOSEN:
            return replace(cell, learning_rate=RATES_CHOSEN[key])
    return cell
