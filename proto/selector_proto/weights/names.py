"""Names of parameters: what wrappers put into them, and how those that came differ from those that are needed."""

import difflib
import re
from collections.abc import Iterable, Mapping
from itertools import islice

# torch's own wrappers have these names for what they wrap; nobody else's module is called so.
_TORCH_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# DistributedDataParallel and AveragedModel call it this, as may anybody.
_MODULE = "module."
_ANY_WRAPPER = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Tensors of peft's and loralib's adapters have these parts in their names, beside what they adapt.
_ADAPTER = re.compile(
    r"(?:^|\.)(lora_(?:embedding_)?[AB]|lora_magnitude_vector|hada_\w{1,5}|lokr_\w{1,5}|ia3_l|oft_[rRs]|boft_[RS]"
    r"|vera_lambda_[bd]|trainable_tokens_(?:delta|original)|modules_to_save)(?=\.|$)"
)
_SHOWN, _SHOWN_CHARACTERS = 3, 100
# Of hostile lists no more than so many names are compared.
_COMPARED = 2000


def stripped(name: str) -> str:
    """Returns the name without what wrappers put in front of it, and without torch's own wrappers anywhere. A `module.`
    in the middle may be the model's own, and stays."""
    for wrapper in _TORCH_WRAPPERS:
        if wrapper in name:
            name = re.sub(rf"(^|(?<=\.)){re.escape(wrapper)}", "", name)
    while name.startswith(_MODULE):
        name = name.removeprefix(_MODULE)
    return name


def plain(name: str) -> str:
    """Returns the name without any wrapper's part, wherever it stands."""
    return _ANY_WRAPPER.sub("", name)


def adapted(name: str) -> str | None:
    """Returns the name of the parameter that an adapter's tensor of this name changes, and None if it is not an
    adapter's."""
    if (found := _ADAPTER.search(name)) is None:
        return None
    before, after = name[: found.start(1)], name[found.end() :].removeprefix(".")
    return before + (after.partition(".")[2] if found[1] == "modules_to_save" else "weight")


def match(needed: Iterable[str], given: Iterable[str]) -> dict[str, str]:
    """Returns for each needed name the given one that stands for it: the same, or else the only one that differs by
    wrappers' parts alone. Needed names for which there is none, or more than one, are left out."""
    given = set(given)
    found = {name: name for name in needed if name in given}
    if len(found) == len(needed := list(needed)):
        return found
    by_plain: dict[str, list[str]] = {}
    for name in given - found.keys():
        by_plain.setdefault(plain(name), []).append(name)
    for name in needed:
        if name not in found and len(same := by_plain.get(plain(name), [])) == 1:
            found[name] = same[0]
    return found


def misfit(needed: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...] | None]) -> str:
    """Says why tensors of the given names and shapes (None: unknown) are not what is needed, and nothing if they
    are."""
    found = match(needed, given)
    if len(found) < len(needed):
        return difference(needed, given)
    for name, other in found.items():
        shape = given[other]
        if shape is not None and shape != needed[name] and {shape, needed[name]} != {(), (1,)}:
            return f"parameter {_cut(name)} is {list(shape)}; the learner needs shape {list(needed[name])}"
    return ""


def difference(needed: Iterable[str], given: Iterable[str]) -> str:
    """Says which needed names are missing and what came instead, cut to a few that tell, and what to do if that can be
    seen. At least one must be missing."""
    needed, given = list(needed), set(given)
    found = match(needed, given)
    missing = sorted(set(needed) - found.keys())
    unknown = sorted(given - set(found.values()))
    said = f"{len(missing)} of {len(needed)} parameters are missing: {_listed(missing)}"
    if not unknown:
        return f"{said}; {'nothing came' if not given else 'nothing came instead'}"
    others = f"{len(unknown)} others" if len(unknown) > 1 else "another"
    return f"{said}; {others} came instead: {_listed(_likest(missing, unknown))}{_advice(missing, unknown)}"


def _advice(missing: list[str], unknown: list[str]) -> str:
    if adapter := next(filter(_ADAPTER.search, unknown), None):
        return f"; {_cut(adapter)} belongs to an adapter that is not merged"
    there, first = {plain(name) for name in unknown}, plain(missing[0])
    wanted = [plain(name) for name in missing]
    for name in there:
        if name.endswith("." + first) and there.issuperset(name[: -len(first)] + other for other in wanted):
            prefix = name[: -len(first)]
            return f"; all of them are there, below {_cut(prefix)!r}: publish with strip_prefix={_cut(prefix)!r}"
    for end in (i + 1 for i, letter in enumerate(first) if letter == "."):
        prefix = first[:end]
        if all(w.startswith(prefix) for w in wanted) and there.issuperset(w[end:] for w in wanted):
            return f"; all of them are there without {_cut(prefix)!r}: publish with add_prefix={_cut(prefix)!r}"
    if len(unknown) > 1 and (prefix := _common(unknown)):
        return f"; each of those begins with {_cut(prefix)!r}"
    return ""


def _common(names: list[str]) -> str:
    """Returns the parts with which all of the sorted names begin."""
    first, last = names[0], names[-1]
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[: first.rfind(".", 0, same) + 1]


def _likest(missing: list[str], unknown: list[str]) -> list[str]:
    """Returns the unknown names, those first that look most like one that is missing."""
    compared = {name[:_SHOWN_CHARACTERS]: name for name in islice(unknown, _COMPARED)}
    first: dict[str, None] = {}
    for name in missing[:_SHOWN]:
        for close in difflib.get_close_matches(name[:_SHOWN_CHARACTERS], compared, n=1):
            first[compared[close]] = None
    return [*first, *(name for name in unknown if name not in first)]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(_cut, names[:_SHOWN])) + more


def _cut(name: str) -> str:
    return name if len(name) <= _SHOWN_CHARACTERS else name[:_SHOWN_CHARACTERS] + "…"
