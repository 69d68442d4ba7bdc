"""`selector bench resolution`: do scores at low resolution rank candidates as those at full resolution do?"""

import argparse
from pathlib import Path
from time import perf_counter
from typing import Any

from selector_proto.contract import sub_batch_size

from selector_tools import plots
from selector_tools.bench import harness

COLUMNS = ("loss", "own", "joint", "overlap", "kept")
STYLES: dict[str, dict[str, Any]] = {
    "patch 8": {"fmt": "o-", "color": "#0b62c4"},
    "16 px": {"fmt": "s-", "color": "#c2570c"},
    "tokens dropped": {"fmt": "^-", "color": "#3b8f4f"},
    "reference alone": {"fmt": "x:", "color": "#8a8780"},
    "other noise": {"fmt": "d:", "color": "#1c1b19"},
}


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "resolution",
        help="scores at low resolution against those at full resolution",
        description="Trains a small vision transformer on the demo's pool at full resolution, and another one at two "
        "resolutions (Flexi-JEST), and compares their scores of held-out candidates at low and at full resolution.",
    )
    parser.set_defaults(handler=run, extra="demo")
    parser.add_argument("--super-batch", type=int, default=640, help="candidates (default %(default)s)")
    parser.add_argument("--super-batches", type=int, default=8, help="scored (default %(default)s)")
    parser.add_argument("--filter-ratio", type=float, default=0.8, help="share not picked (default %(default)s)")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[100, 300, 900], help="measured after (default 100 300 900)"
    )
    parser.add_argument("--reference-steps", type=int, default=800, help="of its training (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of data order and weights (default %(default)s)")
    harness.add_plot(parser)
    harness.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    a = arguments
    picks, steps = sub_batch_size(a.super_batch, a.filter_ratio), tuple(a.steps)
    mistakes = [
        (not 0 < a.filter_ratio < 1, "--filter-ratio", a.filter_ratio, "must lie between 0 and 1"),
        (picks < 32, "--super-batch", a.super_batch, "must leave at least 32 picks"),
        (a.super_batches < 2, "--super-batches", a.super_batches, "must be at least 2, for standard errors"),
        (
            a.super_batch * a.super_batches > 10_000,
            "--super-batches",
            a.super_batches,
            "must hold at most 10000 candidates: learners are trained on the rest of the pool",
        ),
        (steps[0] < 1 or sorted(set(steps)) != list(steps), "--steps", a.steps, "must be positive and ascend"),
        (a.reference_steps < 1, "--reference-steps", a.reference_steps, "must be at least 1"),
        (not 0 <= a.seed < 2**32, "--seed", a.seed, "must be at least 0 and below 2**32"),
    ]

    def measure(_: Path) -> dict[str, Any]:
        return _measure(steps, a.reference_steps, a.super_batch, a.super_batches, picks, a.seed)

    return harness.run(a, mistakes, measure, _table, _plot)


def _measure(
    steps: tuple[int, ...], reference_steps: int, super_batch: int, super_batches: int, picks: int, seed: int
) -> dict[str, Any]:
    import torch  # noqa: PLC0415 - heavy, as are the others

    from selector_tools.bench import resolution_study as study  # noqa: PLC0415
    from selector_tools.bench.measuring import describe  # noqa: PLC0415
    from selector_tools.datasets import icons  # noqa: PLC0415
    from selector_tools.progress import bar  # noqa: PLC0415

    torch.set_num_threads(1)
    started, machine = perf_counter(), describe("cpu")
    setting = study.Setting(steps, reference_steps, super_batch, super_batches, picks, seed)
    with bar("train models", setting.total_steps) as advance:
        figures = study.run(icons.load(), setting, lambda: advance(1))
    return {**figures, "setting": study.described(setting), "seconds": perf_counter() - started, **machine}


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"{'learner':<12}{'step':>5}  {'form':<16}"
        + "".join(f"{column:>15}" for column in COLUMNS)
        + f"{'zero-shot':>11}"
    ]
    for learner, found in result["learners"].items():
        for step, figures in found["after"].items():
            lines.append(f"{learner:<12}{step:>5}  {'full':<16}{'':75}{figures['zero_shot']['full']:11.3f}")
            for form, row in figures["against_full"].items():
                cells = [f"{row[c]['mean']:8.3f} ±{row[c]['error']:.3f}" if c in row else "" for c in COLUMNS]
                accuracy = figures["zero_shot"].get(form)
                lines.append(
                    f"{learner:<12}{step:>5}  {form:<16}"
                    + "".join(f"{cell:>15}" for cell in cells)
                    + (f"{accuracy:11.3f}" if accuracy is not None else "")
                )
    flops = ", ".join(f"{form} {share:.3f}" for form, share in result["flops"].items())
    lines.append(f"image tower's FLOPs: {flops}; overlap of random picks: {result['random_overlap']:.3f}")
    return "\n".join(lines)


def _plot(result: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure  # noqa: PLC0415 - heavy

    panels = {
        "loss": "correlation of\nlearner's losses",
        "own": "correlation of\nown scores",
        "joint": "correlation of scores\ngiven b/2 picks",
        "overlap": "overlap of picks",
    }
    figure = Figure(figsize=(7.2, 7.6), layout="constrained")
    axes = figure.subplots(len(panels), len(result["learners"]), sharex=True, sharey="row", squeeze=False)
    for column, (learner, found) in enumerate(result["learners"].items()):
        axes[0, column].set_title(f"learner: {learner}", fontsize=10)
        axes[-1, column].set_xlabel("training steps")
        for row, (key, label) in enumerate(panels.items()):
            _lines(axes[row, column], found["after"], key)
            axes[row, column].spines[["top", "right"]].set_visible(False)
            axes[row, 0].set_ylabel(label)
    for axis in axes[-1]:
        axis.axhline(result["random_overlap"], color="#8a8780", linewidth=0.8)
        axis.set_ylim(0, 1.05)
        axis.annotate(
            "random picks", (1, result["random_overlap"]), xycoords=("axes fraction", "data"), ha="right", va="bottom"
        )
    handles, labels = axes[-1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=len(labels))
    plots.save(figure, path)


def _lines(axes: Any, after: dict[str, Any], key: str) -> None:
    """Draws one figure of every form against the training steps."""
    for form, style in STYLES.items():
        rows = [figures["against_full"][form] for figures in after.values()]
        points = [(int(step), row[key]) for step, row in zip(after, rows, strict=True) if key in row]
        steps = [step for step, _ in points]
        means, errors = ([point[part] for _, point in points] for part in ("mean", "error"))
        axes.errorbar(steps, means, errors, capsize=3, label=form, **style)
