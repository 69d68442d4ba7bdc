"""The tasks of several ranks as one task, and its result as each rank's: pure functions of arrays and settings."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum
from typing import Any

import numpy as np

from selector_server.engine.annotations import Annotations
from selector_server.engine.arrays import ModelEmbeddings
from selector_server.engine.candidates.base import Scorable
from selector_server.engine.candidates.samples import PreparedSamples
from selector_server.engine.closed import Closed
from selector_server.engine.task import Result, Task
from selector_server.errors import InvalidRequest
from selector_server.sampling import Plan, Policy
from selector_server.weights.freshness import Freshness

# Ranks that a refusal lists.
_LISTED = 8
# What each rank has for itself. Every other field of a task, and of the dataclasses in it, must be equal on all ranks.
OWN: Mapping[type, Collection[str]] = {
    Plan: {"seed"},  # rank 0's counts
    Freshness: {"trainer_step"},  # it is part of what ranks meet by
    PreparedSamples: {"size", "ids", "learner", "reference", "found"},  # already brought to the models' shapes
    Closed: {"reasons", "first", "prefiltered"},
    Annotations: {"ids", "captions", "tags", "pixels", "fallbacks", "trainer"},
}
# Fields that users know by another name.
_KNOWN_AS: Mapping[tuple[type, str], str] = {
    (Plan, "explore"): "uniform picks (explore)",
    (Freshness, "min_version"): "min_weights_version",
    (Freshness, "below_minimum"): "when_stale below min_weights_version",
    (ModelEmbeddings, "scale"): "logit_scale",
    (ModelEmbeddings, "bias"): "logit_bias",
    (PreparedSamples, "brought"): "reference.embeddings",
    (PreparedSamples, "fingerprint"): "reference.fingerprint",
}


@dataclass(frozen=True)
class RankSettings:
    """What a rank asks for: all that must be equal, the most telling first; plain values, as JSON has them."""

    rank: int
    values: dict[str, Any]


def rank_settings(rank: int, task: Task[Scorable]) -> RankSettings:
    """The settings of one rank's task, found by going through its fields, so that no option can be forgotten."""
    candidates = task.candidates
    values: dict[str, Any] = {"candidates": candidates.form, "number of candidates": task.size}
    if candidates.encoded:
        values["sample_ids"] = "set" if candidates.keyed else "unset"
    for field in fields(task):
        if field.name != "candidates":
            values.update(_settings(getattr(task, field.name), field.name, ""))
    values.update(_settings(candidates, candidates.form, f"{candidates.form}."))
    return RankSettings(rank, values)


def _settings(value: Any, name: str, prefix: str) -> Iterator[tuple[str, Any]]:
    """The setting `name`, or those of a dataclass's fields, whose names begin with `prefix`."""
    match value:
        case Policy():
            yield name, value.name
        case Enum():
            yield name, value.value if isinstance(value.value, str) else value.name
        case np.ndarray():
            yield name, f"{value.dtype} [{', '.join(['B', *map(str, value.shape[1:])])}]"
        case None | bool() | int() | float() | str():
            yield name, value
        case tuple() if name == "sizes":
            yield from (("sub_batch_size", sum(value)), ("chunks", len(value)))
        case _ if is_dataclass(value):
            # With another number of uniform picks, the chunks of a plan are others, too.
            for field in reversed(fields(value)) if isinstance(value, Plan) else fields(value):
                if field.name not in OWN.get(type(value), ()):
                    known_as = prefix + _KNOWN_AS.get((type(value), field.name), field.name)
                    yield from _settings(getattr(value, field.name), known_as, f"{known_as}.")
        case _:
            raise TypeError(f"the setting {name} is a {type(value).__name__}; say here how ranks compare it")


def check_alike(first: RankSettings, other: RankSettings) -> None:
    """Raises InvalidRequest naming the first setting, as used, that two ranks do not share, and both values."""
    for name in {**first.values, **other.values}:
        value, others = first.values.get(name, "missing"), other.values.get(name, "missing")
        if value != others:
            values = f"{value} on rank {first.rank} and {others} on rank {other.rank}"
            raise InvalidRequest(name, values, "must be the same for all ranks of a group")


def listed(ranks: Sequence[int]) -> str:
    """The ranks as refusals name them."""
    return ", ".join(map(str, ranks[:_LISTED])) + (", …" if len(ranks) > _LISTED else "")


def joint_plan(plan: Plan, ranks: int, seed: int) -> Plan:
    """One rank's plan as the plan of them all."""
    sizes = tuple(ranks * size for size in plan.sizes)
    return replace(plan, sizes=sizes, explore=ranks * plan.explore, ranks=ranks, seed=seed)


def join(tasks: Sequence[Task[Scorable]]) -> Task[Scorable]:
    """One task over the candidates of all ranks, which are alike, in the order of ranks. Every chunk takes equally
    many of each; the seed is rank 0's."""
    first, parts = tasks[0], [task.candidates for task in tasks]
    joined = first.of(type(parts[0]).joined(parts), joint_plan(first.plan, len(tasks), first.plan.seed))
    return replace(joined, annotations=Annotations.joined([task.annotations for task in tasks]))


def joined_bytes(tasks: Sequence[Task[Scorable]]) -> int:
    """The bytes that `join` allocates."""
    parts = [task.candidates for task in tasks]
    return type(parts[0]).joined_bytes(parts)


def share(result: Result, task: Task[Scorable], rank: int) -> Result:
    """What a joint result is to one of the ranks: its own picks, in draw order, as indices into its own candidates."""
    mine = result.indices // task.size == rank
    return replace(
        result,
        indices=result.indices[mine] - rank * task.size,
        scores=None if result.scores is None else result.scores[mine],
        losses=None if result.losses is None else result.losses.at(mine),
        plan=replace(task.plan, seed=result.plan.seed),
        cached=task.candidates.cached,
        uncached=task.candidates.uncached,
        quality=result.quality if rank == 0 else None,
        closed=task.candidates.closed,
        not_examined=task.candidates.not_examined,
    )
