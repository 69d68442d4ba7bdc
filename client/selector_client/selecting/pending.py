"""One selection that is under way. Where candidates have ids only, it looks at those that go on, and at no others."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from selector_proto.v1 import selector_pb2 as pb

from selector_client.errors import RemoteError
from selector_client.selecting.candidates import Candidates
from selector_client.selecting.exclusions import Excluded, merged, read_exclusions
from selector_client.selecting.selection import Prefiltered, Selection

Rows: TypeAlias = NDArray[np.int64]
# Gives, of the candidates of these rows, int64 [n], what `Selector.select` takes: images, texts, perhaps reference.
View: TypeAlias = Callable[[Rows], Mapping[str, Any]]
# Added to the id of the request for a shortlist, this is the id of the request for picks from it.
PICKS_OF = ".picks"


@dataclass
class PendingSelection:
    """One selection, which may be the `first` of a run, from `candidates`. `timeout` is how many seconds it was given
    for itself, if any, and `allowed` how many it may take since `begun`, a time of time.monotonic(). The selector had
    been closed `closings` times then; closing it once more ends the selection.

    If candidates have ids only, `show` reads those of some rows, int64 [n], and its time does not count. `sent` is what
    the sidecar is sent next: all candidates, or, once the sidecar has said which, the `rows` of them that go on."""

    candidates: Candidates
    picks: int
    header: pb.Selection
    timeout: float | None
    first: bool = False
    show: Callable[[Rows], Candidates] | None = None
    allowed: float = 0.0
    closings: int = 0
    begun: float = field(default_factory=time.monotonic)
    started: float = field(default_factory=time.perf_counter)
    retries: int = 0
    sent: Candidates = field(init=False)
    rows: Rows | None = field(init=False, default=None)
    _shortlist: pb.ShortlistResponse = field(init=False, default_factory=pb.ShortlistResponse)

    def __post_init__(self) -> None:
        self.sent = self.candidates

    @property
    def left(self) -> float:
        """How many seconds are left until the deadline."""
        return self.begun + self.allowed - time.monotonic()

    def narrow(self, shortlist: pb.ShortlistResponse) -> None:
        """Reads the candidates that go on, which are sent next. Raises RemoteError if the shortlist is none, and what
        reading them raises."""
        size, rows = self.candidates.size, np.fromiter(shortlist.indices, np.int64, len(shortlist.indices))
        falls, left = (np.diff(rows) <= 0).any(), size - len(rows)
        if len(rows) < self.picks or falls or rows[-1] >= size or shortlist.prefiltered.left_out > left:
            words = (
                f"the server returned a shortlist of {len(rows)} that are not {self.picks} or more of {size}, ascending"
            )
            raise RemoteError("wrong_answer", words)
        try:
            read_exclusions(shortlist.exclusions, size)
        except ValueError as error:
            raise RemoteError("wrong_answer", str(error)) from error
        self.rows, self._shortlist = rows, shortlist
        self.sent = self._read(rows)
        self.sent.header.positions.CopyFrom(self.sent.payload.add(rows))
        self.header.sub_batch_size = self.picks
        self.header.request_id += PICKS_OF

    def read_all(self) -> None:
        """Reads all candidates if they had ids only: to send them all, or because uniform picks are of all of them."""
        if self.show is not None:
            self.candidates, self.rows, self.show = self._read(np.arange(self.candidates.size)), None, None
            self.sent = self.candidates

    def of_all(self, selection: Selection) -> Selection:
        """A selection from those that were sent, as one from all candidates."""
        if (rows := self.rows) is None:
            return selection
        sent = {why: Excluded(rows[one.indices], one.first) for why, one in selection.excluded.items()}
        excluded = merged(read_exclusions(self._shortlist.exclusions, self.candidates.size), sent)
        first, second = self._shortlist.prefiltered, selection.prefiltered
        if second is not None:
            second = Prefiltered(first.known, first.unknown, first.left_out + second.left_out)
        return replace(
            selection,
            indices=rows[selection.indices],
            excluded=excluded,
            cached_references=selection.cached_references + first.left_out,
            not_examined=selection.not_examined + first.left_out,
            prefiltered=second,
        )

    def _read(self, rows: Rows) -> Candidates:
        assert self.show is not None
        started = time.monotonic()
        try:
            return self.show(rows)
        finally:
            seconds = time.monotonic() - started
            self.begun, self.started = self.begun + seconds, self.started + seconds
