"""What the publisher knows of those for whom it publishes: what their learners need, and whether they serve it."""

import logging
import time
from collections import Counter
from os import PathLike
from pathlib import Path

from selector_proto.safetensors import MAX_HEADER_BYTES, LayoutError, entries
from selector_proto.v1 import weights_pb2 as pb
from selector_proto.weights import clock
from selector_proto.weights.layout import Keys
from selector_proto.weights.reports import (
    MAX_LEARNER_BYTES,
    MAX_REPORT_BYTES,
    REPORT_TTL_SECONDS,
    SLOTS,
    ReportError,
    decode_learner,
    decode_report,
    kind_of,
)
from selector_proto.weights.store import Store, StoreError, StoreUnavailable

log = logging.getLogger(__name__)

Shapes = dict[str, tuple[int, ...]]
_WEIGHTS = "weights.safetensors"
# So many kinds of reasons are told, sidecars remembered, and learners; more are no trainer's.
_MOST = 64


def learner_of(bundle: str | PathLike[str]) -> Shapes:
    """Reads what a bundle's learner needs, shapes by name, from the header of its weights. Raises ValueError."""
    file = Path(bundle) / _WEIGHTS
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > MAX_HEADER_BYTES:
                raise LayoutError(f"header length {length} exceeds {MAX_HEADER_BYTES} bytes")
            shapes = {name: shape for name, _, shape in entries(stream.read(length))}
    except (OSError, LayoutError) as error:
        raise ValueError(f"learner is {bundle}; must be the folder of a learner's bundle: {error}") from error
    if not shapes:
        raise ValueError(f"learner is {bundle}; its weights are empty")
    return shapes


class Listeners:
    """Reads the reports of a run's sidecars. `hear` is for one thread; the rest may be read from any.

    `refusals` counts the versions that a sidecar refused, each once for each sidecar. A sidecar that has not reported
    for a while is forgotten. `given` is what the learner needs, where the trainer was told."""

    def __init__(self, store: Store, keys: Keys, given: Shapes | None) -> None:
        self._store, self._keys, self._given = store, keys, given
        self._reports: dict[str, tuple[float, pb.SidecarReport]] = {}
        self._shapes: dict[str, Shapes] = {}
        self._warned: set[str] = set()
        self._deaf = False
        self._counted: dict[str, int] = {}
        self.learners: tuple[Shapes, ...] = () if given is None else (given,)
        self.refusals = 0
        self.unserved: Counter[str] = Counter()

    def hear(self) -> None:
        """Reads what the sidecars say now, and logs each reason for not serving what is published once. Raises
        StoreUnavailable; what else goes wrong costs what would have been heard."""
        rooms = [memoryview(bytearray(MAX_REPORT_BYTES)) for _ in range(SLOTS)]
        try:
            now = clock.now(self._store, self._keys.pointer)
            lengths = self._store.read_into([self._keys.report(slot) for slot in range(SLOTS)], rooms)
            for room, length in zip(rooms, lengths, strict=False):
                if 0 < length <= len(room):
                    self._take(bytes(room[:length]), now)
        except StoreUnavailable:
            raise
        except StoreError as error:
            if not self._deaf:
                log.warning("the sidecars' reports cannot be read: %s", error)
            self._deaf = True
        oldest = time.monotonic() - REPORT_TTL_SECONDS
        self._reports = {name: heard for name, heard in self._reports.items() if heard[0] > oldest}
        self.unserved = Counter(report.state for _, report in self._reports.values() if report.state)
        if self._given is None:
            live = {report.learner for _, report in self._reports.values()}
            self._shapes = {name: shapes for name, shapes in self._shapes.items() if name in live}
            self.learners = tuple(self._shapes.values()) if live == self._shapes.keys() else ()

    def _take(self, value: bytes, now: float) -> None:
        try:
            report = decode_report(value, now)
        except ReportError:
            log.debug("a sidecar's report cannot be believed", exc_info=True)
            return
        if report.sidecar not in self._reports and len(self._reports) >= _MOST:
            return
        self._reports[report.sidecar] = time.monotonic(), report
        if report.learner and report.learner not in self._shapes and self._given is None:
            self._learn(report.learner)
        if report.state:
            self._tell(report)

    def _learn(self, name: str) -> None:
        value = self._store.first_bytes(self._keys.learner(name), MAX_LEARNER_BYTES + 1)
        try:
            if value:
                self._shapes[name] = decode_learner(name, value)
        except ReportError:
            log.debug("what a learner needs cannot be believed", exc_info=True)

    def _tell(self, report: pb.SidecarReport) -> None:
        if report.state == "rejected" and report.version != self._counted.get(report.sidecar):
            self._counted = dict([*self._counted.items(), (report.sidecar, report.version)][-_MOST:])
            self.refusals += 1
        kind = f"{report.state} {kind_of(report.reason)}"
        if kind in self._warned or len(self._warned) >= _MOST:
            return
        self._warned.add(kind)
        log.warning(
            "a sidecar does not serve version %d of these weights (%s), but version %d; training goes on: %s",
            report.version,
            report.state,
            report.serving_version,
            report.reason,
        )
