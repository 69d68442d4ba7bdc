"""The tasks of several ranks as one task, and its result as each rank's: pure functions of arrays and settings."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from selector_server.encoding.reference_cache import Found
from selector_server.engine.preparation import ModelInput, Prepared
from selector_server.engine.task import Embeddings, Floats, Losses, ModelEmbeddings, Result, Samples, Stages
from selector_server.errors import InvalidRequest
from selector_server.sampling import Plan

# Ranks that a refusal lists.
_LISTED = 8


@dataclass(frozen=True)
class RankSettings:
    """What a rank asks for: all that must be equal, the most telling first; plain values, as JSON has them."""

    rank: int
    values: dict[str, Any]


def check_alike(first: RankSettings, other: RankSettings) -> None:
    """Raises InvalidRequest naming the first setting, as used, that two ranks do not share, and both values."""
    for name, value in first.values.items():
        if (others := other.values.get(name)) != value:
            values = f"{value} on rank {first.rank} and {others} on rank {other.rank}"
            raise InvalidRequest(name, values, "must be the same for all ranks of a group")


def rank_settings(prepared: Prepared) -> RankSettings:
    """Of a task that has a member."""
    task, plan, fresh = prepared.task, prepared.task.plan, prepared.task.freshness
    assert task.member is not None
    values = {
        "candidates": type(task.candidates).__name__.lower(),
        "number of candidates": task.size,
        "policy": task.policy.name,
        "criterion": task.criterion.name,
        "loss": task.loss.value,
        "sub_batch_size": plan.picks,
        "chunks": len(plan.sizes),
        "gain": plan.gain,
        "draw": plan.draw.value,
        "min_weights_version": fresh.min_version,
        "max_lag_steps": fresh.max_lag_steps,
        "max_age_seconds": fresh.max_age_seconds,
        "when_stale": fresh.when_stale.value,
        "when_stale below min_weights_version": fresh.below_minimum.value,
        **_kinds(task.candidates),
    }
    return RankSettings(task.member.rank, values)


def _kinds(candidates: Samples | Embeddings | Losses) -> dict[str, Any]:
    """What must be equal of the candidates. Samples were brought to the models' shapes before."""
    match candidates:
        case Samples():
            return {"sample_ids": "set" if candidates.ids else "unset"}
        case Losses():
            models = {"losses.learner": candidates.learner, "losses.reference": candidates.reference}
            return {name: "missing" if array is None else str(array.dtype) for name, array in models.items()}
    kinds: dict[str, Any] = {}
    for name, model in (("learner", candidates.learner), ("reference", candidates.reference)):
        sides = "missing" if model is None else f"{model.image.dtype}, {model.text.dtype} [B, {model.image.shape[1]}]"
        kinds[f"embeddings.{name}"] = sides
        kinds[f"embeddings.{name}.logit_scale"] = None if model is None else model.scale
        kinds[f"embeddings.{name}.logit_bias"] = None if model is None else model.bias
    return kinds


def join(ranks: Sequence[Prepared]) -> Prepared:
    """One task over the candidates of all ranks, which are alike, in the order of ranks. Every chunk takes equally
    many of each; the seed is rank 0's."""
    first = ranks[0].task
    plan = joint_plan(first.plan, len(ranks), first.plan.seed)
    task = replace(first, candidates=_candidates(ranks), size=len(ranks) * first.size, plan=plan)
    learner = _input([part.learner for part in ranks])
    reference = learner if _one_input(ranks) else _input([part.reference for part in ranks])
    return Prepared(task, learner, reference, _found([part.found for part in ranks if part.found is not None]))


def listed(ranks: Sequence[int]) -> str:
    """As refusals name them."""
    return ", ".join(map(str, ranks[:_LISTED])) + (", …" if len(ranks) > _LISTED else "")


def joint_plan(plan: Plan, ranks: int, seed: int) -> Plan:
    """One rank's plan as the plan of them all."""
    return replace(plan, sizes=tuple(ranks * size for size in plan.sizes), ranks=ranks, seed=seed)


def joined_bytes(ranks: Sequence[Prepared]) -> int:
    """What `join` allocates."""
    once = _one_input(ranks)
    return sum(array.nbytes for part in ranks for array in _arrays(part, once))


def share(result: Result, prepared: Prepared, rank: int, group_seconds: float) -> Result:
    """What a joint result is to one of the ranks: its own picks, in draw order, as indices into its own candidates."""
    task = prepared.task
    mine = result.indices // task.size == rank
    joint = result.stages
    stages = Stages(**{f.name: getattr(prepared.stages, f.name) + getattr(joint, f.name) for f in fields(Stages)})
    stages.group = group_seconds
    return replace(
        result,
        indices=result.indices[mine] - rank * task.size,
        scores=None if result.scores is None else result.scores[mine],
        plan=replace(task.plan, seed=result.plan.seed),
        cached=prepared.cached,
        uncached=prepared.uncached,
        quality=result.quality if rank == 0 else None,
        stages=stages,
    )


def _candidates(ranks: Sequence[Prepared]) -> Samples | Embeddings | Losses:
    parts: list[Any] = [part.task.candidates for part in ranks]
    match parts[0]:
        case Embeddings():
            return Embeddings(*(_model([getattr(part, name) for part in parts]) for name in ("learner", "reference")))
        case Losses():
            return Losses(*(_floats([getattr(part, name) for part in parts]) for name in ("learner", "reference")))
    # What is encoded was prepared by now; only names are still looked at.
    return Samples([], [], [key for part in parts for key in part.ids])


def _model(models: Sequence[ModelEmbeddings | None]) -> ModelEmbeddings | None:
    given = [model for model in models if model is not None]
    if not given:
        return None
    image, text = (np.concatenate([getattr(model, side) for model in given]) for side in ("image", "text"))
    return replace(given[0], image=image, text=text)


def _floats(arrays: Sequence[Floats | None]) -> Floats | None:
    given = [array for array in arrays if array is not None]
    return np.concatenate(given) if given else None


def _input(inputs: Sequence[ModelInput | None]) -> ModelInput | None:
    """A rank whose references are all known has none."""
    given = [one for one in inputs if one is not None]
    if not given:
        return None
    return ModelInput(np.concatenate([one.pixels for one in given]), np.concatenate([one.tokens for one in given]))


def _one_input(ranks: Sequence[Prepared]) -> bool:
    """Whether learner and reference look at the same arrays."""
    return all(part.learner is part.reference for part in ranks)


def _found(parts: Sequence[Found]) -> Found | None:
    if not parts:
        return None
    known, image, text = (np.concatenate([getattr(p, name) for p in parts]) for name in ("known", "image", "text"))
    return Found(known, image, text)


def _arrays(prepared: Prepared, one_input: bool) -> list[Any]:
    candidates, arrays = prepared.task.candidates, []
    for model in (prepared.learner, None if one_input else prepared.reference):
        arrays += [] if model is None else [model.pixels, model.tokens]
    if prepared.found is not None:
        arrays += [prepared.found.image, prepared.found.text]
    if isinstance(candidates, Embeddings):
        for one in (candidates.learner, candidates.reference):
            arrays += [] if one is None else [one.image, one.text]
    if isinstance(candidates, Losses):
        arrays += [one for one in (candidates.learner, candidates.reference) if one is not None]
    return arrays
