"""Publishes the trainer's weights to Redis from a thread of its own.

The trainer pays for one copy of its weights to host memory. Casting, hashing and sending happen in the background;
if that takes longer than the next publication, the newest wins. Failures of Redis are logged and retried, never
raised into the training loop.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from os import PathLike
from types import TracebackType
from typing import Any, Literal

import numpy as np
from selector_proto.activations import activations
from selector_proto.copying import copy_threads
from selector_proto.weights.layout import ACTIVATIONS, CANARY, Keys
from selector_proto.weights.link import LinkOptions
from selector_proto.weights.reports import MAX_REASON
from selector_proto.weights.store import StoreError
from selector_proto.weights.transports import open_store

from selector_client.errors import PublishError
from selector_client.publishing import frozen
from selector_client.publishing.canary import Canary
from selector_client.publishing.listeners import Listeners, learner_of
from selector_client.publishing.model_state import ModelState, Naming, Unfit, is_sharded, whole
from selector_client.publishing.shipping import BaseLost, Fenced, Shipper, Unsafe
from selector_client.publishing.snapshot import Base, Snapshot
from selector_client.publishing.wire_payload import Precision

log = logging.getLogger(__name__)

MAX_BACKOFF_SECONDS = 5.0
# Sharded tensors are gathered one by one, and about so many bytes of them are held until they are copied.
_GATHERED_BYTES = 64 << 20
# Live keys are renewed at least this often, and live four times as long.
HEARTBEAT_SECONDS = 15.0
_HEARING_SECONDS = 1.0


class WeightPublisher:
    """Publishes versions of one run. Only the publisher that was started last for a run may publish.

    With `every=n` only each n-th call publishes (steps are the caller's business). `dtype` is the wire precision of
    large tensors: bf16 halves the traffic and costs less than one step of staleness. `keep` versions stay in Redis, or
    in the folder of a file:// URL, and two more for slow readers; in Redis all of the run's keys die `ttl` seconds
    after this process. `link` has the certificates and the password's file. Only `rank` 0 publishes; other ranks take
    part in gathering sharded tensors (by default it is torch.distributed's rank, or 0 without it). `on_error="raise"`
    makes `publish` raise PublishError if it cannot copy the weights, or what came before could not be published;
    otherwise failures are logged and counted, and what was copied is tried again.

    `weights`, `strip_prefix` and `add_prefix` say what of the model is published, and under which names: see Naming.
    Adapters (LoRA) are merged on the way. `learner` is the folder of the sidecar's bundle, if the trainer sees it: a
    model that cannot be meant for it is refused here. Without it, what the sidecars report of theirs is what counts.
    With `skip_frozen`, parameters that need no gradient travel once, and again when they change; sidecars older than
    this version cannot take what is published then.

    `published`, `superseded` and `failures` count, `refused` the models that were not published because no learner
    could serve them, and `refusals` the versions that sidecars refused; `unserved` has how many sidecars do not serve
    the newest at present, by their state. `last_version`, `last_error` and `fenced` tell how it goes, and `unsafe` why
    what is published may vanish: a Redis that evicts, found out at the heartbeat.
    """

    def __init__(
        self,
        url: str,
        run: str,
        *,
        every: int = 1,
        dtype: Precision = "bf16",
        keep: int = 2,
        ttl: float = 3600.0,
        rank: int | None = None,
        link: LinkOptions | None = None,
        on_error: Literal["count", "raise"] = "count",
        weights: Callable[[Any], Any] | Mapping[str, str] | None = None,
        strip_prefix: str = "",
        add_prefix: str = "",
        learner: str | PathLike[str] | None = None,
        skip_frozen: bool = False,
    ) -> None:
        if every < 1 or keep < 2:
            raise ValueError(f"every is {every}, keep is {keep}; must be at least 1 and 2")
        if dtype not in ("bf16", "fp16", "fp32"):
            raise ValueError(f"dtype is {dtype!r}; must be 'bf16', 'fp16' or 'fp32'")
        if on_error not in ("count", "raise"):
            raise ValueError(f"on_error is {on_error!r}; must be 'count' or 'raise'")
        if not 1 <= ttl <= 30 * 86400:
            raise ValueError(f"ttl is {ttl}; must be 1 second to 30 days")
        self._every, self._rank, self._on_error = every, rank, on_error
        keys, self._naming = Keys(run), Naming(weights, strip_prefix, add_prefix)
        given = None if learner is None else learner_of(learner)
        store = open_store(url, link, write=True)
        self._shipper = Shipper(store, keys, dtype, keep, max(1, round(ttl)))
        self._listeners = Listeners(store, keys, given)
        self._next_hearing = 0.0
        self._skip_frozen = skip_frozen
        self._base: Base | None = None
        self._heartbeat = min(HEARTBEAT_SECONDS, ttl / 4)
        self._next_beat = time.monotonic() + self._heartbeat
        self._calls = 0
        self._changed = threading.Condition()
        self._next: Snapshot | None = None
        # These are not being filled, not waiting and not under way, so their buffers are used again.
        self._idle: list[Snapshot] = []
        self._shipped: Snapshot | None = None  # is shipped again if Redis loses it
        self._left_out: set[str] = set()  # the log has warned of these
        self._busy = self._closed = self._turned_away = False
        self.published = self.superseded = self.failures = self.refused = 0
        self.last_version = 0
        self.last_error = ""
        self.fenced = False
        self._copiers = ThreadPoolExecutor(copy_threads(), thread_name_prefix="weight-copier")
        self._thread = threading.Thread(target=self._run, name="weight-publisher", daemon=True)
        self._thread.start()

    def publish(self, step: int, model: Any, canary: Canary | None = None) -> bool:
        """Copies the weights of `model` (a module with state_dict(), or a mapping from name to tensor or array) and
        returns. The result is True if `every` let this call publish, this is the rank that publishes, and no other
        publisher owns the run. With sharded tensors (FSDP, DTensor), every rank must call it. What has a dtype that
        cannot travel is left out, with a warning. A copy that fails, for want of memory for instance, is counted like
        what fails later, or raises PublishError. A sharded tensor that cannot be gathered always raises PublishError,
        since the other ranks wait for this one. A canary that cannot be, and a closed publisher, raise ValueError."""
        self._calls += 1
        if (self._calls - 1) % self._every:
            return False
        own_rank = self._rank if self._rank is not None else _rank()
        try:
            state = self._naming.state(model)
        except Exception as error:  # on every rank alike: nobody gathers anything
            return own_rank == 0 and self._not_copied(error)
        tensors = _gathered(state)
        try:
            if own_rank != 0:
                return False
            beside = _told(model) | ({} if canary is None else canary.tensors())
            return self._copied(step, state, tensors, beside)
        finally:
            if state.sharded:  # every rank must take part in gathering every tensor, also one that nobody keeps
                deque(tensors, maxlen=0)

    def _copied(
        self, step: int, state: ModelState, tensors: Iterator[tuple[str, Any]], canary: Mapping[str, Any]
    ) -> bool:
        with self._changed:
            if self._closed:
                raise ValueError("the publisher is closed")
            if self._on_error == "raise" and self.last_error:
                raise PublishError("publish", self.last_error)
            if self.fenced:
                return False
            base = self._base
        try:
            published = state.check(self._listeners.learners).tensors
            samples = frozen.samples(state) if self._skip_frozen else {}
        except Exception as error:
            return self._not_copied(error)
        still = set() if base is None else {name for name, one in samples.items() if base.samples.get(name) == one}
        with self._changed:
            snapshot = self._idle.pop() if self._idle else Snapshot()
        snapshot.base, snapshot.samples = base if still else None, samples
        wanted = ((name, value) for name, value in tensors if name in published and name not in still)
        snapshot.step, snapshot.taken_at = step, time.monotonic()
        try:
            snapshot.fill(chain(wanted, canary.items()), self._copiers, _GATHERED_BYTES if state.gathered else math.inf)
        except Exception as error:
            with self._changed:
                self._idle.append(snapshot)
            return self._not_copied(error)
        if missing := snapshot.left_out.keys() - self._left_out:
            named = ", ".join(f"{name} ({snapshot.left_out[name]})" for name in sorted(missing)[:10])
            log.warning("%d tensors have dtypes that cannot be published and are left out: %s", len(missing), named)
            self._left_out |= missing
        with self._changed:
            if self._next is not None:
                self.superseded += 1
                self._idle.append(self._next)
            self._next = snapshot
            self._changed.notify_all()
        return True

    def _not_copied(self, error: Exception) -> bool:
        """Counts it, or raises PublishError; returns False."""
        if isinstance(error, PublishError):
            raise error
        self._failed(error)
        if self._on_error == "raise":
            message, self.last_error = self.last_error, ""  # it is told here
            raise PublishError("publish", message) from error
        return False

    @property
    def refusals(self) -> int:
        """How many of the versions were refused by a sidecar, each counted once for each sidecar that did."""
        return self._listeners.refusals

    @property
    def unsafe(self) -> str:
        """Why what is published may vanish; empty if it may not."""
        return self._shipper.danger

    @property
    def unserved(self) -> Mapping[str, int]:
        """How many sidecars do not serve the newest version at present: "rejected", "pinned"."""
        return self._listeners.unserved

    def flush(self, timeout: float = 30.0) -> bool:
        """Waits until everything taken so far is published. Returns False if that takes longer than `timeout` seconds,
        if no sidecar can serve it, or if another publisher owns the run."""
        with self._changed:
            done = self._changed.wait_for(lambda: self._next is None and not self._busy, timeout)
            return done and not self.fenced and not self._turned_away

    def close(self, timeout: float = 30.0) -> bool:
        """Flushes, ends the threads, and returns what `flush` returned."""
        flushed = self.flush(timeout)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout)
        self._shipper.close()
        self._copiers.shutdown()
        return flushed

    def __enter__(self) -> "WeightPublisher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        backoff = 0.1
        while not self._closed:
            snapshot = self._take()
            try:
                self._hear()
                lost = self._lost()
                if snapshot is not None:
                    self._ship(snapshot)
                elif lost and self._shipped is not None:
                    log.warning("Redis lost version %d of the weights; it is published again", self.last_version)
                    self._ship(self._shipped)
                backoff = 0.1
            except Fenced:
                self._give_up()
            except Unfit as error:
                self._turn_away(snapshot, error)
            except BaseLost:
                self._start_anew(snapshot)
            except Exception as error:  # not only StoreError: whatever it is, training must go on
                self._failed(error)
                with self._changed:
                    if snapshot is not None and self._next is None and not self._closed:
                        self._next = snapshot  # it is tried again, unless a newer one comes
                    elif snapshot is not None:
                        self._idle.append(snapshot)
                    self._changed.wait_for(lambda: self._closed, min(backoff, self._heartbeat))
                backoff = min(backoff * 2, MAX_BACKOFF_SECONDS)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _take(self) -> Snapshot | None:
        """Waits for the snapshot to publish. Returns None when it is time to renew what is published."""
        with self._changed:
            left = None if self.fenced else max(0.0, self._next_beat - time.monotonic())
            ready = self._changed.wait_for(lambda: self._next is not None or self._closed, left)
            if not ready or self._closed or self.fenced:
                self._next = None if self.fenced else self._next
                return None
            snapshot, self._next = self._next, None
            self._busy = True
            return snapshot

    def _hear(self) -> None:
        """Asks what the sidecars report, at each publication and each heartbeat, but not more than once a second."""
        if not self._closed and not self.fenced and time.monotonic() >= self._next_hearing:
            self._next_hearing = time.monotonic() + _HEARING_SECONDS
            self._listeners.hear()

    def _turn_away(self, snapshot: Snapshot | None, error: Unfit) -> None:
        """No sidecar that we know of can serve it. It is not tried again: a newer one will come."""
        self._failed(error)
        with self._changed:
            self._turned_away = True
            if snapshot is not None:
                self._idle.append(snapshot)

    def _start_anew(self, snapshot: Snapshot | None) -> None:
        """The version that a partial one rests on was lost, so that the next one must be whole."""
        log.warning("Redis lost the whole version that others rest on; the next one is whole again")
        with self._changed:
            self._base = None
            if snapshot is not None:
                self._idle.append(snapshot)

    def _lost(self) -> bool:
        """Renews what is published when it is time, also while newer versions come or fail. Returns True if the newest
        version is gone."""
        if self._closed or self.fenced or time.monotonic() < self._next_beat:
            return False
        self._next_beat = time.monotonic() + self._heartbeat
        return not self._shipper.refresh()

    def _ship(self, snapshot: Snapshot) -> None:
        if snapshot.base is None:  # the others rest on one that was let through
            tensors = {name: array for name, (_, array) in snapshot.tensors.items() if not name.startswith(CANARY)}
            ModelState(tensors, frozenset()).check(self._listeners.learners)
        version = self._shipper.ship(snapshot)
        with self._changed:
            self._turned_away = False
            if self._shipped is not None and self._shipped is not snapshot:
                self._idle.append(self._shipped)
            self._shipped = snapshot
            if self._skip_frozen and snapshot.base is None:
                self._base = Base(version, self._shipper.newest_blake3, snapshot.samples)
            self.published += 1
            self.last_version, self.last_error = version, ""

    def _give_up(self) -> None:
        if not self.fenced:
            log.error("another publisher of the same run was started; this one publishes nothing more")
        self.fenced, self.last_error = True, "fenced: another publisher of the same run was started"

    def _failed(self, error: Exception) -> None:
        with self._changed:
            self.failures += 1
            self.refused += isinstance(error, Unfit)
        named = str(error) if isinstance(error, (StoreError, Unfit)) else f"{type(error).__name__}: {error}"
        message = named[
            : MAX_REASON if isinstance(error, Unfit) else 300
        ]  # errors of a pipeline quote the values that were sent
        if message != self.last_error:
            log.log(
                logging.ERROR if isinstance(error, Unsafe) else logging.WARNING,
                "publishing weights failed, training goes on: %s",
                message,
            )
        self.last_error = message


def _gathered(state: ModelState) -> Iterator[tuple[str, Any]]:
    """Yields names and tensors. Those that are sharded, or merged from a weight and its adapters, are made when it is
    their turn, because all of them at once may not fit into memory. Raises PublishError if gathering fails."""
    for name, value in state.tensors.items():
        if not is_sharded(value):
            yield name, whole(value)
            continue
        try:
            gathered = [whole(value)]
        except Exception as error:
            raise PublishError("gather", f"{name}: {type(error).__name__}: {error}") from error
        yield name, gathered.pop()  # this way nothing here keeps it alive


def _told(model: Any) -> dict[str, Any]:
    """Returns what the sidecar is told of the model, beside its weights: they would fit one of another activation."""
    names = ",".join(activations(model))
    return {ACTIVATIONS: np.frombuffer(names.encode(), np.uint8)} if names else {}


def _rank() -> int:
    """Returns the rank of this process among those that train together, without importing torch."""
    import sys  # noqa: PLC0415

    torch = sys.modules.get("torch.distributed")
    return int(torch.get_rank()) if torch is not None and torch.is_available() and torch.is_initialized() else 0
