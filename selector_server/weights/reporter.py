"""Tells the trainer, through the store that both use, what this sidecar needs and why it does not serve the newest."""

import logging
import secrets
import time
from collections.abc import Mapping
from typing import Any

from selector_proto.v1 import weights_pb2 as pb
from selector_proto.weights import clock
from selector_proto.weights.layout import Keys
from selector_proto.weights.link import LinkOptions
from selector_proto.weights.reports import REPORT_SECONDS, REPORT_TTL_SECONDS, encode_learner, encode_report, slot_of
from selector_proto.weights.store import StoreError, StoreRefused
from selector_proto.weights.transports import open_store

from selector_server.weights.versions import Versions

log = logging.getLogger(__name__)

# A store that does not let us write is asked again after so long.
REFUSED_SECONDS = 600.0


class Reporter:
    """Writes the report of one sidecar, from one thread. `shapes` are those of the parameters that its learner needs,
    by name. What cannot be written is left: nothing here depends on it, and a store may be read-only for sidecars."""

    def __init__(
        self,
        url: str,
        run: str,
        versions: Versions[Any],
        shapes: Mapping[str, tuple[int, ...]],
        link: LinkOptions | None = None,
    ) -> None:
        self._store, self._keys, self._versions = open_store(url, link), Keys(run), versions
        self._learner, self._parameters = encode_learner(shapes)
        self._name = secrets.token_hex(8)
        self._told: tuple[str, int, str] | None = None
        self._next = 0.0

    def tell(self) -> None:
        """Writes the report if it is time, or if there is something new to tell."""
        unserved = self._versions.unserved()
        report = pb.SidecarReport(
            sidecar=self._name, serving_version=self._versions.current.version, learner=self._learner
        )
        if unserved is not None:
            report.state, report.version, report.reason = unserved.state.value, unserved.version, unserved.reason
        said = report.state, report.version, report.reason
        news = self._told is not None and said != self._told
        if time.monotonic() < self._next and not news:
            return
        self._next = time.monotonic() + REPORT_SECONDS
        try:
            self._write(report)
            self._told = said
        except StoreRefused as error:
            log.info("weights: the trainer is not told how they are served: %s", error)
            self._told, self._next = None, time.monotonic() + REFUSED_SECONDS
        except StoreError:
            log.debug("weights: no report to the trainer", exc_info=True)

    def _write(self, report: pb.SidecarReport) -> None:
        learner = self._keys.learner(self._learner)
        if not self._store.renew([learner], REPORT_TTL_SECONDS):
            self._store.put_all([(learner, memoryview(self._parameters))], REPORT_TTL_SECONDS)
        dated = pb.SidecarReport(reported_at=clock.now(self._store, self._keys.pointer))
        dated.MergeFrom(report)
        slot = self._keys.report(slot_of(self._name))
        self._store.put_all([(slot, memoryview(encode_report(dated)))], REPORT_TTL_SECONDS)

    def close(self) -> None:
        """Hangs up."""
        self._store.close()
