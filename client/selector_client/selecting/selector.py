"""The blocking selector, which asks a sidecar for the best sub-batch and never holds the trainer up for long."""

import time
from types import TracebackType
from typing import Any, Literal

from numpy.typing import ArrayLike
from selector_proto.v1 import selector_pb2 as pb

from selector_client.errors import SelectorClientError, Unreachable
from selector_client.selecting import tracing
from selector_client.selecting.candidates import Candidates, Ids, Images, ModelEmbeddings, Tags, Texts
from selector_client.selecting.expectation import ASK_SHARE
from selector_client.selecting.link import BlockingLink
from selector_client.selecting.pending import PendingSelection, View
from selector_client.selecting.selection import Selection
from selector_client.selecting.selector_base import SelectorBase
from selector_client.selecting.session import CONNECT_PAUSE_SECONDS, Session
from selector_client.selecting.transport import Metadata, Transport


class Selector(SelectorBase):
    """A connection to one sidecar. Several threads may use it, and so may a forked child, unless a thread was in the
    middle of a call when the process forked: gRPC does not survive that, so use spawn or forkserver then. A pickled
    copy opens a connection of its own.

    `timeout` seconds bound every selection, with its retries. By default a selection may take four times what the
    sidecar says that it needs, at least 10 s and at most 120 s. Whatever goes wrong on the way, `select` returns a
    uniform sub-batch of the same size, which is flagged in `Selection.fallback` and counted in `statistics`. After
    three failures in a row it does so at once, until a probe beside the trainer finds the sidecar healthy. With
    `on_error="raise"` it raises SelectorClientError instead. A request that the sidecar refuses as wrong raises as long
    as none has succeeded; mistakes that are seen here (shapes, sizes, settings) always raise ValueError or TypeError.
    `seed` makes the picks of a run repeatable. `shared_memory` says whether large payloads go through memory that a
    sidecar on this host shares: None means where it can, False never, and with True a selection fails where it cannot.
    The environment variable SELECTOR_OFF=1 makes every selection uniform.

    `settings` are those of Settings (how to pick) and of Access: `ca_file`, `certificate_file`, `key_file`, `tls` and
    `server_name` for TLS, and `token_file`.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout: float | None = None,
        seed: int | None = None,
        on_error: Literal["fallback", "raise"] = "fallback",
        shared_memory: bool | None = None,
        **settings: Any,
    ) -> None:
        self._set_up(Session(address, timeout, seed, on_error, **settings), shared_memory)

    def __getstate__(self) -> tuple[Session, bool | None]:
        return self._session, self._shared_memory

    def __setstate__(self, state: tuple[Session, bool | None]) -> None:
        self._set_up(*state)

    def _set_up(self, session: Session, shared_memory: bool | None) -> None:
        self._link = BlockingLink(session.address, session.access, session.statistics)
        super().__init__(session, self._link)
        self._shared_memory = shared_memory
        self._transport = Transport(session.address, shared_memory, session.learn)

    def connect(self, timeout: float = 60.0, *, super_batch_size: int | None = None) -> pb.GetServerInfoResponse:
        """Waits until the sidecar answers, and returns what it is. Nobody has to call this, for `select` connects by
        itself. If selections of raw samples from `super_batch_size` candidates (B) are slow, or do not fit into the
        timeout, the log says so, and what to do.

        Raises Unreachable (at once if it is Untrusted), Denied, and ValueError if the sidecar does not know the policy
        of the settings.
        """
        request, deadline = pb.GetServerInfoRequest(), time.monotonic() + timeout
        while True:
            try:
                info: pb.GetServerInfoResponse = self._link.call(
                    lambda stub: stub.GetServerInfo(request, timeout=max(deadline - time.monotonic(), 1e-3))
                )
                break
            except Unreachable as error:
                if not self._session.keep_waiting(error, deadline):
                    raise
            time.sleep(CONNECT_PAUSE_SECONDS)
        self._session.learn(info)
        policy = self.settings.policy
        if policy and policy not in info.policies:
            raise ValueError(f"policy is {policy!r}; {self._session.address} knows {', '.join(sorted(info.policies))}")
        self._session.foresee(super_batch_size)
        return info

    def weights_status(self) -> pb.GetWeightsStatusResponse:
        """Returns which learner weights are served. Raises SelectorClientError."""
        request = pb.GetWeightsStatusRequest()
        status: pb.GetWeightsStatusResponse = self._link.call(
            lambda stub: stub.GetWeightsStatus(request, timeout=self._session.timeout)
        )
        return status

    def select(
        self,
        images: Images,
        texts: Texts,
        *,
        ids: Ids | None = None,
        reference: ModelEmbeddings | None = None,
        recent: ModelEmbeddings | None = None,
        tags: Tags | None = None,
        step: int | None = None,
        timeout: float | None = None,
        sub_batch_size: int | None = None,
    ) -> Selection:
        """Picks from raw samples. `images` are uint8 [B, H, W, C] at the learner's resolution, or B encoded files, PIL
        images, arrays or tensors. `texts` are int token ids [B, T], or B strings; of a list of captions in the place
        of a string one is drawn by the seed, and `Selection.captions` says which. `ids` (B different integers or
        strings) name the samples, so that a sidecar with a cache need not embed them with the reference again.
        `reference` is what the reference makes of them, if the trainer keeps it with its data. With the setting
        max_similarity, picks are not like `recent` ones either, as the reference sees them. `tags` (B integers or
        strings, of which 64 bytes count) say what samples are, for the sidecar's inspector. `step` is the trainer's
        step. A `timeout`, in seconds, and a `sub_batch_size` count for this selection only."""
        candidates = self._session.samples(images, texts, ids, reference).with_recent(recent).with_tags(tags)
        return self._select(candidates, step, timeout, sub_batch_size)

    def select_by_ids(
        self,
        ids: Ids,
        view: View,
        *,
        step: int | None = None,
        timeout: float | None = None,
        sub_batch_size: int | None = None,
    ) -> Selection:
        """Picks as `select` does, but reads with the setting prefilter only candidates that go on: it asks the sidecar,
        whose cache knows the reference's losses by `ids`, and then sends it what `view(rows)` gives for those rows,
        int64 [n] and ascending: the arguments of `select`, without ids. The picks are indices into `ids`, and the same
        as those of `select`. The `timeout` bounds both calls together, without the view's time. All candidates are read
        if the sidecar makes no shortlists, and if the selection fails: its uniform picks are of all that can be
        used."""
        return self._answered(self._session.begin_by_ids(ids, view, step, timeout, sub_batch_size))

    def select_embeddings(
        self,
        learner: ModelEmbeddings | None,
        reference: ModelEmbeddings | None,
        *,
        learner_losses: ArrayLike | None = None,
        recent: ModelEmbeddings | None = None,
        tags: Tags | None = None,
        step: int | None = None,
        timeout: float | None = None,
        sub_batch_size: int | None = None,
    ) -> Selection:
        """Picks from embeddings that the trainer computed. `learner_losses`, float32 or float16 [B], may stand for the
        learner where it counts for no pair (pair_criterion="easy-reference" or "none")."""
        candidates = Candidates.embeddings(learner, reference, learner_losses).with_recent(recent).with_tags(tags)
        return self._select(candidates, step, timeout, sub_batch_size)

    def select_losses(
        self,
        learner: ArrayLike | None,
        reference: ArrayLike | None,
        *,
        tags: Tags | None = None,
        step: int | None = None,
        timeout: float | None = None,
        sub_batch_size: int | None = None,
    ) -> Selection:
        """Picks from one loss per candidate, float32 or float16 [B]. Only the policies independent and uniform can."""
        return self._select(Candidates.losses(learner, reference).with_tags(tags), step, timeout, sub_batch_size)

    def close(self) -> None:
        """Ends the connection, and selections that are under way. A later one opens a new connection."""
        self._session.breaker.close()
        self._link.close()
        self._transport.close()

    def __enter__(self) -> "Selector":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _select(
        self, candidates: Candidates, step: int | None, timeout: float | None, sub_batch_size: int | None
    ) -> Selection:
        return self._answered(self._session.begin(candidates, step, timeout, sub_batch_size))

    def _answered(self, pending: PendingSelection) -> Selection:
        with tracing.span("selector.select") as span:
            selection = self._answer(pending, span.metadata())
            span.done(selection.fallback, pending.retries)
            return selection

    def _meet(self, pending: PendingSelection) -> None:
        """Asks the sidecar what it is, so that the selection gets the time that it needs."""
        request, seconds = pb.GetServerInfoRequest(), max(ASK_SHARE * pending.left, 1e-3)
        try:
            info = self._link.call(lambda stub: stub.GetServerInfo(request, timeout=seconds), pending.closings)
        except SelectorClientError as error:
            self._session.expectation.unanswered(error)
        else:
            self._session.learn(info)
            self._session.allow(pending)

    def _answer(self, pending: PendingSelection, metadata: Metadata) -> Selection:
        try:
            if pending.show is not None:
                self._read(pending, metadata)
            return self._session.answered(pending, self._ask("Select", pending, metadata))
        except SelectorClientError as error:
            return self._session.failed(pending, error)

    def _read(self, pending: PendingSelection, metadata: Metadata) -> None:
        """Reads those of the candidates that go on, if the sidecar says which."""
        if self._session.shortlists():
            try:
                pending.narrow(self._ask("Shortlist", pending, metadata))
                return
            except SelectorClientError as error:
                self._session.no_shortlist(error)
        pending.read_all()

    def _ask(self, method: str, pending: PendingSelection, metadata: Metadata) -> Any:
        """Returns the answer to what is sent next, after as many attempts as may be. Raises SelectorClientError."""
        while True:
            try:
                self._session.check(pending)
                if self._session.expectation.asks(pending.candidates.header):
                    self._meet(pending)
                return self._link.call(
                    lambda stub: self._transport.send(
                        stub, method, pending.sent, pending.header, max(pending.left, 1e-3), metadata
                    ),
                    pending.closings,
                )
            except SelectorClientError as error:
                if (pause := self._session.retry(pending, error)) is None:
                    raise
            time.sleep(pause)
