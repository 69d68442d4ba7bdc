"""Mistakes on a command line that only the values show: one line each, then exit 2."""

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
