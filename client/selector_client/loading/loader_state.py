"""The state_dict of a loader. A checkpoint kept it and anybody may have changed it, so every part of it is checked."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selector_client.loading.resumable import Position
from selector_client.selecting.selection import Selection

_MOST = 2**63 - 1


def process_name() -> str:
    """Returns which of the trainer's processes this is, as torchrun, or Lightning's own launcher, numbers them."""
    environment = os.environ
    return environment.get("RANK") or f"{environment.get('NODE_RANK', 0)}.{environment.get('LOCAL_RANK', 0)}"


@dataclass(frozen=True)
class Picked:
    """A selection, and how many selections its selector had begun when it was made. `dropped` super-batches came before
    its own since the selection before, and `digest` tells its super-batch from others, if it is not empty."""

    selection: Selection
    count: int
    dropped: int = 0
    digest: str = ""


@dataclass(frozen=True)
class LoaderState:
    """Where a loader stands after `steps` sub-batches: at `position`, its selector having begun `count` selections with
    `seed`. `ahead` are the picks of the sub-batches that follow, `picks` is how many are picked of a full super-batch,
    and `process` is which process the state is of."""

    steps: int
    position: Position
    picks: int | None
    seed: int | None
    count: int
    ahead: Sequence[Picked]
    process: str = field(default_factory=process_name)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain numbers, lists and texts."""
        return {
            "steps": self.steps,
            "drawn": self.position.drawn,
            "source": self.position.state,
            "digest": self.position.digest,
            "picks": self.picks,
            "seed": self.seed,
            "count": self.count,
            "ahead": [_ahead(one) for one in self.ahead],
            "process": self.process,
        }

    @staticmethod
    def from_dict(state: Any) -> "LoaderState":
        """Reads what `to_dict` returned. Raises ValueError for what cannot be."""
        return LoaderState(
            whole(state, "steps"),
            Position(whole(state, "drawn"), part(state, "source"), _later(state, "digest", "", text)),
            None if part(state, "picks") is None else whole(state, "picks"),
            None if part(state, "seed") is None else whole(state, "seed", 2**64 - 1),
            whole(state, "count"),
            [_picked(one) for one in items(state, "ahead")],
            text(state, "process"),
        )


def _ahead(picked: Picked) -> dict[str, Any]:
    selection = picked.selection
    captions = {} if selection.captions is None else {"captions": selection.captions.tolist()}
    return {
        "indices": selection.indices.tolist(),
        "fallback": selection.fallback,
        "count": picked.count,
        "dropped": picked.dropped,
        "digest": picked.digest,
    } | captions


def _picked(state: Any) -> Picked:
    rows = indices(state)
    captions = _later(state, "captions", None, numbers)
    if captions is not None and len(captions) != len(rows):
        raise ValueError(f"state: captions are {len(captions)}; must be {len(rows)}, one for each index")
    selection = Selection(indices=rows, fallback=text(state, "fallback"), captions=captions)
    return Picked(
        selection, whole(state, "count"), _later(state, "dropped", 0, whole), _later(state, "digest", "", text)
    )


def _later(state: Any, name: str, default: Any, read: Callable[[Any, str], Any]) -> Any:
    """Reads what states of version 0.1 do not have."""
    return read(state, name) if name in state else default


def part(state: Any, name: str) -> Any:
    """Returns what the state has under that name. Raises ValueError if it has nothing, as the other readers do if it
    has something else."""
    if not isinstance(state, Mapping) or name not in state:
        raise ValueError(f"state: {name} is missing in {str(state)[:100]}")
    return state[name]


def whole(state: Any, name: str, most: int = _MOST) -> int:
    """Returns a whole number from 0 to `most`."""
    return _whole(part(state, name), name, most)


def text(state: Any, name: str) -> str:
    """Returns a text."""
    value = part(state, name)
    if not isinstance(value, str):
        raise ValueError(f"state: {name} is {str(value)[:100]}; must be text")
    return value


def items(state: Any, name: str) -> Sequence[Any]:
    """Returns the entries of a list."""
    value = part(state, name)
    if not isinstance(value, list | tuple):
        raise ValueError(f"state: {name} is {str(value)[:100]}; must be a list")
    return value


def indices(state: Any) -> NDArray[np.int64]:
    """Returns the `indices` of a selection, int64 [b], of which there is at least one and which are all different."""
    values = [_whole(value, "an index") for value in items(state, "indices")]
    if not values or len(set(values)) != len(values):
        raise ValueError(f"state: indices are {str(values)[:100]}; must be one or more, all different")
    return np.array(values, np.int64)


def numbers(state: Any, name: str) -> NDArray[np.int64]:
    """Returns a list of whole numbers, int64."""
    return np.array([_whole(value, name) for value in items(state, name)], np.int64)


def _whole(value: Any, name: str, most: int = _MOST) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"state: {name} is {str(value)[:100]}; must be 0 to {most}")
    return value
