"""Where the captions of a sample are in its shard. Of a list of captions a trainer's client draws one, and calls that
pair ID#NUMBER; so do pools."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from selector_client.selecting.columns import is_missing

from selector_server.errors import Exclusion, InvalidRequest

_TXT, _LINES, _JSON = "txt", "txt-lines", "json:"
# A caption, and its number if it stands in a list.
Numbered = tuple[int | None, str | bytes]


@dataclass(frozen=True)
class Captions:
    """The file with this extension holds one caption, or with `lines` one in each of its lines; or it is JSON that has
    a caption or a list of them as `entry`."""

    extension: str = _TXT
    lines: bool = False
    entry: str = ""

    @staticmethod
    def at(place: str) -> "Captions":
        """Reads "txt", "txt-lines" or "json:ENTRY". Raises ValueError."""
        if place in (_TXT, _LINES):
            return Captions(lines=place == _LINES)
        if place.startswith(_JSON) and place != _JSON:
            return Captions("json", entry=place.removeprefix(_JSON))
        raise ValueError(f"{place!r} is no place of captions; must be {_TXT}, {_LINES} or {_JSON}ENTRY")

    def read(self, key: str, content: bytes) -> list[Numbered]:
        """Returns the captions in the file's content, at least one. Raises InvalidRequest if there is none, for
        which the sample is excluded."""
        if not self.entry:
            return self.of(key, content, f"its .{self.extension}")
        try:
            sample = json.loads(content)
        except (ValueError, RecursionError) as error:
            limit = f"must be JSON: {error}"
            raise InvalidRequest(key, "a .json", limit).excluding(Exclusion.UNREADABLE) from error
        value = sample.get(self.entry) if isinstance(sample, dict) else None
        return self.of(key, value, f"the entry {self.entry} of its .json")

    def of(self, key: str, value: Any, where: str) -> list[Numbered]:
        """Returns the captions in a value, at least one: a text or a list of texts; with `lines`, a text is one of each
        of its lines. `where` says for people what the value is. Raises InvalidRequest as `read` does."""
        found: list[Numbered] = []
        if self.lines and isinstance(value, str | bytes):
            content = in_utf8(value)
            value = [line.removesuffix(b"\r") if line.strip() else None for line in content.split(b"\n")]
        listed: Sequence[Any] = value if isinstance(value, list) else [value]
        for number, one in enumerate(listed):
            if not isinstance(one, bytes) and is_missing(one):
                continue
            if not isinstance(one, str | bytes | int | float):
                what = f"a {type(one).__name__} in {where}"
                raise InvalidRequest(key, what, "must be a text or a list of texts").excluding(Exclusion.FORMAT)
            text = one if isinstance(one, bytes) else str(one)
            found.append((number if listed is value else None, text))
        if not found:
            raise InvalidRequest(key, f"no caption in {where}", "a pair needs one").excluding(Exclusion.MISSING)
        return found


def in_utf8(caption: str | bytes) -> bytes:
    """Returns the caption's bytes. Raises InvalidRequest, which excludes one pair, if it is not Unicode."""
    try:
        return caption if isinstance(caption, bytes) else caption.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest("text", ascii(caption), f"must be Unicode: {error}").excluding(Exclusion.TEXT) from error
