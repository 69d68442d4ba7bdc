"""Flags of the benchmarks that serve a model, and what they do with them."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from selector_tools.mistakes import any_mistake, exit_status


def add(parser: argparse.ArgumentParser, repeats: str) -> None:
    """Model, super-batch and output; `repeats` says what --repeats counts."""
    parser.add_argument("--open-clip", default="ViT-S-16", metavar="NAME", help="architecture (default %(default)s)")
    parser.add_argument("--image-size", type=int, default=112, help="pixels a side (default %(default)s)")
    parser.add_argument("--candidates", type=int, default=64, help="of a request, B (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help=f"{repeats} (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def measured(
    command: str,
    a: argparse.Namespace,
    measure: Callable[[argparse.Namespace, Path], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
    *more: tuple[bool, str, object, str],
) -> int:
    """Checks the flags (`more` are the command's own checks), measures in a folder of its own, prints."""
    mistakes = [
        (a.image_size < 16 or a.image_size % 16 != 0, "--image-size", a.image_size, "must be a multiple of 16"),
        (not 5 <= a.candidates <= 65536, "--candidates", a.candidates, "must be 5 to 65536"),
        (a.repeats < 1, "--repeats", a.repeats, "must be at least 1"),
        *more,
    ]
    if any_mistake(command, mistakes):
        return 2

    def work() -> None:
        with TemporaryDirectory() as folder:
            result = measure(a, Path(folder))
        print(json.dumps(result) if a.json else table(result))

    return exit_status(command, work)
