"""Everything about a selection except the call itself, for the blocking selector and for its asyncio twin."""

import logging
import os
import random
import re
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from selector_proto.v1 import selector_pb2 as pb

from selector_client.errors import Misrouted, RemoteError, SelectorClientError, Unreachable, Untrusted
from selector_client.selecting.bad_samples import BadSamples, Id
from selector_client.selecting.breaker import Breaker
from selector_client.selecting.candidates import Candidates, Ids, Images, ModelEmbeddings, Texts
from selector_client.selecting.columns import Advertised, Terms
from selector_client.selecting.credentials import ACCESS_FIELDS, Access
from selector_client.selecting.exclusions import Exclusions, uniform
from selector_client.selecting.expectation import DEFAULT_SECONDS, Expectation
from selector_client.selecting.ids import read_ids
from selector_client.selecting.link import Link
from selector_client.selecting.pending import PendingSelection, Rows, View
from selector_client.selecting.selection import Selection, Statistics
from selector_client.selecting.settings import Settings
from selector_client.selecting.shuffling import Shuffling
from selector_client.selecting.unserved import Unserved

log = logging.getLogger(__name__)

OFF = "SELECTOR_OFF"
# A request may be sent again so often. It has an id, so that the sidecar runs it once however often it comes.
MAX_RETRIES = 2
FIRST_RETRY_SECONDS = 0.05
CONNECT_PAUSE_SECONDS = 0.1
# All requests together may be retried once for so many answers, and at most so often in a row.
ANSWERS_A_RETRY = 10
RETRIES_AT_ONCE = 10
# These failures may pass soon: certificates, for instance, may be rotated just now.
_FOR_NOW = ("unavailable", "resource_exhausted", "untrusted")
# These say that the request itself is wrong.
_MISTAKES = ("invalid_argument", "unimplemented", "out_of_range")
# These stay as they are until somebody changes the request, the sidecar or the way to it.
_LASTING = (*_MISTAKES, "proxy", "unauthenticated", "permission_denied", "no_shared_memory")
# But these words are about one sample. Sidecars of version 0.1 refuse a request for the first that they cannot use.
_ONE_SAMPLE = re.compile(r"INVALID_ARGUMENT: (samples|sample_ids|embeddings|losses)[\w.]*(\[\d+\]| is \S+ at \[\d+)")
# These say that it makes no shortlists: sidecars of version 0.1 do not, nor does one without a cache or a reference.
_NO_SHORTLISTS = re.compile(r"UNIMPLEMENTED: |FAILED_PRECONDITION: (prefilter|samples) is ")
# These say that none can be used of what it was sent.
_NONE_LEFT = re.compile(r"FAILED_PRECONDITION: candidates left is 0 of ")
# And these that what the trainer keeps with its data is of another reference than the sidecar's.
_OTHER_REFERENCE = re.compile(r"FAILED_PRECONDITION: samples\.reference\.fingerprint is ")


