"""What every verb of `selector bench` does: it checks its flags, measures, and prints a table or one JSON object."""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from selector_tools.mistakes import any_mistake, exit_status

Mistake = tuple[bool, str, object, str]  # whether it is one, the flag, its value, and what it must be


def run(
    arguments: argparse.Namespace,
    mistakes: Iterable[Mistake],
    measure: Callable[[Path], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
    plot: Callable[[dict[str, Any], Path], None] | None = None,
) -> int:
    """Returns the exit status: 2 after a line that names a wrong flag or input, else 0.

    `measure` is given an empty folder, which is removed afterwards. `plot` draws the result into the file that --plot
    names.
    """
    command = f"selector bench {arguments.bench}"
    if any_mistake(command, mistakes):
        return 2

    def work() -> None:
        with TemporaryDirectory() as folder:
            result = measure(Path(folder))
        if plot is not None and arguments.plot is not None:
            plot(result, arguments.plot)
        print(json.dumps(result) if arguments.json else table(result))

    return exit_status(command, work)


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_plot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the result (svg, png or pdf)")


def add_model(parser: argparse.ArgumentParser, repeats: str) -> None:
    """Adds the flags of the benchmarks that serve a model; `repeats` says what --repeats counts."""
    parser.add_argument("--open-clip", default="ViT-S-16", metavar="NAME", help="architecture (default %(default)s)")
    parser.add_argument("--image-size", type=int, default=112, help="pixels a side (default %(default)s)")
    parser.add_argument("--candidates", type=int, default=64, help="of a request, B (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help=f"{repeats} (default %(default)s)")
    add_json(parser)


def model_mistakes(a: argparse.Namespace) -> list[Mistake]:
    """Checks the flags of `add_model`."""
    return [
        (a.image_size < 16 or a.image_size % 16 != 0, "--image-size", a.image_size, "must be a multiple of 16"),
        (not 5 <= a.candidates <= 65536, "--candidates", a.candidates, "must be 5 to 65536"),
        (a.repeats < 1, "--repeats", a.repeats, "must be at least 1"),
    ]
