"""Mistakes on a command line that only the values show: one line each, then exit 2."""

import sys
from collections.abc import Iterable


def any_mistake(command: str, checks: Iterable[tuple[bool, str, object, str]]) -> bool:
    """Prints the first check (wrong, flag, value, limit) that is wrong, as "command: flag is value; limit"."""
    for wrong, flag, value, limit in checks:
        if wrong:
            print(f"{command}: {flag} is {value}; {limit}", file=sys.stderr)
            return True
    return False
