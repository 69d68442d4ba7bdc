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
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from selector_proto.activations import activations
from selector_proto.copying import copy_threads
from selector_proto.weights.layout import ACTIVATIONS, CANARY, MAX_CANARY, Keys
from selector_proto.weights.link import LinkOptions
from selector_proto.weights.store import StoreError
from selector_proto.weights.transports import open_store

from selector_client.errors import PublishError
from selector_client.publishing.shipping import Fenced, Shipper, Unsafe
from selector_client.publishing.snapshot import Snapshot
from selector_client.publishing.wire_payload import Precision

log = logging.getLogger(__name__)

MAX_BACKOFF_SECONDS = 5.0
# Sharded tensors are gathered one by one, and about so many bytes of them are held until they are copied.
_GATHERED_BYTES = 64 << 20
# Live keys are renewed at least this often, and live four times as long.
HEARTBEAT_SECONDS = 15.0


@dataclass(frozen=True)
class Canary:
    """Samples, and the embeddings that the trainer's model computed of them with the weights it publishes. The sidecar
    serves the weights only if it comes to the same embeddings. `pixels` are uint8 [n, H, W, C] of the bundle's size and
    `tokens` int [n, T], as they are sent to be selected from; `image` and `text` are float [n, D]; n is 1 to 16."""

    pixels: ArrayLike
    tokens: ArrayLike
    image: ArrayLike
    text: ArrayLike

    def tensors(self) -> dict[str, Any]:
        """Returns the arrays as they travel beside the weights. Raises ValueError if their lengths do not fit."""
        arrays = {name: np.asarray(value) for name, value in vars(self).items()}
        if not 1 <= len(arrays["pixels"]) <= MAX_CANARY or len({len(array) for array in arrays.values()}) != 1:
            raise ValueError(
                f"canary has {[len(a) for a in arrays.values()]} samples; must be 1 to {MAX_CANARY}, all the same"
            )
        dtypes = {"pixels": np.uint8, "tokens": np.int64, "image": np.float32, "text": np.float32}
        return {CANARY + name: array.astype(dtypes[name]) for name, array in arrays.items()}


