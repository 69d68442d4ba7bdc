"""Environment variables with our prefix that nobody reads: most are misspelt."""

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches

PREFIX = "SELECTOR_"
# Kubernetes tells each pod of the Services of its namespace, Docker of linked containers: SELECTOR_SERVICE_HOST and
# SELECTOR_PORT_50051_TCP for one that is named selector, SELECTOR_REDIS_PORT for one that is named selector-redis.
_SERVICES = re.compile(
    r"SELECTOR_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)


def is_of_a_service(variable: str) -> bool:
    """Whether it is a variable by which Kubernetes or Docker tell where a service is. No setting has such a name."""
    return _SERVICES.fullmatch(variable) is not None


def unknown(environment: Iterable[str], settings: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yields the variables with our prefix that stand for none of the settings, each with the variable of the setting
    that has the nearest name, or "" if none is near."""
    known = [name.upper() for name in settings]
    for variable in environment:
        name = variable.removeprefix(PREFIX)
        if name != variable and name not in known and not is_of_a_service(variable):
            yield variable, "".join(PREFIX + near for near in get_close_matches(name, known, 1, 0.8))


def variable_of(setting: str) -> str:
    """Returns the environment variable of a setting."""
    return PREFIX + setting.upper()
