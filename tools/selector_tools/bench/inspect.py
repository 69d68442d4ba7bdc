"""`selector bench inspect`: what it costs a sidecar that somebody looks at its selections."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from selector_tools.bench import harness


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "inspect",
        help="what it costs a sidecar that somebody looks at its selections",
        description="Selects from the same JPEG files by two sidecars in turns: one keeps what it selected, with "
        "content, and its page is open at the pictures; the other one keeps nothing. Compares the processor time that "
        "the two processes spend on a selection and all that comes of it. Then selects often, with the page open, and "
        "looks whether the process grows.",
    )
    parser.set_defaults(handler=run, extra="server,export,demo")
    parser.add_argument("--candidates", type=int, default=640, help="of a request, B (default %(default)s)")
    parser.add_argument("--pairs", type=int, default=200, help="selections by each, in turns (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=8, help="with new processes (default %(default)s)")
    parser.add_argument("--soak", type=int, default=2000, help="selections on end, for memory (default %(default)s)")
    harness.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    a = arguments
    mistakes = [
        (not 40 <= a.candidates <= 8192, "--candidates", a.candidates, "must be 40 to 8192"),
        (not 2 <= a.pairs <= 10_000, "--pairs", a.pairs, "must be 2 to 10000"),
        (
            not 2 <= a.rounds <= a.pairs or a.pairs % a.rounds,
            "--rounds",
            a.rounds,
            "must be 2 or more and divide --pairs",
        ),
        (not 4 <= a.soak <= 1_000_000, "--soak", a.soak, "must be 4 to 1000000"),
    ]
    return harness.run(a, mistakes, partial(_measure, a), _table)


def _measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from selector_tools.bench import inspect_runs, pinning  # noqa: PLC0415 - heavy, as are the others
    from selector_tools.bench.measuring import describe, ratio_with_interval  # noqa: PLC0415
    from selector_tools.progress import bar  # noqa: PLC0415

    machine = describe("cpu")
    with pinning.apart() as cores, bar("export", a.pairs + a.soak) as advance:
        core = None if cores is None else cores[0]
        spent, page = inspect_runs.in_pairs(folder, core, a.candidates, a.pairs, a.rounds, lambda: advance(1, "pairs"))
        soak = inspect_runs.soak(folder, core, a.candidates, a.soak, lambda: advance(1, "memory"))
    ratio, interval = ratio_with_interval(spent["on"], spent["off"], a.pairs // a.rounds)
    return {
        # The processor time of a selection with the page open, over that without inspection, and its 95 % interval.
        "selection_time_ratio": ratio,
        "selection_time_ratio_interval": interval,
        "rss_growth": soak["rss_growth"],
        "page": page,
        "soak": soak,
        "cpu_seconds": spent,
        "setting": {
            "model": "convolutions and a bag of words at 112 px, learner and reference of different random weights",
            "candidates": a.candidates,
            "filter_ratio": inspect_runs.FILTER_RATIO,
            "file": "JPEG, 224 px, quality 90, with captions, ids and tags",
            "soak": "towers of nearly no work, pixels of 112 px, captions, ids and tags",
            "threads_of_a_sidecar": 1,
            "cores": "a sidecar's and the client's apart" if cores else "not pinned",
            "interval": f"95 %, bootstrap of {a.rounds} rounds of {a.pairs // a.rounds} pairs, each with new processes",
        },
        **machine,
    }


def _table(result: dict[str, Any]) -> str:
    low, high = result["selection_time_ratio_interval"]
    spent = {name: sum(seconds) / len(seconds) for name, seconds in result["cpu_seconds"].items()}
    lines = [
        f"selection_time_ratio {result['selection_time_ratio']:.4f}, 95 % from {low:.4f} to {high:.4f}",
        f"CPU seconds a selection: {spent['on']:.4f} with the page open, {spent['off']:.4f} without inspection",
        f"rss_growth {result['rss_growth']:.4f} over {result['soak']['selections']} selections",
        "page: " + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in result["page"].items()),
    ]
    return "\n".join(lines)
