"""What rows are called: a short name to link to, which stays the same when rows come and go, and words for people."""

from dataclasses import fields
from typing import Any

from selector_tools.study.cells import Cell

USUAL: dict[str, Any] = {field.name: field.default for field in fields(Cell)}


def anchor(cell: Cell, prefix: str = "") -> str:
    """Returns the name of a cell's row: its rule, and what is not as usual."""
    pool = "" if cell.pool == "icons" else f"{cell.pool}-"
    words = [cell.rule.replace("_", "-")]
    if cell.noise:
        words.append(f"wrong{100 * cell.noise:g}")
    if cell.stream != USUAL["stream"]:
        words.append(cell.stream)
    if cell.reference != USUAL["reference"]:
        words.append(cell.reference)
    for name, short in (("steps", "steps"), ("batch", "b"), ("publish_every", "every")):
        if (value := getattr(cell, name)) != USUAL[name]:
            words.append(f"{short}{value}")
    if cell.filter_ratio != USUAL["filter_ratio"]:
        words.append(f"f{100 * cell.filter_ratio:g}")
    if cell.resolution is not None:
        words.append(cell.resolution)
    return prefix + pool + "-".join(words)


def setting(cell: Cell) -> str:
    """Returns on what a cell is trained and scored, but for the rule, as far as it is not as usual."""
    words = [] if cell.pool == "icons" else [cell.pool]
    if cell.stream != "natural":
        words.append({"hot": "hot items"}.get(cell.stream, f"{cell.stream} stream"))
    if cell.noise:
        words.append(f"{100 * cell.noise:g} % wrong")
    if cell.reference != USUAL["reference"]:
        words.append(f"{cell.reference} reference")
    if cell.filter_ratio != USUAL["filter_ratio"]:
        words.append(f"f = {cell.filter_ratio:g}")
    for name, told in (("steps", "{} steps"), ("batch", "b = {}"), ("publish_every", "weights every {}")):
        if (value := getattr(cell, name)) != USUAL[name]:
            words.append(told.format(f"{value:,}"))
    if cell.resolution is not None:
        words.append(f"scored at {cell.resolution} resolution")
    return ", ".join(words) or "as usual"


def label(cell: Cell) -> str:
    """Returns what a cell's rule is called."""
    return cell.how.label