class Session:
    """What a selector keeps between selections: seed, retries, breaker, fallbacks and statistics. It may be used from
    several threads.

    The environment variable SELECTOR_OFF, set to anything but 0, turns every selection into a uniform one.
    """

    def __init__(
        self,
        address: str,
        timeout: float | None,
        seed: int | None,
        on_error: Literal["fallback", "raise"],
        **settings: Any,
    ) -> None:
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout is {timeout}; must be positive")
        if on_error not in ("fallback", "raise"):
            raise ValueError(f"on_error is {on_error!r}; must be 'fallback' or 'raise'")
        self.address, self._timeout = address, timeout
        self.access = Access.of(address, **{name: settings.pop(name) for name in ACCESS_FIELDS & settings.keys()})
        self.settings = Settings(**settings)
        self.expectation, self._patience = Expectation(self.settings), DEFAULT_SECONDS
        self.statistics = Statistics()
        self._unserved, self._shuffling = Unserved(self.statistics.unserved), Shuffling()
        self.bad_samples = BadSamples(self.settings.warn_excluded_share)
        self.sidecar = Advertised()
        self.off = is_off()
        self._on_error = on_error
        self.seed = secrets.randbits(64) if seed is None else seed
        self.count = 0  # selections that were begun; seed and count together decide the noise of the next one
        self._budget = float(RETRIES_AT_ONCE)
        self._selected = False
        self._no_shortlists = False
        self._lock = threading.Lock()
        self._warned: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """A process that is spawned gets everything but locks, threads and the connection."""
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "link", "breaker")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()

    def reach(self, link: Link) -> None:
        """Says through what the sidecar is reached. To be called once, and in a copy again."""
        self.link, self.breaker = link, Breaker(link.healthy)

    @property
    def timeout(self) -> float:
        """How many seconds a selection may take: what was set, or else what the last one was given."""
        return self._patience if self._timeout is None else self._timeout

    def resume(self, count: int, seed: int | None = None) -> None:
        """Makes the next selection the one that follows `count` others, and gives it another seed if there is one."""
        with self._lock:
            self.count = count
            if seed is not None:
                self.seed = seed

    def samples(
        self,
        images: Images,
        texts: Texts,
        ids: Ids | None,
        reference: ModelEmbeddings | None = None,
        seed: int | None = None,
    ) -> Candidates:
        """Makes candidates of raw samples, of which several captions are drawn by the seed of the selection: the next
        one, if none is given. Raises ValueError or TypeError."""
        with self._lock:
            seed = self._next_seed if seed is None else seed
        return Candidates.samples(images, texts, ids, Terms(self.settings.strict, seed, self.sidecar), reference)

    def begin_by_ids(
        self, ids: Ids, view: View, step: int | None, timeout: float | None, sub_batch_size: int | None
    ) -> PendingSelection:
        """Makes the request of a selection from candidates that have ids only, as `begin` does."""
        pending = self.begin(Candidates.named(ids, self.settings.strict), step, timeout, sub_batch_size)
        pending.show = partial(self._shown, view, pending.candidates.ids, pending.header.seed)
        return pending

    def _shown(self, view: View, ids: Sequence[Id | None], seed: int, rows: Rows) -> Candidates:
        """Makes candidates of what the view shows of these rows. Raises what the view raises, and ValueError if that
        has other ids."""
        shown, names = dict(view(rows)), [ids[row] for row in rows.tolist()]
        own = shown.pop("ids", None)
        if own is not None and read_ids(own, Exclusions(), {}) != names:
            raise ValueError("ids: the view gives others than the candidates are asked for by; it need not give any")
        recent, tags = shown.pop("recent", None), shown.pop("tags", None)
        return self.samples(**shown, ids=names, seed=seed).with_recent(recent).with_tags(tags)

    def shortlists(self) -> bool:
        """Whether the sidecar is asked for a shortlist of candidates that have ids only."""
        return self.settings.shortlists and not self._no_shortlists

    def no_shortlist(self, error: SelectorClientError) -> None:
        """Says in the log, once, that the sidecar makes no shortlists. Raises any other error again."""
        if not _NO_SHORTLISTS.search(str(error)):
            raise error
        self._no_shortlists = True
        log.warning("the sidecar makes no shortlists by ids, so that all candidates are read and sent: %s", error)

    def learn(self, info: pb.GetServerInfoResponse) -> None:
        """Takes note of what the sidecar says that it takes."""
        self.sidecar = Advertised.of(info)
        self.link.keep_alive(info.limits.keepalive_seconds)
        self.expectation.learn(info)

    @property
    def _next_seed(self) -> int:
        return (self.seed + self.count) % (1 << 64)

    def begin(
        self, candidates: Candidates, step: int | None, timeout: float | None, sub_batch_size: int | None = None
    ) -> PendingSelection:
        """Makes the request of one selection; a `sub_batch_size` counts for this one only. Raises ValueError for
        mistakes of the caller, one of which it is if none of the very first candidates can be used."""
        picks = self.settings.picks(candidates.size, sub_batch_size)
        first = not self.count
        _check_usable(candidates, first)
        if step is None and self.settings.max_lag_steps is not None:
            raise ValueError(f"max_lag_steps is {self.settings.max_lag_steps}; it needs the step of each selection")
        if step is None and self.settings.world_size > 1:
            raise ValueError(f"world_size is {self.settings.world_size}; it needs the step of each selection")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout is {timeout}; must be positive")
        header = self.settings.header()
        if sub_batch_size is not None:
            header.sub_batch_size = sub_batch_size
        with self._lock:
            header.seed = self._next_seed
            header.fallbacks = self.statistics.fallbacks.total()
            self.count += 1
        header.request_id = secrets.token_hex(16)
        if step is not None:
            header.trainer_step = step
        pending = PendingSelection(candidates, picks, header, timeout, first, closings=self.link.closings)
        self.allow(pending)
        return pending

    def allow(self, pending: PendingSelection) -> None:
        """Gives a selection its time, and says in the log what does not fit: when it begins, and again when the sidecar
        has told what a selection takes."""
        candidates, size = pending.candidates.header, pending.candidates.size
        own = self.expectation.patience(candidates, size) if self._timeout is None else self._timeout
        self._patience = own
        pending.allowed = own if pending.timeout is None else pending.timeout
        argument = "timeout" if pending.timeout is None else "the loader's deadline"
        self.expectation.say(candidates, size, pending.allowed, argument)

    def foresee(self, size: int | None) -> None:
        """Says in the log what does not fit raw samples of `size` candidates."""
        if size is not None:
            samples = pb.Selection(samples=pb.RawSamples())
            allowed = self.expectation.patience(samples, size) if self._timeout is None else self._timeout
            self.expectation.say(samples, size, allowed, "timeout")

    def keep_waiting(self, error: Unreachable, deadline: float) -> bool:
        """Whether somebody who waits for the sidecar until `deadline` should ask it once more after this error. Waiting
        cures no certificate and moves no proxy."""
        return not isinstance(error, Untrusted | Misrouted) and time.monotonic() + CONNECT_PAUSE_SECONDS < deadline

    def check(self, pending: PendingSelection) -> None:
        """Raises Unreachable if the sidecar must not be asked now, and RemoteError if it could only refuse. Of ranks
        that select as one each asks, so that none waits for another."""
        if self.off:
            raise Unreachable("off", f"{OFF} is set")
        if not self.breaker.allows():
            raise Unreachable("breaker_open", f"{self.address}: no answer lately; a probe finds out when it is back")
        sent = pending.sent
        left = sent.size - len(sent.exclusions)
        if left < pending.picks and self.settings.world_size == 1:
            first = next(iter(sent.exclusions.found().values())).first
            words = f"{left} of {sent.size} candidates can be used; {pending.picks} must be picked: {first}"
            raise RemoteError("too_few_usable", words)

    def retry(self, pending: PendingSelection, error: SelectorClientError) -> float | None:
        """Returns after how many seconds the request may be sent again, or None if it may not. The pause is never
        shorter than the sidecar demands, and there is no retry where the deadline would pass first."""
        pause: float = FIRST_RETRY_SECONDS * 2**pending.retries * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
        if error.retry_seconds is not None:
            # The pause is up to half as long again, so that those who were refused together do not return together.
            pause = max(pause, error.retry_seconds * random.uniform(1.0, 1.5))  # noqa: S311
        with self._lock:
            spent = pending.retries == MAX_RETRIES or self._budget < 1
            passes = error.reason in _FOR_NOW or error.retry_seconds is not None
            if not passes or spent or pending.left <= pause:
                return None
            self._budget -= 1
            self.statistics.retries += 1
        pending.retries += 1
        return pause

    def answered(self, pending: PendingSelection, response: pb.SelectResponse) -> Selection:
        """Returns the selection that an answer holds. Raises RemoteError if it is not a possible answer."""
        candidates = pending.sent
        try:
            selection = Selection.from_response(response, candidates.size, pending.picks)
        except ValueError as error:
            raise RemoteError("wrong_answer", str(error)) from error
        if candidates.exclusions and not selection.excluded:  # a sidecar of version 0.1 looks at all that it is sent
            if any(pick in candidates.exclusions for pick in selection.indices.tolist()):
                words = "picked candidates that cannot be used; it is of version 0.1, which leaves none out"
                raise RemoteError("wrong_answer", f"{self.address}: {words}")
            selection = replace(selection, excluded=candidates.exclusions.found())
        selection = pending.of_all(replace(selection, captions=candidates.captions(selection.indices)))
        candidates = pending.candidates
        self.breaker.succeeded()
        seconds = time.perf_counter() - pending.started
        with self._lock:
            self._selected = True
            self._budget = min(self._budget + 1 / ANSWERS_A_RETRY, RETRIES_AT_ONCE)
            self._count(selection, pending)
            self.expectation.took(candidates.header, candidates.size, seconds, selection)
            self._unserved.hear(response)
            self._shuffling.hear(selection.locality)
        return selection

    def failed(self, pending: PendingSelection, error: SelectorClientError) -> Selection:
        """Returns a uniform sub-batch instead of the failed selection. Raises the error if the selector was told to,
        and if the request was wrong from the start, as it is if no candidate of the run's first selection can be used:
        a run that never had a selection loses nothing by stopping with a reason."""
        if isinstance(error, Unreachable) and error.reason not in ("off", "breaker_open"):
            self.breaker.failed()
        if error.reason == "deadline_exceeded":
            self.expectation.missed(pending.allowed)
        one_sample = not self.settings.strict and _ONE_SAMPLE.search(str(error)) is not None
        wrong = error.reason in _MISTAKES and not self._selected and not one_sample
        wrong |= pending.first and _NONE_LEFT.search(str(error)) is not None
        wrong |= not self._selected and _OTHER_REFERENCE.search(str(error)) is not None
        if wrong or (self._on_error == "raise" and error.reason != "off"):
            raise error
        self._warn(error)
        pending.read_all()
        _check_usable(pending.candidates, pending.first)
        candidates, seed = pending.candidates, pending.header.seed
        with self._lock:
            closed = self.bad_samples.known(candidates.ids) | candidates.closed()
        excluded = candidates.exclusions.with_reasons(closed, "it was left out by the client")
        indices = uniform(candidates.size, pending.picks, seed, closed)
        captions = candidates.captions(indices)
        selection = Selection(indices=indices, fallback=error.reason, seed=seed, excluded=excluded, captions=captions)
        with self._lock:
            self._count(selection, pending)
        return selection

    def _count(self, selection: Selection, pending: PendingSelection) -> None:
        candidates = pending.candidates
        self.statistics.add(selection, candidates.size, time.perf_counter() - pending.started)
        self.bad_samples.saw(selection, candidates.size, candidates.ids)

    def _warn(self, error: SelectorClientError) -> None:
        """Logs each kind of failure once, for the statistics count them all. The breaker logs its own state."""
        if error.reason not in self._warned and error.reason != "breaker_open":
            self._warned.add(error.reason)
            until = "somebody mends that, for no retry does" if error.reason in _LASTING else "it works again"
            log.warning("selection failed, uniform sub-batches instead until %s: %s", until, error)


def _check_usable(candidates: Candidates, first: bool) -> None:
    """Raises ValueError if none of the candidates of a run's first selection can be used."""
    if first and len(candidates.exclusions) == candidates.size:
        raise ValueError(f"no candidate can be used: {next(iter(candidates.exclusions.found().values())).first}")


def is_off() -> bool:
    """Whether the environment turns every selection into a uniform one."""
    return os.environ.get(OFF, "0") not in ("", "0")
