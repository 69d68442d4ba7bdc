"""The versions of the weights that are in memory, and which of them is served. A version is whole and immutable;
swapping is one assignment."""

import logging
import time
from dataclasses import dataclass
from enum import Enum
from threading import Lock
from typing import Generic, TypeVar

from selector_proto.weights.reports import printable

from selector_server.errors import NotPossible
from selector_server.weights.dating import Dated
from selector_server.weights.history import Event, History, Outcome

W = TypeVar("W")
log = logging.getLogger(__name__)


class SyncState(Enum):
    """How the served version relates to the newest one that was published."""

    OFF = "off"
    WAITING = "waiting"
    CURRENT = "current"
    REJECTED = "rejected"
    DISCONNECTED = "disconnected"
    PINNED = "pinned"


@dataclass(frozen=True)
class Version(Generic[W]):
    """One set of weights, bound and ready. Version 0 came with the bundle, and with the sidecar's start. `publisher` is
    the name in its manifest."""

    version: int
    trainer_step: int
    published: Dated
    weights: W
    publisher: str = ""

    def age_seconds(self) -> float:
        """Seconds since it was published."""
        return time.monotonic() - self.published.at


@dataclass(frozen=True)
class Status:
    """What the subscriber last saw."""

    state: SyncState = SyncState.OFF
    newest_version: int = 0
    last_error: str = ""
    swaps: int = 0
    rejections: int = 0


@dataclass(frozen=True)
class Unserved:
    """Why the newest version is not served; `version` is 0 if none could be read."""

    version: int
    state: SyncState
    reason: str


class Versions(Generic[W]):
    """The served version, those that can be pinned, and how following the run goes. A request takes `current` once and
    keeps that version.

    In memory, and so ready to be pinned, are the bundle's weights, the `latest` version that was taken and the one
    before it; older ones are freed when their last request lets go of them. `current` is the latest or the pinned.
    """

    def __init__(self, bundled: Version[W]) -> None:
        self.current = self.latest = bundled
        self.status = Status()
        self.pinned: int | None = None
        self._bundled = self._previous = bundled
        self._unpinned = self.status  # to go back to
        self._history = History()
        self._lock = Lock()
        self._add(bundled, "the bundle's own weights")

    def swap(self, version: Version[W]) -> bool:
        """Serves `version` from the next request on; False if another one has been pinned meanwhile."""
        with self._lock:
            if self.pinned is not None:
                return False
            self._previous, self.latest = self.latest, version
            self.current = version
            self.status = Status(SyncState.CURRENT, version.version, "", self.status.swaps + 1, self.status.rejections)
            self._add(version, "")
        return True

    def report(self, state: SyncState, newest: int | None = None, error: str = "", rejected: bool = False) -> None:
        """Records why the newest version is not served."""
        with self._lock:
            old, error = self.status, printable(error)
            newest = old.newest_version if newest is None else newest
            if self.pinned is not None:
                state, error = SyncState.PINNED, error or self._pin_reason(newest)
            self.status = Status(state, newest, error, old.swaps, old.rejections + rejected)

    def unserved(self) -> Unserved | None:
        """Why the newest version is not served; None if it is, or if nothing was published."""
        status, served = self.status, self.current.version
        newer = status.newest_version if status.newest_version != served else 0
        if status.state in (SyncState.REJECTED, SyncState.DISCONNECTED) or (status.state is SyncState.PINNED and newer):
            return Unserved(newer, status.state, status.last_error)
        return None

    def record(self, outcome: Outcome, version: int, trainer_step: int | None, reason: str) -> None:
        """Remembers what happened to a version that is not served."""
        with self._lock:
            self._history.add(Event(version, trainer_step, outcome, printable(reason)))

    def history(self) -> list[Event]:
        """The last events, oldest first."""
        with self._lock:
            return self._history.events()

    def pinnable(self) -> dict[int, Version[W]]:
        """The versions in memory, by number. Two may share a number after the store restarted empty; then it is the
        later one."""
        return {v.version: v for v in (self._bundled, self._previous, self.latest)}

    def pin(self, version: int) -> Version[W]:
        """Serves a version that is in memory, and no other until `unpin`. Raises NotPossible."""
        with self._lock:
            known = self.pinnable()
            if version not in known:
                kept = ", ".join(map(str, sorted(known)))
                raise NotPossible("version", version, f"only versions in memory can be pinned: {kept}")
            if self.pinned is None:
                self._unpinned = self.status
            old, self.pinned, self.current = self.status, version, known[version]
            reason = self._pin_reason(old.newest_version)
            self.status = Status(SyncState.PINNED, old.newest_version, reason, old.swaps, old.rejections)
            self._add(self.current, "pinned")
        log.warning("weights: version %d is pinned", version)
        return self.current

    def unpin(self) -> Version[W]:
        """Goes back to the latest version; newer ones are taken again."""
        with self._lock:
            if self.pinned is None:
                return self.current
            old, before = self.status, self._unpinned
            self.pinned, self.current = None, self.latest
            self.status = Status(before.state, old.newest_version, before.last_error, old.swaps, old.rejections)
            self._add(self.current, "unpinned")
        log.warning("weights: unpinned; version %d is served", self.current.version)
        return self.current

    def _pin_reason(self, newest: int) -> str:
        return "" if newest == self.current.version else f"version {self.current.version} is pinned"

    def _add(self, version: Version[W], reason: str) -> None:
        self._history.add(Event(version.version, version.trainer_step, Outcome.SERVED, reason))
