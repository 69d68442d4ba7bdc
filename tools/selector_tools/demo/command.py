"""The flags of `selector demo`."""

import argparse
from pathlib import Path
from typing import Any

from selector_tools.demo.rules import DEFAULT, ORDERS, RULES
from selector_tools.mistakes import any_mistake


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "demo",
        help="train with and without selection, and show what it brings",
        description="Starts a Redis-protocol server and sidecars, trains a small SigLIP on icons in batches that are "
        "drawn at random and in batches that a sidecar picks, and writes a report.",
    )
    parser.set_defaults(handler=run, extra="demo")
    parser.add_argument(
        "--arms", default=",".join(DEFAULT), help=f"comma-separated, of {', '.join(RULES)} (default %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=600, help="training steps of an arm (default %(default)s)")
    parser.add_argument(
        "--order",
        choices=tuple(ORDERS),
        default="stored",
        help="of the pool: neighbours resemble each other, as a crawl stores them, or not (default %(default)s)",
    )
    parser.add_argument("--noise", type=float, default=0.0, help="share of captions shuffled (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of data order, weights and draws (default %(default)s)")
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="runs of each arm, by seeds from --seed on (default 1)"
    )
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder of the report (default %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    arms = [arm.strip() for arm in arguments.arms.split(",")]
    mistakes = [
        (
            not set(arms) <= set(RULES) or len(set(arms)) != len(arms),
            "--arms",
            arguments.arms,
            f"each once, of {', '.join(RULES)}",
        ),
        (
            arms[0] != "uniform",
            "--arms",
            arguments.arms,
            "must begin with uniform, which the others are compared with",
        ),
        (arguments.steps < 8, "--steps", arguments.steps, "must be at least 8"),
        (not 0 <= arguments.noise <= 1, "--noise", arguments.noise, "must lie between 0 and 1"),
        (arguments.seed < 0, "--seed", arguments.seed, "must be 0 or more"),
        (arguments.seeds < 1, "--seeds", arguments.seeds, "must be at least 1"),
    ]
    if any_mistake("selector demo", mistakes):
        return 2
    from selector_tools.demo.run import Options  # noqa: PLC0415 - needs the demo extra
    from selector_tools.demo.run import run as run_demo  # noqa: PLC0415

    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    run_demo(Options(arms, arguments.steps, arguments.order, arguments.noise), seeds, arguments.out)
    return 0
