"""Everything about a selection except the call itself, for the blocking selector and for its asyncio twin."""

import logging
import os
import random
import re
import secrets
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from selector_proto.v1 import selector_pb2 as pb

from selector_client.errors import RemoteError, SelectorClientError, Unreachable, Untrusted
from selector_client.selecting.bad_samples import BadSamples
from selector_client.selecting.breaker import Breaker
from selector_client.selecting.candidates import Candidates, Ids, Images, ModelEmbeddings, Texts
from selector_client.selecting.channel import healthy
from selector_client.selecting.columns import Advertised, Terms
from selector_client.selecting.credentials import ACCESS_FIELDS, Access
from selector_client.selecting.exclusions import uniform
from selector_client.selecting.expectation import DEFAULT_SECONDS, Expectation
from selector_client.selecting.selection import Selection, Statistics
from selector_client.selecting.settings import Settings
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
# But these words are about one sample. Sidecars of version 0.1 refuse a request for the first that they cannot use.
_ONE_SAMPLE = re.compile(r"INVALID_ARGUMENT: (samples|sample_ids|embeddings|losses)[\w.]*(\[\d+\]| is \S+ at \[\d+)")
# And these say that none can be used of what it was sent.
_NONE_LEFT = re.compile(r"FAILED_PRECONDITION: candidates left is 0 of ")


@dataclass
class PendingSelection:
    """One selection that is under way, which may be the `first` of a run. `timeout` is how many seconds it was given
    for itself, if any, and `allowed` how many it may take since `begun`, a time of time.monotonic()."""

    candidates: Candidates
    picks: int
    header: pb.Selection
    timeout: float | None
    first: bool = False
    allowed: float = 0.0
    begun: float = field(default_factory=time.monotonic)
    started: float = field(default_factory=time.perf_counter)
    retries: int = 0

    @property
    def left(self) -> float:
        """How many seconds are left until the deadline."""
        return self.begun + self.allowed - time.monotonic()


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
        self._unserved = Unserved(self.statistics.unserved)
        self.breaker = Breaker(lambda: healthy(address, self.access))
        self.bad_samples = BadSamples(self.settings.warn_excluded_share)
        self.sidecar = Advertised()
        self.off = is_off()
        self._on_error = on_error
        self.seed = secrets.randbits(64) if seed is None else seed
        self.count = 0  # selections that were begun; seed and count together decide the noise of the next one
        self._budget = float(RETRIES_AT_ONCE)
        self._selected = False
        self._lock = threading.Lock()
        self._warned: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """A process that is spawned gets everything but locks and threads."""
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "breaker")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock, self.breaker = threading.Lock(), Breaker(lambda: healthy(self.address, self.access))

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
        self, images: Images, texts: Texts, ids: Ids | None, reference: ModelEmbeddings | None = None
    ) -> Candidates:
        """Makes candidates of raw samples, of which several captions are drawn by the seed of the selection. Raises
        ValueError or TypeError."""
        with self._lock:
            seed = self._next_seed
        return Candidates.samples(images, texts, ids, Terms(self.settings.strict, seed, self.sidecar), reference)

    def learn(self, info: pb.GetServerInfoResponse) -> None:
        """Takes note of what the sidecar says that it takes."""
        self.sidecar = Advertised.of(info)
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
        if first and len(candidates.exclusions) == candidates.size:
            raise ValueError(f"no candidate can be used: {next(iter(candidates.exclusions.found().values())).first}")
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
            self.count += 1
        header.request_id = secrets.token_hex(16)
        if step is not None:
            header.trainer_step = step
        pending = PendingSelection(candidates, picks, header, timeout, first)
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
        cures no certificate."""
        return not isinstance(error, Untrusted) and time.monotonic() + CONNECT_PAUSE_SECONDS < deadline

    def check(self, pending: PendingSelection) -> None:
        """Raises Unreachable if the sidecar must not be asked now, and RemoteError if it could only refuse. Of ranks
        that select as one each asks, so that none waits for another."""
        if self.off:
            raise Unreachable("off", f"{OFF} is set")
        if not self.breaker.allows():
            raise Unreachable("breaker_open", f"{self.address}: no answer lately; a probe finds out when it is back")
        left = pending.candidates.size - len(pending.candidates.exclusions)
        if left < pending.picks and self.settings.world_size == 1:
            first = next(iter(pending.candidates.exclusions.found().values())).first
            words = (
                f"{left} of {pending.candidates.size} candidates can be used; {pending.picks} must be picked: {first}"
            )
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
            if error.reason not in _FOR_NOW or spent or pending.left <= pause:
                return None
            self._budget -= 1
            self.statistics.retries += 1
        pending.retries += 1
        return pause

    def answered(self, pending: PendingSelection, response: pb.SelectResponse) -> Selection:
        """Returns the selection that an answer holds. Raises RemoteError if it is not a possible answer."""
        candidates = pending.candidates
        try:
            selection = Selection.from_response(response, candidates.size, pending.picks)
        except ValueError as error:
            raise RemoteError("wrong_answer", str(error)) from error
        if candidates.exclusions and not selection.excluded:  # a sidecar of version 0.1 looks at all that it is sent
            if any(pick in candidates.exclusions for pick in selection.indices.tolist()):
                words = "picked candidates that cannot be used; it is of version 0.1, which leaves none out"
                raise RemoteError("wrong_answer", f"{self.address}: {words}")
            selection = replace(selection, excluded=candidates.exclusions.found())
        selection = replace(selection, captions=candidates.captions(selection.indices))
        self.breaker.succeeded()
        seconds = time.perf_counter() - pending.started
        with self._lock:
            self._selected = True
            self._budget = min(self._budget + 1 / ANSWERS_A_RETRY, RETRIES_AT_ONCE)
            self._count(selection, pending)
            self.expectation.took(candidates.header, candidates.size, seconds, selection)
            self._unserved.hear(response)
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
        if wrong or (self._on_error == "raise" and error.reason != "off"):
            raise error
        self._warn(error)
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
            log.warning("selection failed, uniform sub-batches instead until it works again: %s", error)


def is_off() -> bool:
    """Whether the environment turns every selection into a uniform one."""
    return os.environ.get(OFF, "0") not in ("", "0")
