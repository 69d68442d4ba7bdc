"""`selector bench loader`: how long a trainer waits for its selections."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from selector_tools.bench import harness

# A selection that takes so much of a training step hides behind it.
HIDES = 0.8


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "loader",
        help="how long a trainer waits for its selections",
        description="Trains the demo's model over a real sidecar, each on one core: the share of time that the trainer "
        "waits, with selections made ahead and without, at a third, half and four fifths filtered away. What is told "
        f"first is of the largest filter ratio at which scoring takes at most {HIDES:g} of a training step.",
    )
    parser.set_defaults(handler=run, extra="server,export,demo")
    parser.add_argument("--steps", type=int, default=300, help="timed steps of each run (default %(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="b (default %(default)s)")
    harness.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    a = arguments
    mistakes = [
        (a.steps < 1, "--steps", a.steps, "must be at least 1"),
        (not 16 <= a.batch <= 1024, "--batch", a.batch, "must be 16 to 1024"),
    ]
    return harness.run(a, mistakes, partial(_measure, a), _table)


def _measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from selector_tools.bench import loader_runs  # noqa: PLC0415 - heavy, as are the others
    from selector_tools.bench.measuring import describe  # noqa: PLC0415
    from selector_tools.progress import bar  # noqa: PLC0415

    machine = describe("cpu")
    with bar("icons, export, cache", None) as advance:
        tables = loader_runs.measured(folder, a.batch, a.steps, lambda stage: advance(0, stage))
    hidden = [table for table in tables.values() if table["scoring_over_step"] <= HIDES]
    return {
        **max(hidden or [tables["third"]], key=lambda table: table["filter_ratio"]),
        **tables,
        "setting": {
            "model": "the demo's, 1.3 million parameters, 32 px",
            "batch": a.batch,
            "chunks": loader_runs.CHUNKS,
            "steps": a.steps,
            "reference": "cached",
            "published": f"every {loader_runs.PUBLISH_EVERY} steps",
        },
        **machine,
    }


def _table(result: dict[str, Any]) -> str:
    names = ["filter_ratio", "step_seconds", "scoring_seconds", "scoring_over_step", "wait_share"]
    names += ["wait_share_without_prefetch", "decodes_saved"]
    tables = [result[name] for name in ("third", "half", "most")]
    return "\n".join(f"{name:>28}" + "".join(f"{table[name]:>10.4f}" for table in tables) for name in names)
