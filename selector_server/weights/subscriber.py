"""Keeps the served version at the newest one that can be trusted.

One thread looks at the pointer; if that moved, it fetches, verifies, binds and swaps. Whatever fails, the version that
is served stays, and the status says why.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from threading import Event, Thread
from typing import Generic, TypeVar

from selector_proto.safetensors import TensorView
from selector_proto.weights.reports import printable
from selector_proto.weights.store import StoreError

from selector_server.errors import NotPossible, SelectorError
from selector_server.telemetry.metrics import Metrics
from selector_server.weights.dating import Dated, Dating
from selector_server.weights.fetcher import Fetched, Fetcher, Incomplete, News
from selector_server.weights.history import Outcome
from selector_server.weights.reporter import Reporter
from selector_server.weights.versions import SyncState, Version, Versions

W = TypeVar("W")
log = logging.getLogger(__name__)

# The pause after the store failed is doubled each time, up to this.
MAX_BACKOFF_SECONDS = 5.0
# So is the pause while the newest version cannot be read whole, since each try may fetch all of it. News end the pause.
MAX_INCOMPLETE_SECONDS = 60.0
# The store's settings are looked at as often as a publisher does.
WATCH_SECONDS = 15.0
# So many publishers of the past are remembered: each is a start of the trainer.
_PUBLISHERS = 256


class Subscriber(Generic[W]):
    """Follows one run in a thread of its own, from `start` to `stop`.

    `bind` turns a version's tensors into weights that the learner can serve, or raises SelectorError; it is the last
    check (names, shapes, finite values, a canary) before the swap. It is also given what times its phases. What else it
    raises is counted as a refusal too, and tried again, later and later. `reporter` tells the trainer of it.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        versions: Versions[W],
        bind: Callable[[Mapping[str, TensorView], Callable[[str], AbstractContextManager[None]]], W],
        metrics: Metrics,
        poll_seconds: float,
        news: News,
        reporter: Reporter | None = None,
    ) -> None:
        self._fetcher, self._versions, self._bind, self._metrics = fetcher, versions, bind, metrics
        self._poll_seconds, self._news, self._reporter = poll_seconds, news, reporter
        self._stop = Event()
        self._refused = 0
        self._next_watch, self._danger = 0.0, ""
        # Manifests of the versions served and refused, by number: a store that restarted empty counts from one again.
        self._known: dict[int, bytes] = {}
        self._dating = Dating(metrics.weights)
        # Those whose versions were served, the last one last.
        self._publishers: deque[str] = deque(maxlen=_PUBLISHERS)
        self._thread = Thread(target=self._run, name="weights", daemon=True)
        versions.report(SyncState.WAITING)

    def start(self) -> None:
        """Begins to follow the run."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; waits for a fetch under way."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=10)
        self._fetcher.close()
        self._news.close()
        if self._reporter is not None:
            self._reporter.close()

    def _run(self) -> None:
        pause = self._poll_seconds
        while not self._stop.is_set():
            try:
                settled = self.poll()
                self._metrics.weights.connected.set(1)
                self._watch()
                pause = self._poll_seconds if settled else min(pause * 2, MAX_INCOMPLETE_SECONDS)
                if self._reporter is not None:
                    self._reporter.tell()
            except StoreError as error:
                self._metrics.weights.connected.set(0)
                self._report(SyncState.DISCONNECTED, None, str(error))
                pause = min(pause * 2, MAX_BACKOFF_SECONDS)
            except Exception as error:  # a bug must not silently freeze the weights: say it and go on
                log.exception("weights: unexpected failure")
                self._report(SyncState.REJECTED, None, f"{type(error).__name__}: {error}")
                pause = min(pause * 2, MAX_BACKOFF_SECONDS)
            try:
                self._news.wait(pause, self._stop)
            except Exception:  # nobody may rely on announcements, least of all this thread
                log.exception("weights: announcements cannot be waited for")
                self._stop.wait(pause)

    def _watch(self) -> None:
        """Tells when the store begins or ceases to be one that throws away what is published."""
        if time.monotonic() < self._next_watch:
            return
        self._next_watch = time.monotonic() + WATCH_SECONDS
        danger = self._fetcher.danger()
        self._metrics.weights.evicts.set(bool(danger))
        if danger and danger != self._danger:
            log.warning("weights may vanish before they are fetched: %s", danger)
        elif self._danger and not danger:
            log.warning("weights do not vanish any more before they are fetched")
        self._danger = danger

    def poll(self) -> bool:
        """Looks at the store once, and swaps if a newer version is whole and sound. False asks for another try."""
        newest, text, step = 0, b"", None
        try:
            newest = self._fetcher.newest()
            self._metrics.weights.newest.set(newest)
            self._dating.saw(newest)
            if self._versions.pinned is not None:
                self._versions.report(SyncState.PINNED, newest)
                return True
            if newest == 0 or self._knows(newest, text := self._fetcher.manifest(newest)):
                self._settle(newest)
                return True
            with self._timed("fetch"):
                fetched = self._fetcher.fetch(newest, text)
                clocks = self._fetcher.clocks(fetched.manifest)
            step = fetched.manifest.trainer_step
            self._must_be_later(fetched)
            if self._swap(fetched, self._dating.date(fetched.manifest.published_at, clocks)):
                self._refused, self._known = 0, {newest: text}
        except Incomplete as error:
            # Chunks of an old version may just have been dropped for a newer one, so it is worth another look.
            self._metrics.weights.sync.labels("incomplete").inc()
            if newest:  # else the pointer itself is damaged
                self._versions.record(Outcome.INCOMPLETE, newest, None, str(error))
            self._report(SyncState.REJECTED, newest, str(error))
            return False
        except SelectorError as error:
            # The same bytes will be refused again: wait for the next version.
            self._refused = newest
            self._known = {v: t for v, t in self._known.items() if v == self._versions.latest.version} | {newest: text}
            self._refuse(newest, step, error)
        except Exception as error:  # no memory to bind it just now, or a bug: perhaps not the next time
            if step is None:
                raise
            log.exception("weights: version %d cannot be taken over", newest)
            self._refuse(newest, step, f"{type(error).__name__}: {error}")
            return False
        return True

    def _knows(self, version: int, text: bytes) -> bool:
        """Whether this very version was served or refused before; its manifest may be gone by now."""
        return version in self._known and text in (self._known[version], b"")

    def _refuse(self, version: int, step: int | None, reason: object) -> None:
        self._metrics.weights.sync.labels("refused").inc()
        self._versions.record(Outcome.REFUSED, version, step, str(reason))
        self._report(SyncState.REJECTED, version, f"version {version}: {reason}", rejected=True)

    def _must_be_later(self, fetched: Fetched) -> None:
        """A number that is not higher is news all the same if its publisher is new: the store was emptied. So is a
        higher number of a lower step: the trainer went back to a checkpoint. Raises NotPossible for anything else: a
        publisher never gives out a lower number than before, and one that had a successor is not to be followed again.
        No clock is asked, for it may be wrong."""
        manifest, served = fetched.manifest, self._versions.latest
        if manifest.version <= served.version and manifest.publisher in self._publishers:
            limit = f"must be after version {served.version}, which is served, since its publisher is known"
            raise NotPossible("version", manifest.version, limit)

    def _settle(self, newest: int) -> None:
        """There is nothing new: clears what an earlier failure reported, unless the newest version was refused."""
        if newest == 0:
            self._versions.report(SyncState.WAITING, newest)
        elif newest != self._refused:
            self._versions.report(SyncState.CURRENT, newest)
        elif self._versions.status.state is not SyncState.REJECTED:
            self._versions.report(SyncState.REJECTED, newest, f"version {newest} was refused before")

    def _swap(self, fetched: Fetched, dated: Dated) -> bool:
        manifest = fetched.manifest
        weights = self._bind(fetched.tensors, self._timed)
        version = Version(manifest.version, manifest.trainer_step, dated, weights, manifest.publisher)
        with self._timed("swap"):
            if not self._versions.swap(version):
                return False
        if manifest.publisher not in self._publishers:
            self._publishers.append(manifest.publisher)
        self._metrics.weights.sync.labels("served").inc()
        self._metrics.weights.sync_bytes.inc(manifest.payload_bytes)
        log.info("weights: serving version %d of trainer step %d", manifest.version, manifest.trainer_step)
        return True

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        """Times a phase. Phases that fail count too: a slow fetch that ends in nothing is one to see."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._metrics.weights.sync_seconds.labels(phase).observe(time.perf_counter() - started)

    def _report(self, state: SyncState, newest: int | None, error: str, rejected: bool = False) -> None:
        error = printable(error)
        if error != self._versions.status.last_error:
            log.warning("weights: %s; version %d goes on serving", error, self._versions.current.version)
        self._versions.report(state, newest, error, rejected)
