"""Markdown as the page writes it: tables whose rows can be linked to, and numbers in one form."""

import math
import re
from collections.abc import Iterable, Sequence

NOTHING = "-"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table, or an empty string if it has no rows."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *lines]) if lines else ""


def mark(name: str) -> str:
    """Returns the first cell of a row, which others link to by this name."""
    return f'<a id="{name}"></a>{link(name)}'


def link(name: str) -> str:
    """Returns a link to the row of this name."""
    return f"[{name}](#{name})"


def once(text: str) -> str:
    """Drops all marks of a name but the first one, for a page may show a row again."""
    seen: set[str] = set()

    def first(found: re.Match[str]) -> str:
        if found[1] in seen:
            return ""
        seen.add(found[1])
        return found[0]

    return re.sub(r'<a id="([^"]*)"></a>', first, text)


def points(share: float, error: float | None = None, *, sign: bool = False) -> str:
    """Shows a share of 0.291 as 29.1, in percent or points, with its error if there is one."""
    if math.isnan(share):
        return NOTHING
    told = f"{100 * share:+.1f}" if sign else f"{100 * share:.1f}"
    return told if error is None else f"{told} ± {100 * error:.1f}"


def times(ratio: float | None) -> str:
    """Shows how many times less is needed, or that it is never reached, or that nothing can be said (NaN)."""
    if ratio is not None and math.isnan(ratio):
        return NOTHING
    return "never" if ratio is None else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def big(number: float) -> str:
    """Shows a number of FLOPs by three digits."""
    return f"{number:.2e}".replace("e+", "e") if number else "0"


def whole(number: float) -> str:
    """Shows a count, or that there is none, or that nothing can be said (NaN)."""
    if math.isnan(number):
        return NOTHING
    return "never" if math.isinf(number) else f"{number:,.0f}"


def paragraphs(parts: Iterable[str]) -> str:
    """Joins what is not empty, with empty lines between."""
    return "\n\n".join(part for part in parts if part)
