"""What of a trainer's model is published, and under which names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selector_proto.weights.names import match, misfit
from selector_proto.weights.renaming import Renaming

from selector_client.publishing.adapters import Merged, Unmerged, merged_state


class Unfit(Exception):
    """This model cannot be what the learner needs; the message says why."""


@dataclass(frozen=True)
class ModelState:
    """Tensors, arrays, `Merged` or `Unmerged` weights, by the names under which they are published; `frozen` are those
    that are parameters without a gradient."""

    tensors: dict[str, Any]
    frozen: frozenset[str]

    @property
    def sharded(self) -> bool:
        """Says whether all ranks must take part in gathering it."""
        return any(map(is_sharded, self.tensors.values()))

    @property
    def gathered(self) -> bool:
        """Says whether some of its tensors exist only when it is their turn."""
        return self.sharded or any(isinstance(value, Merged) for value in self.tensors.values())

    def check(self, learners: Sequence[Mapping[str, tuple[int, ...]]]) -> "ModelState":
        """Returns what is to be published to these learners (the shapes that they need, by name; none: unknown). Raises
        Unfit if it is for none of them."""
        unmerged = {name: value for name, value in self.tensors.items() if isinstance(value, Unmerged)}
        given = {name: _shape(value) for name, value in self.tensors.items() if name not in unmerged}
        if not given:
            raise Unfit(next((one.reason for one in unmerged.values()), "the model has no tensors"))
        reasons = [_unfit(learner, given, unmerged) for learner in learners]
        if reasons and all(reasons):
            raise Unfit(reasons[0])
        if unmerged and not reasons:
            raise Unfit(_merge_it(next(iter(unmerged.values()))))
        return ModelState({name: value for name, value in self.tensors.items() if name not in unmerged}, self.frozen)


class Naming:
    """Turns the models that a trainer publishes into ModelStates.

    `weights` is a function that returns the module or mapping to publish, or a mapping from the beginnings of names to
    what is put in their place. With beginnings, only tensors that have one of them are published."""

    def __init__(
        self, weights: Callable[[Any], Any] | Mapping[str, str] | None, strip_prefix: str, add_prefix: str
    ) -> None:
        self._choose = weights if callable(weights) else None
        beginnings = dict(weights) if isinstance(weights, Mapping) else {}
        given = weights is None or callable(weights) or isinstance(weights, Mapping)
        if not given or not all(isinstance(part, str) for pair in beginnings.items() for part in pair):
            raise ValueError("weights must be a function, or a mapping from beginnings of names to others")
        if beginnings and (strip_prefix or add_prefix):
            raise ValueError("weights already says how names begin; leave strip_prefix and add_prefix out")
        if strip_prefix or add_prefix:
            beginnings = {strip_prefix: add_prefix}
        self._renaming = Renaming(beginnings)

    def state(self, model: Any) -> ModelState:
        """Names what is published of `model`, on every rank alike. Raises ValueError for two tensors of one name, Unfit
        if no name has one of the beginnings, and what the model raises."""
        model = model if self._choose is None else self._choose(model)
        tensors: dict[str, Any] = {}
        merged = merged_state(model)
        for name, value in merged.items():
            if (published := self._renaming.name(name)) is None:
                continue
            if published in tensors:
                raise ValueError(f"{name} is a second tensor named {published}; wrappers' prefixes do not count")
            tensors[published] = value
        if merged and not tensors:
            raise Unfit(self._renaming.nothing_of(list(merged)))
        parameters = model.named_parameters(remove_duplicate=False) if hasattr(model, "named_parameters") else ()
        frozen = (self._renaming.name(name) for name, parameter in parameters if not parameter.requires_grad)
        return ModelState(tensors, frozenset(name for name in frozen if name is not None and name in tensors))


def _unfit(
    learner: Mapping[str, tuple[int, ...]],
    given: Mapping[str, tuple[int, ...] | None],
    unmerged: Mapping[str, Unmerged],
) -> str:
    """Says why the learner cannot be served these, and nothing if it can."""
    everything = {**given, **dict.fromkeys(unmerged)}
    if wrong := misfit(learner, everything):
        return wrong
    return next((_merge_it(unmerged[name]) for name in match(learner, everything).values() if name in unmerged), "")


def is_sharded(value: Any) -> bool:
    """Says whether all ranks must take part in gathering the value."""
    return value.sharded if isinstance(value, Merged) else hasattr(value, "full_tensor")


def whole(value: Any) -> Any:
    """Gathers the value, if it is in parts."""
    if isinstance(value, Merged):
        return value.whole()
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _shape(value: Any) -> tuple[int, ...] | None:
    shape = getattr(value, "shape", None)
    return None if shape is None else tuple(shape)


def _merge_it(unmerged: Unmerged) -> str:
    return f"{unmerged.reason}; merge it (merge_adapter), or publish by weights= what the learner computes with"