class WeightPublisher:
    """Publishes versions of one run. Only the publisher that was started last for a run may publish.

    With `every=n` only each n-th call publishes (steps are the caller's business). `dtype` is the wire precision of
    large tensors: bf16 halves the traffic and costs less than one step of staleness. `keep` versions stay in Redis, or
    in the folder of a file:// URL, and two more for slow readers; in Redis all of the run's keys die `ttl` seconds
    after this process. `link` has the certificates and the password's file. Only `rank` 0 publishes; other ranks take
    part in gathering sharded tensors (by default it is torch.distributed's rank, or 0 without it). `on_error="raise"`
    makes `publish` raise PublishError if it cannot copy the weights, or what came before could not be published;
    otherwise failures are logged and counted, and what was copied is tried again.

    `published`, `superseded` and `failures` count; `last_version`, `last_error` and `fenced` tell how it goes.
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
        keys = Keys(run)
        self._shipper = Shipper(open_store(url, link, write=True), keys, dtype, keep, max(1, round(ttl)))
        self._heartbeat = min(HEARTBEAT_SECONDS, ttl / 4)
        self._next_beat = time.monotonic() + self._heartbeat
        self._calls = 0
        self._changed = threading.Condition()
        self._next: Snapshot | None = None
        # These are not being filled, not waiting and not under way, so their buffers are used again.
        self._idle: list[Snapshot] = []
        self._shipped: Snapshot | None = None  # is shipped again if Redis loses it
        self._left_out: set[str] = set()  # the log has warned of these
        self._busy = self._closed = False
        self.published = self.superseded = self.failures = 0
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
        state = model.state_dict() if hasattr(model, "state_dict") else model
        tensors = _gathered(state)
        try:
            if (self._rank if self._rank is not None else _rank()) != 0:
                return False
            most = _GATHERED_BYTES if any(map(_sharded, state.values())) else math.inf
            beside = _told(model) | ({} if canary is None else canary.tensors())
            return self._copied(step, chain(tensors, beside.items()), most)
        finally:
            deque(tensors, maxlen=0)  # every rank must take part in gathering every tensor, also one that nobody keeps

    def _copied(self, step: int, tensors: Iterator[tuple[str, Any]], most_bytes: float) -> bool:
        with self._changed:
            if self._closed:
                raise ValueError("the publisher is closed")
            if self._on_error == "raise" and self.last_error:
                raise PublishError("publish", self.last_error)
            if self.fenced:
                return False
            snapshot = self._idle.pop() if self._idle else Snapshot()
        snapshot.step, snapshot.taken_at = step, time.time()
        try:
            snapshot.fill(tensors, self._copiers, most_bytes)
        except Exception as error:
            with self._changed:
                self._idle.append(snapshot)
            if isinstance(error, PublishError):
                raise
            if self._on_error == "raise":
                raise PublishError("publish", f"{type(error).__name__}: {error}") from error
            self._failed(error)
            return False
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

    def flush(self, timeout: float = 30.0) -> bool:
        """Waits until everything taken so far is published. Returns False if that takes longer than `timeout` seconds,
        or if another publisher owns the run."""
        with self._changed:
            return self._changed.wait_for(lambda: self._next is None and not self._busy, timeout) and not self.fenced

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
                lost = self._lost()
                if snapshot is not None:
                    self._ship(snapshot)
                elif lost and self._shipped is not None:
                    log.warning("Redis lost version %d of the weights; it is published again", self.last_version)
                    self._ship(self._shipped)
                backoff = 0.1
            except Fenced:
                self._give_up()
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

    def _lost(self) -> bool:
        """Renews what is published when it is time, also while newer versions come or fail. Returns True if the newest
        version is gone."""
        if self._closed or self.fenced or time.monotonic() < self._next_beat:
            return False
        self._next_beat = time.monotonic() + self._heartbeat
        return not self._shipper.refresh()

    def _ship(self, snapshot: Snapshot) -> None:
        version = self._shipper.ship(snapshot)
        with self._changed:
            if self._shipped is not None and self._shipped is not snapshot:
                self._idle.append(self._shipped)
            self._shipped = snapshot
            self.published += 1
            self.last_version, self.last_error = version, ""

    def _give_up(self) -> None:
        if not self.fenced:
            log.error("another publisher of the same run was started; this one publishes nothing more")
        self.fenced, self.last_error = True, "fenced: another publisher of the same run was started"

    def _failed(self, error: Exception) -> None:
        with self._changed:
            self.failures += 1
        named = str(error) if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"
        message = named[:300]  # errors of a pipeline quote the values that were sent
        if message != self.last_error:
            log.log(
                logging.ERROR if isinstance(error, Unsafe) else logging.WARNING,
                "publishing weights failed, training goes on: %s",
                message,
            )
        self.last_error = message


def _gathered(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields names and tensors. Sharded tensors are gathered when it is their turn, because all of them at once may not
    fit into memory. Raises PublishError."""
    for name, value in state.items():
        if not _sharded(value):
            yield name, value
            continue
        try:
            whole = [value.full_tensor()]
        except Exception as error:
            raise PublishError("gather", f"{name}: {type(error).__name__}: {error}") from error
        yield name, whole.pop()  # this way nothing here keeps it alive


def _told(model: Any) -> dict[str, Any]:
    """Returns what the sidecar is told of the model, beside its weights: they would fit one of another activation."""
    names = ",".join(activations(model))
    return {ACTIVATIONS: np.frombuffer(names.encode(), np.uint8)} if names else {}


def _sharded(value: Any) -> bool:
    return hasattr(value, "full_tensor")


def _rank() -> int:
    """Returns the rank of this process among those that train together, without importing torch."""
    import sys  # noqa: PLC0415

    torch = sys.modules.get("torch.distributed")
    return int(torch.get_rank()) if torch is not None and torch.is_available() and torch.is_initialized() else 0
