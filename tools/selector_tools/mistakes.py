"""What is wrong with a command line or with what it names: one line for people, then exit 2."""

import argparse
import re
import sys
from collections.abc import Callable, Iterable

# Whether a value is wrong, its flag, the value, and the limit that it breaks.
Check = tuple[bool, str, object, str]

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LONGEST = 500


def any_mistake(command: str, checks: Iterable[Check]) -> bool:
    """Prints the first check whose value is wrong, as "command: flag is value; limit". Returns whether there is one."""
    for wrong, flag, value, limit in checks:
        if wrong:
            print(f"{command}: {flag} is {value}; {limit}", file=sys.stderr)
            return True
    return False


def exit_status(command: str, work: Callable[[], None]) -> int:
    """Does the work and returns 0, or 2 after printing the one line that says what is wrong with its inputs."""
    from selector_server.errors import SelectorError  # noqa: PLC0415 - not installed on a trainer

    try:
        work()
    except SelectorError as error:
        print(f"{command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def in_one_line(error: BaseException, *, kind: bool = False) -> str:
    """Returns the first paragraph of what a library says, on one line and without the codes that colour a terminal;
    or the error's type if it says nothing. With `kind`, the type stands before it."""
    name, text = type(error).__name__, _ESCAPES.sub("", str(error)).strip()
    paragraph = " ".join(re.split(r"\n\s*\n", text)[0].split())
    if len(paragraph) > _LONGEST:
        paragraph = paragraph[:_LONGEST] + "…"
    return f"{name}: {paragraph or 'no message'}" if kind else paragraph or name


def seconds(text: str) -> float:
    """Reads the value of a flag that says how long to wait. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1e6:  # NaN fails too
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; must be positive, in seconds")
    return value
