"""Which version of the weights is served. A version is whole and immutable; swapping is one assignment."""

import time
from dataclasses import dataclass, field
from enum import Enum
from threading import Lock
from typing import Generic, TypeVar

W = TypeVar("W")


class SyncState(Enum):
    """How the served version relates to the source's newest."""

    OFF = "off"
    WAITING = "waiting"
    CURRENT = "current"
    REJECTED = "rejected"
    DISCONNECTED = "disconnected"


@dataclass(frozen=True)
class Version(Generic[W]):
    """One set of weights, bound and ready. Version 0 came with the bundle. `published_at` in Unix seconds."""

    version: int
    trainer_step: int
    published_at: float
    weights: W

    def age_seconds(self) -> float:
        return max(0.0, time.time() - self.published_at)


@dataclass(frozen=True)
class Status:
    """What the subscriber last saw."""

    state: SyncState = SyncState.OFF
    newest_version: int = 0
    last_error: str = ""
    swaps: int = 0
    rejections: int = 0


@dataclass
class Store(Generic[W]):
    """The served version and the status of its source. A request takes `current` once and keeps that version; the
    old set is freed when its last request lets go of it."""

    current: Version[W]
    status: Status = field(default_factory=Status)
    _lock: Lock = field(default_factory=Lock)

    def swap(self, version: Version[W]) -> None:
        """Serves `version` from the next request on."""
        with self._lock:
            self.current = version
            self.status = Status(SyncState.CURRENT, version.version, "", self.status.swaps + 1, self.status.rejections)

    def report(self, state: SyncState, newest: int | None = None, error: str = "", rejected: bool = False) -> None:
        """Records why the newest version is not served."""
        with self._lock:
            old = self.status
            newest = old.newest_version if newest is None else newest
            self.status = Status(state, newest, error, old.swaps, old.rejections + rejected)
