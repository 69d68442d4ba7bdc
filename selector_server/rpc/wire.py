"""Turns a Selection and its payload into a Task by the contract's rules; a broken one is named with field and value."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from selector_proto.contract import DEFAULT_FILTER_RATIO, sub_batch_size
from selector_proto.v1 import selector_pb2 as pb

from selector_server.config import Config
from selector_server.engine.candidates.base import Candidates
from selector_server.engine.candidates.named import Named
from selector_server.engine.task import BadSamples, Member, SuperBatch, Task
from selector_server.errors import InvalidRequest, LimitExceeded, NotPossible
from selector_server.rpc.exclusions import read_exclusions
from selector_server.rpc.read_annotations import read_annotations
from selector_server.rpc.read_candidates import (
    KnownReference,
    Reading,
    read_candidates,
    read_named,
    read_positions,
    read_recent,
)
from selector_server.rpc.read_rule import enum_of, explored, read_rule
from selector_server.rpc.recommended import completed
from selector_server.sampling import Draw, Loss, Needs, Plan, Policy, chunk_sizes
from selector_server.weights.freshness import Freshness, WhenStale

C = TypeVar("C", bound=SuperBatch)
MAX_REQUEST_ID = 128
MAX_GROUP = 128

DEFAULT_CHUNKS = 16
DEFAULT_GAIN = 100.0
MAX_GAIN = 1e6
# Steps are subtracted, in int64.
MAX_STEP = 2**63 - 1
# This is about thirty years.
MAX_AGE_SECONDS = 1e9
DEFAULT_EXCLUDED_SHARE = 0.5

DRAWS: Mapping[int, Draw] = {
    pb.DRAW_UNSPECIFIED: Draw.SAMPLE,
    pb.DRAW_SAMPLE: Draw.SAMPLE,
    pb.DRAW_TOP_K: Draw.TOP_K,
}
WHEN_STALE: Mapping[int, WhenStale] = {
    pb.STALENESS_POLICY_SERVE: WhenStale.SERVE,
    pb.STALENESS_POLICY_WAIT: WhenStale.WAIT,
    pb.STALENESS_POLICY_REFUSE: WhenStale.REFUSE,
}
BAD_SAMPLES: Mapping[int, BadSamples] = {
    pb.BAD_SAMPLES_UNSPECIFIED: BadSamples.REFUSE,
    pb.BAD_SAMPLES_REFUSE: BadSamples.REFUSE,
    pb.BAD_SAMPLES_EXCLUDE: BadSamples.EXCLUDE,
}
# What says something of candidates that a shortlist does not look at, or of how those are picked that go on.
_NOT_OF_NAMES = ("samples", "embeddings", "losses", "recent", "positions", "tags", "tag_strings")


class Contract:
    """What this server takes of the contract. `models_loss` is the one that its models were made for, and so raw
    samples are compared by it unless the request says otherwise. `reference` is None without one."""

    def __init__(
        self, config: Config, policies: Mapping[str, Policy], models_loss: Loss, reference: KnownReference | None
    ) -> None:
        self._config, self._policies = config, policies
        self._models_loss, self._reference = models_loss, reference

    def member(self, selection: pb.Selection) -> Member | None:
        """Which of the ranks that select as one the selection is for; None if it selects alone. It needs the header
        only. Raises InvalidRequest and LimitExceeded."""
        config = self._config
        group, rank, world_size = selection.group, selection.rank, selection.world_size
        if rank >= max(world_size, 1):
            raise InvalidRequest("rank", rank, f"must be below world_size, {world_size}")
        if world_size <= 1:
            return None
        if config.peers:
            if world_size != config.peer_count:
                limit = f"must be peer_count of this sidecar, {config.peer_count}"
                raise InvalidRequest("world_size", world_size, limit)
            if rank != config.peer_rank:
                raise InvalidRequest("rank", rank, f"must be peer_rank of this sidecar, {config.peer_rank}")
        elif world_size > config.max_pending_requests:
            limit = f"at most max_pending_requests of this server, {config.max_pending_requests}: all ranks wait in it"
            raise LimitExceeded("world_size", world_size, limit)
        if not 1 <= len(group) <= MAX_GROUP or not group.isprintable():
            limit = f"1 to {MAX_GROUP} printable characters with world_size above 1"
            raise InvalidRequest("group", repr(group), limit)
        if not selection.HasField("trainer_step"):
            raise InvalidRequest("trainer_step", "missing", "ranks of a group select as one for the same step")
        return Member(group, selection.trainer_step, rank, world_size)

    def task(self, selection: pb.Selection, payload: memoryview) -> Task[Candidates]:
        """The task of a selection whose payload was received. Raises WireError, InvalidRequest, LimitExceeded or
        NotPossible."""
        if selection.HasField("sample_ids") and selection.WhichOneof("candidates") != "samples":
            raise InvalidRequest("sample_ids", "set", "only raw samples are looked up by id; leave it unset")
        return self._task(self._completed(selection), payload, read_candidates)

    def shortlist(self, selection: pb.Selection, payload: memoryview) -> Task[Named]:
        """The task of a selection that asks for a shortlist, from the ids of its candidates. Raises as `task` does."""
        selection = self._completed(selection)
        present = {descriptor.name for descriptor, _ in selection.ListFields()}
        for name in _NOT_OF_NAMES:
            if name in present:
                raise InvalidRequest(name, "set", "a shortlist is made of sample_ids alone; leave it unset")
        if self.member(selection) is not None:
            limit = "ranks that select as one send all candidates, of which each rank's are prefiltered"
            raise InvalidRequest("world_size", selection.world_size, limit)
        for name in ("sample_ids", "prefilter"):
            if name not in present:
                raise InvalidRequest(name, "missing", "a shortlist is what the prefilter leaves of sample_ids")
        return self._task(selection, payload, read_named)

    def _completed(self, selection: pb.Selection) -> pb.Selection:
        return completed(selection, self._models_loss, self._config.cache is not None)

    def _task(self, selection: pb.Selection, payload: memoryview, read: Callable[[Reading], C]) -> Task[C]:
        config = self._config
        _check_supported(selection, config)
        policy = self._policies.get(selection.policy or "joint")
        if policy is None:
            limit = f"must be one of {', '.join(sorted(self._policies))}"
            raise InvalidRequest("policy", repr(selection.policy), limit)
        rule = read_rule(selection, policy, self._models_loss)
        bad_samples, share = _bad_samples(selection)
        excludes, closing = bad_samples is BadSamples.EXCLUDE, read_exclusions(selection)
        reading = Reading(selection, payload, config, rule, policy, excludes, self._reference, closing)
        candidates = read(reading)
        size, world_size = candidates.size, selection.world_size
        if world_size > 1 and not config.peers and world_size * size > config.max_super_batch:
            value, limit = f"{world_size} x {size}", f"at most {config.max_super_batch} together"
            raise LimitExceeded("candidates of all ranks", value, limit)
        plan, freshness = _plan(selection, size, policy, config.max_chunks), _freshness(selection, config)
        plan = replace(plan, positions=read_positions(reading, size))
        recent, losses = read_recent(reading), selection.return_losses
        annotations = read_annotations(reading, candidates)
        return Task(candidates, policy, rule, plan, freshness, bad_samples, share, recent, losses, annotations)


def _check_supported(selection: pb.Selection, config: Config) -> None:
    if len(selection.request_id) > MAX_REQUEST_ID or not selection.request_id.isprintable():
        raise InvalidRequest("request_id", repr(selection.request_id), f"at most {MAX_REQUEST_ID} printable characters")
    if selection.trainer_step > MAX_STEP:
        raise InvalidRequest("trainer_step", selection.trainer_step, f"at most {MAX_STEP}")
    if selection.run and selection.run != config.run:
        raise NotPossible("run", repr(selection.run), f"this server serves run {config.run!r}")


def _plan(selection: pb.Selection, size: int, policy: Policy, max_chunks: int) -> Plan:
    if selection.WhichOneof("size") == "sub_batch_size":
        picks = selection.sub_batch_size
        if not 1 <= picks <= size:
            raise InvalidRequest("sub_batch_size", picks, f"must be 1 to the number of candidates, {size}")
    else:
        ratio = selection.filter_ratio if selection.HasField("filter_ratio") else DEFAULT_FILTER_RATIO
        if not 0 < ratio < 1:  # NaN fails too
            raise InvalidRequest("filter_ratio", ratio, "must lie between 0 and 1, both excluded")
        picks = sub_batch_size(size, ratio)
        if picks < 1:
            raise InvalidRequest("filter_ratio", ratio, f"leaves no pick of {size} candidates")
    chunks = selection.chunks or min(DEFAULT_CHUNKS, picks)
    if chunks > picks:
        raise InvalidRequest("chunks", chunks, f"at most the number of picks, {picks}")
    if chunks > max_chunks:  # Every round goes over all candidates.
        raise LimitExceeded("chunks", chunks, f"at most {max_chunks}")
    gain = selection.gain if selection.HasField("gain") else DEFAULT_GAIN
    if not 0 < gain <= MAX_GAIN:  # NaN fails too
        raise InvalidRequest("gain", gain, f"must be positive and at most {MAX_GAIN:g}")
    draw = enum_of("draw", selection.draw, DRAWS, pb.Draw)
    seed = selection.seed if selection.HasField("seed") else secrets.randbits(64)
    explore = explored(selection, policy, picks)
    # Chunks are for policies that look at pairs; the others draw all picks at once.
    chunks = min(chunks, picks - explore) if policy.needs is Needs.PAIRS else 1
    return Plan(chunk_sizes(picks - explore, chunks), gain, draw, seed, explore=explore)


def _bad_samples(selection: pb.Selection) -> tuple[BadSamples, float]:
    """What happens to candidates that cannot be used, and the largest share of them that may be left out."""
    bad_samples: BadSamples = enum_of("bad_samples", selection.bad_samples, BAD_SAMPLES, pb.BadSamples)
    if bad_samples is not BadSamples.EXCLUDE:
        for name, is_set in (
            ("max_excluded_share", selection.HasField("max_excluded_share")),
            ("exclusions", bool(selection.exclusions)),
        ):
            if is_set:
                raise InvalidRequest(name, "set", "needs bad_samples EXCLUDE")
    share = selection.max_excluded_share if selection.HasField("max_excluded_share") else DEFAULT_EXCLUDED_SHARE
    if not 0 < share <= 1:  # NaN fails too
        raise InvalidRequest("max_excluded_share", share, "must be above 0 and at most 1")
    return bad_samples, share


def _freshness(selection: pb.Selection, config: Config) -> Freshness:
    """What the request accepts; what it leaves open, the server's settings say."""
    step = selection.trainer_step if selection.HasField("trainer_step") else None
    lag: int | None = config.max_weights_lag_steps or None
    age: float | None = config.max_weights_age_seconds or None
    if selection.HasField("max_lag_steps"):
        lag = selection.max_lag_steps
        if step is None:
            raise InvalidRequest("max_lag_steps", lag, "needs trainer_step")
    if selection.HasField("max_age_seconds"):
        age = selection.max_age_seconds
        if not 0 < age <= MAX_AGE_SECONDS:  # NaN fails too
            raise InvalidRequest("max_age_seconds", age, f"must be positive and at most {MAX_AGE_SECONDS:g}")
    policies = {pb.STALENESS_POLICY_UNSPECIFIED: WhenStale(config.when_stale), **WHEN_STALE}
    when_stale: WhenStale = enum_of("when_stale", selection.when_stale, policies, pb.StalenessPolicy)
    # A minimum is meant seriously: the server's default to serve does not lift it, a request that says so does.
    lifted = selection.when_stale == pb.STALENESS_POLICY_SERVE or when_stale is WhenStale.WAIT
    below_minimum = when_stale if lifted else WhenStale.REFUSE
    return Freshness(selection.min_weights_version, lag, age, step, when_stale, below_minimum)
