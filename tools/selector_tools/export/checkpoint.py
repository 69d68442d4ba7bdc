"""Loads a checkpoint strictly into a model: one that lacks some weights would be wrong without any error."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from selector_server.errors import SetupError
from selector_tools.export.checkpoint_files import entries

# What holds a state_dict in the files of training loops and their libraries.
_WRAPPERS = ("state_dict", "model", "model_state_dict", "module")
# Parts of a name that torch's own wrappers add: DistributedDataParallel and AveragedModel, compile, FSDP, and
# activation checkpointing, whichever submodule they wrap.
_WRAPPING = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_SHOWN = 5


def load(module: nn.Module, place: Path) -> str:
    """Replaces every parameter and buffer of `module` by that in the file or folder `place`. Returns what of a larger
    checkpoint was taken, and "" if it was all. Raises SetupError if they do not fit."""
    return fill(module, read(place), place)


def fill(module: nn.Module, state: dict[str, Tensor], place: Path) -> str:
    """Does what `load` does with the state_dict that stood in `place`."""
    wanted = module.state_dict()
    found, note = _named_as(wanted, state, place)
    for name in wanted.keys() & found.keys():
        if found[name].numel() == wanted[name].numel() == 1:  # a logit scale of shape [] or [1]
            found[name] = found[name].reshape(wanted[name].shape)
    misshapen = [name for name in wanted.keys() & found.keys() if found[name].shape != wanted[name].shape]
    problems = [
        _listed("missing", wanted.keys() - found.keys()),
        _listed("unexpected", found.keys() - wanted.keys()),
        _listed(
            "misshapen",
            (f"{name} {list(found[name].shape)} for {list(wanted[name].shape)}" for name in misshapen),
        ),
    ]
    if any(problems):
        limit = f"does not fit the model: {'; '.join(filter(None, problems))}"
        if misshapen and all(found[name].numel() == 0 for name in misshapen):
            limit += "; empty tensors are DeepSpeed's ZeRO 3: gather them first, by its zero_to_fp32.py"
        raise SetupError("--checkpoint", place, limit)
    module.load_state_dict(found)
    return note


def read(place: Path) -> dict[str, Tensor]:
    """Returns the state_dict in a file or folder, under the names that stand there. Raises SetupError."""
    content = entries(place)
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(inner := content.get(key), Mapping):
            content = inner
    if not isinstance(content, Mapping) or not content:
        raise SetupError("--checkpoint", place, f"holds a {type(content).__name__}; must hold a state_dict")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise SetupError("--checkpoint", place, f"entry {key!r} is a {type(value).__name__}; must be a tensor")
    return dict(content)


def _named_as(wanted: Mapping[str, Tensor], found: dict[str, Tensor], place: Path) -> tuple[dict[str, Tensor], str]:
    """Renames what was found to the names of the model, which may be a part of what was trained; also returns what
    was taken, where that is not all. Raises SetupError if the model is there more than once."""
    names = {_plain(name): name for name in wanted}  # the model's own names may have such parts, too
    plain = {_plain(name): value for name, value in found.items()}
    if len(names) < len(wanted) or len(plain) < len(found):
        return found, ""
    plain.pop("n_averaged", None)  # AveragedModel counts its updates
    plain = {name: value for name, value in plain.items() if name in names or not _is_position_table(name, value)}
    longest = max(names, key=len)
    prefixes = [name.removesuffix(longest) for name in plain if f".{name}".endswith(f".{longest}")]
    hits = {prefix: sum(prefix + name in plain for name in names) for prefix in prefixes}
    if hits.get("") == len(names) or not hits:
        return {names.get(name, name): value for name, value in plain.items()}, ""
    whole = sorted(prefix for prefix, count in hits.items() if count == len(names))
    if len(whole) > 1:
        limit = f"holds the model more than once, as {', '.join(whole)}; save the one that is meant"
        raise SetupError("--checkpoint", place, limit)
    prefix = max(hits, key=lambda prefix: hits[prefix])
    part = {name.removeprefix(prefix): value for name, value in plain.items() if name.startswith(prefix)}
    rest = len(plain) - len(part)
    note = f"taking what is called {prefix}*, and none of {rest} other entries" if rest else ""
    return {names.get(name, name): value for name, value in part.items()}, note


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPING)


def _is_position_table(name: str, value: Tensor) -> bool:
    """Whether this is 0, 1, 2 and so on, which transformers stored in its checkpoints until it stopped to."""
    counted = name.rpartition(".")[2] == "position_ids" and not value.is_floating_point()
    return counted and value.flatten().tolist() == list(range(value.numel()))


def _listed(what: str, names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return f"{what} {', '.join(ordered[:_SHOWN])}{more}" if ordered else ""
