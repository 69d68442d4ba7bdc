"""Parts of a state_dict, which a checkpoint kept and anybody may have changed. Each raises ValueError."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST = 2**63 - 1


def part(state: Any, name: str) -> Any:
    """What is there under that name."""
    if not isinstance(state, Mapping) or name not in state:
        raise ValueError(f"state: {name} is missing in {str(state)[:100]}")
    return state[name]


def whole(state: Any, name: str) -> int:
    """A number from 0 to 2^63 - 1."""
    return _whole(part(state, name), name)


def text(state: Any, name: str) -> str:
    value = part(state, name)
    if not isinstance(value, str):
        raise ValueError(f"state: {name} is {str(value)[:100]}; must be text")
    return value


def items(state: Any, name: str) -> Sequence[Any]:
    value = part(state, name)
    if not isinstance(value, list | tuple):
        raise ValueError(f"state: {name} is {str(value)[:100]}; must be a list")
    return value


def indices(state: Any) -> NDArray[np.int64]:
    """`indices` of a selection: at least one, all different."""
    values = [_whole(value, "an index") for value in items(state, "indices")]
    if not values or len(set(values)) != len(values):
        raise ValueError(f"state: indices are {str(values)[:100]}; must be one or more, all different")
    return np.array(values, np.int64)


def _whole(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST:
        raise ValueError(f"state: {name} is {str(value)[:100]}; must be 0 to {_MOST}")
    return value
