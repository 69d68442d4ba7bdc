"""Publishes the trainer's weights to Redis from a thread of its own.

The trainer pays for one copy of its weights to host memory. Casting, hashing and sending happen in the background;
if that takes longer than the next publication, the newest wins. Failures of Redis are logged and retried, never
raised into the training loop.
"""

import hashlib
import logging
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from selector_proto import safetensors
from selector_proto.chunks import cut
from selector_proto.redis_link import LinkOptions
from selector_proto.safetensors import TensorView
from selector_proto.stores import open_store
from selector_proto.v1 import weights_pb2 as pb
from selector_proto.weights import CHUNK_BYTES, FORMAT, Keys, encode_manifest

log = logging.getLogger(__name__)

MAX_BACKOFF_SECONDS = 5.0
# Wrappers put these in front of parameter names; the sidecar's bundle does not know them.
_PREFIXES = ("module.", "_orig_mod.")
# Smaller tensors (norms, biases, logit scale) keep their precision: they weigh nothing.
_SMALL = 1024
_NAMES = {
    "float32": "F32",
    "float16": "F16",
    "float64": "F64",
    "int64": "I64",
    "int32": "I32",
    "uint8": "U8",
    "bool": "BOOL",
}


@dataclass(frozen=True)
class _Snapshot:
    step: int
    taken_at: float
    tensors: dict[str, tuple[str, NDArray[Any]]]  # name -> safetensors dtype, raw values


class WeightPublisher:
    """Publishes versions of one run.

    `every` publishes only each such call (steps are the caller's business); `dtype` is the wire precision of large
    tensors: bf16 halves the traffic and costs less than one step of staleness. `keep` versions stay in Redis,
    or in the folder of a file:// URL; `link` has the certificates and the password's file.
    """

    def __init__(
        self,
        url: str,
        run: str,
        *,
        every: int = 1,
        dtype: Literal["bf16", "fp16", "fp32"] = "bf16",
        keep: int = 2,
        link: LinkOptions | None = None,
    ) -> None:
        if every < 1 or keep < 2:
            raise ValueError(f"every is {every}, keep is {keep}; must be at least 1 and 2")
        if dtype not in ("bf16", "fp16", "fp32"):
            raise ValueError(f"dtype is {dtype!r}; must be 'bf16', 'fp16' or 'fp32'")
        self._keys, self._every, self._dtype, self._keep = Keys(run), every, dtype, keep
        self._redis = open_store(url, link, write=True)
        self._calls = 0
        self._changed = threading.Condition()
        self._next: _Snapshot | None = None
        self._busy = self._closed = False
        self._live: deque[tuple[int, int]] = deque()  # version, its chunks
        self.published = self.superseded = self.failures = 0
        self.last_version = 0
        self.last_error = ""
        self._thread = threading.Thread(target=self._run, name="weight-publisher", daemon=True)
        self._thread.start()

    def publish(self, step: int, model: Any) -> bool:
        """Takes a copy of the weights of `model` (a module with state_dict(), or a mapping from name to tensor or
        array) and returns; True if this call was one of each `every`."""
        self._calls += 1
        if (self._calls - 1) % self._every:
            return False
        state = model.state_dict() if hasattr(model, "state_dict") else model
        snapshot = _Snapshot(step, time.time(), {_strip(name): _copy(name, value) for name, value in state.items()})
        with self._changed:
            if self._closed:
                raise ValueError("the publisher is closed")
            self.superseded += self._next is not None
            self._next = snapshot
            self._changed.notify_all()
        return True

    def flush(self, timeout: float = 30.0) -> bool:
        """Waits until everything taken so far is published; False if that takes longer than `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._next is None and not self._busy, timeout)

    def close(self, timeout: float = 30.0) -> bool:
        """Flushes and ends the thread."""
        flushed = self.flush(timeout)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout)
        self._redis.close()
        return flushed

    def __enter__(self) -> "WeightPublisher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        backoff = 0.1
        while (snapshot := self._take()) is not None:
            try:
                self._ship(snapshot)
                backoff = 0.1
            except Exception as error:  # not only RedisError: whatever it is, training must go on
                self._failed(error)
                with self._changed:
                    if self._next is None and not self._closed:
                        self._next = snapshot  # try again, unless a newer one comes
                    self._changed.wait_for(lambda: self._closed, backoff)
                backoff = min(backoff * 2, MAX_BACKOFF_SECONDS)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _take(self) -> _Snapshot | None:
        with self._changed:
            self._changed.wait_for(lambda: self._next is not None or self._closed)
            snapshot, self._next = self._next, None
            self._busy = snapshot is not None
            return None if self._closed else snapshot

    def _ship(self, snapshot: _Snapshot) -> None:
        """Chunks, then the manifest, then the pointer: a reader finds the whole version or none."""
        version = self._redis.incr(self._keys.counter)
        views = {name: self._view(dtype, values) for name, (dtype, values) in snapshot.tensors.items()}
        parts = list(safetensors.encode(views))
        size = sum(map(len, parts))
        if self._live and version <= self._live[-1][0]:
            self._live.clear()  # Redis was emptied and counts anew: the old numbers may name new versions
        # Noted before it is written: what a failure leaves half done is swept up with the rest.
        self._live.append((version, -(-size // CHUNK_BYTES)))
        digest = hashlib.sha256()
        for index, chunk in enumerate(cut(parts, CHUNK_BYTES)):
            digest.update(chunk)
            self._redis.set(self._keys.chunk(version, index), chunk)
        manifest = pb.WeightsManifest(
            format=FORMAT,
            run=self._keys.run,
            version=version,
            trainer_step=snapshot.step,
            published_at=snapshot.taken_at,
            payload_bytes=size,
            payload_sha256=digest.digest(),
            chunk_bytes=CHUNK_BYTES,
        )
        self._redis.set(self._keys.manifest(version), encode_manifest(manifest))
        self._redis.move_pointer(self._keys, version)
        self.published += 1
        self.last_version, self.last_error = version, ""
        while len(self._live) > self._keep:
            old, chunks = self._live.popleft()
            self._redis.unlink(self._keys.manifest(old), *(self._keys.chunk(old, i) for i in range(chunks)))

    def _view(self, dtype: str, values: NDArray[Any]) -> TensorView:
        shape = values.shape
        if dtype == "F32" and values.size >= _SMALL and self._dtype != "fp32":
            dtype, values = ("BF16", _to_bf16(values)) if self._dtype == "bf16" else ("F16", values.astype(np.float16))
        return TensorView(dtype, shape, np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        message = f"{type(error).__name__}: {error}"
        if message != self.last_error:
            log.warning("publishing weights failed, will try again: %s", message)
        self.last_error = message


def _strip(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name


def _copy(name: str, value: Any) -> tuple[str, NDArray[Any]]:
    """A host copy that later training steps cannot change."""
    if hasattr(value, "detach"):  # a torch tensor, without importing torch
        value = value.detach().cpu()
        torch = sys.modules["torch"]
        if value.dtype == torch.bfloat16:
            return "BF16", value.contiguous().view(torch.int16).numpy().copy()
        value = value.numpy()
    array = np.array(value)
    if array.dtype.name not in _NAMES:
        raise TypeError(f"{name} has dtype {array.dtype}, which cannot be published")
    return _NAMES[array.dtype.name], array


def _to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounded to nearest even; NaN stays NaN."""
    bits = values.view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
