"""Mistakes on a command line that the values show: one line each, then exit 2."""

import argparse
import sys
from collections.abc import Callable, Iterable


def any_mistake(command: str, checks: Iterable[tuple[bool, str, object, str]]) -> bool:
    """Prints the first check (wrong, flag, value, limit) that is wrong, as "command: flag is value; limit"."""
    for wrong, flag, value, limit in checks:
        if wrong:
            print(f"{command}: {flag} is {value}; {limit}", file=sys.stderr)
            return True
    return False


def exit_status(command: str, work: Callable[[], None]) -> int:
    """Of `work`: 0, or 2 after the one line that says what is wrong with its inputs."""
    from selector_server.errors import SelectorError  # noqa: PLC0415 - not installed on a trainer

    try:
        work()
    except SelectorError as error:
        print(f"{command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def seconds(text: str) -> float:
    """The value of a flag that says how long to wait. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1e6:  # NaN fails too
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; must be positive, in seconds")
    return value
