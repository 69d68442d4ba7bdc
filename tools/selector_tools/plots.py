"""Plots are written so that the same figures give the same file."""

from pathlib import Path
from typing import Any


def save(figure: Any, path: Path) -> None:
    """Writes a matplotlib figure without a date or random ids (svg, png or pdf)."""
    from matplotlib import rc_context  # noqa: PLC0415 - heavy

    with rc_context({"svg.hashsalt": "selector", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
