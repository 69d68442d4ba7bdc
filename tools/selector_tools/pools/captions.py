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
        if self.entry:
            found = self._listed(key, content)
        elif self.lines:
            lines = [line.removesuffix(b"\r") for line in content.split(b"\n")]
            found = [(number, line) for number, line in enumerate(lines) if line.strip()]
        else:
            found = [(None, content)]
        if not found:
            what = f"the entry {self.entry} of its .json" if self.entry else f"its .{self.extension}"
            raise InvalidRequest(key, f"no caption in {what}", "a pair needs one").excluding(Exclusion.MISSING)
        return found

    def _listed(self, key: str, content: bytes) -> list[Numbered]:
        try:
            sample = json.loads(content)
        except (ValueError, RecursionError) as error:
            limit = f"must be JSON: {error}"
            raise InvalidRequest(key, "a .json", limit).excluding(Exclusion.UNREADABLE) from error
        value = sample.get(self.entry) if isinstance(sample, dict) else None
        listed: Sequence[Any] = value if isinstance(value, list) else [value]
        found: list[Numbered] = []
        for number, one in enumerate(listed):
            if is_missing(one):
                continue
            if not isinstance(one, str | int | float):
                what = f"a {type(one).__name__} as {self.entry} in .json"
                raise InvalidRequest(key, what, "must be a text or a list of texts").excluding(Exclusion.FORMAT)
            found.append((number if listed is value else None, str(one)))
        return found


def in_utf8(caption: str | bytes) -> bytes:
    """Returns the caption's bytes. Raises InvalidRequest, which excludes one pair, if it is not Unicode."""
    try:
        return caption if isinstance(caption, bytes) else caption.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest("text", ascii(caption), f"must be Unicode: {error}").excluding(Exclusion.TEXT) from error
