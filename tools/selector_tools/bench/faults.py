"""`selector bench faults`: what bad samples, and a killed sidecar, do to a training run."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from selector_tools.bench import harness

SHARES = (0.0, 0.002, 0.01, 0.05)


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "faults",
        help="what bad samples and a killed sidecar do to a training run",
        description="Reads super-batches from WebDataset shards in which 0, 0.2, 1 and 5 %% of the samples are bad "
        "(truncated, in a wrong format, without a caption, too large, or there twice), and selects jointly through a "
        "real sidecar with a cold cache: how many sub-batches are uniform, and how many candidates are excluded. Then "
        "once more at 5 %%, with the sidecar killed in mid-run.",
    )
    parser.set_defaults(handler=run, extra="server,export,demo")
    parser.add_argument("--super-batch", type=int, default=200, metavar="B", help="(default %(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="of each run (default %(default)s)")
    harness.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    a = arguments
    mistakes = [
        (not 20 <= a.super_batch <= 4096, "--super-batch", a.super_batch, "must be 20 to 4096"),
        (not 3 <= a.steps <= 10_000, "--steps", a.steps, "must be 3 to 10000"),
    ]
    return harness.run(a, mistakes, partial(_measure, a), _table)


def _measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from selector_tools.bench import faults_runs  # noqa: PLC0415 - heavy, as are the others
    from selector_tools.bench.faulty_shards import write_shards  # noqa: PLC0415
    from selector_tools.bench.measuring import describe  # noqa: PLC0415
    from selector_tools.progress import bar  # noqa: PLC0415

    machine, runs = describe("cpu"), {}
    with bar("export", len(SHARES) + 2) as advance:
        flags = faults_runs.bundles(folder)
        for share in SHARES:
            advance(1, f"{share:.1%} bad")
            shards = write_shards(folder / f"shards-{share}", share, a.super_batch, a.steps)
            runs[f"{share:g}"] = faults_runs.run(folder, flags, shards, killed=False)
        advance(1, f"{share:.1%} bad, sidecar killed")
        killed = faults_runs.run(folder, flags, shards, killed=True)
        advance(1)
    return {
        "uniform_share": {name: one["uniform_share"] for name, one in runs.items()},
        "excluded_share": {name: one["excluded_share"] for name, one in runs.items()},
        "as_planted": all(one["excluded"] == one["planted"] for one in runs.values()),
        "sub_batches_all_of_size_b": all(one["sizes"] == [one["b"]] for one in (*runs.values(), killed)),
        "exceptions": [one["exception"] for one in (*runs.values(), killed) if one["exception"]],
        "runs": runs,
        "killed": killed,
        "setting": {
            "model": "the demo's, 1.3 million parameters, 32 px, random weights",
            "super_batch": a.super_batch,
            "steps": a.steps,
            "policy": "joint",
            "cache": "cold",
            "faults": "by turns: unreadable, format, missing, too_large, repeated",
        },
        **machine,
    }


def _table(result: dict[str, Any]) -> str:
    head = f"{'bad':>14} {'uniform':>8} {'excluded':>9} {'planted':>9} {'sizes':>8} {'seconds':>8}"
    runs = {**result["runs"], "0.05, killed": result["killed"]}
    return "\n".join([head, *(_row(name, one) for name, one in runs.items())])


def _row(name: str, one: dict[str, Any]) -> str:
    sizes = ", ".join(map(str, one["sizes"]))
    shares = f"{one['uniform_share']:>8.1%} {one['excluded_share']:>9.3%} {one['planted_share']:>9.3%}"
    return f"{name:>14} {shares} {sizes:>8} {one['seconds']:>8.1f}  {one['exception']}".rstrip()
