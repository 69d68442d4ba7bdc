"""Names of tensors that begin otherwise than they are wanted, as those of a model that is a part of a larger one do."""

from collections.abc import Mapping, Sequence

from selector_proto.weights.names import stripped

_SHOWN = 3


class Renaming:
    """Puts new beginnings in place of those that names have.

    A beginning is whole parts of a name, and wrappers' parts do not count. The longest one decides, and names that have
    none are left out. Without any beginnings, names lose nothing but their wrappers' parts."""

    def __init__(self, beginnings: Mapping[str, str]) -> None:
        pairs = ((stripped(_whole(old)), _whole(new)) for old, new in beginnings.items())
        self._beginnings = sorted(pairs, key=lambda pair: -len(pair[0]))

    def name(self, name: str) -> str | None:
        """Returns the new name, and None for one that has no beginning of these."""
        name = stripped(name)
        if not self._beginnings:
            return name
        for old, new in self._beginnings:
            if name.startswith(old):
                return new + name.removeprefix(old)
            if name == old.removesuffix("."):  # a whole name
                return new.removesuffix(".")
        return None

    def nothing_of(self, names: Sequence[str]) -> str:
        """Says in words that none of the names has a beginning of these, and how a few of them are called."""
        wanted = " or ".join(repr(old) for old, _ in self._beginnings)
        more = " and so on" if len(names) > _SHOWN else ""
        return f"no name begins with {wanted}; they are {', '.join(names[:_SHOWN])}{more}"


def _whole(beginning: str) -> str:
    """A beginning ends where a name's part ends."""
    return beginning if not beginning or beginning.endswith(".") else beginning + "."
