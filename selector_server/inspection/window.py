"""The last super-batches: numbers of many, content of the few newest. Bounded by their number and by their bytes."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from selector_server.inspection.observation import Content, Observation
from selector_server.inspection.pictures import galleries, shown_rows

# So many of the newest super-batches keep their content, and so many of the newest that have pictures keep those.
WITH_CONTENT, WITH_PICTURES = 16, 4
NUMBER_BYTES, CONTENT_BYTES = 64 << 20, 64 << 20


class Window:
    """At most `size` super-batches, oldest first; `with_content` of them keep theirs, and WITH_PICTURES their pictures.
    The last one is always kept, and apart from them the candidates of galleries of the last one that has pictures,
    however many came after it. Of a content that alone is larger than all may be, too, the candidates of galleries
    alone keep theirs. It is changed by one thread, and its callers see to it that nobody reads meanwhile."""

    def __init__(self, size: int, with_content: int = WITH_CONTENT) -> None:
        self._size, self._contents = size, with_content
        self._kept: deque[Observation] = deque()
        self._bytes = 0
        self._pictured: Observation | None = None

    def __iter__(self) -> Iterator[Observation]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, seen: Observation) -> None:
        """Keeps one more, in the place of the oldest where there is no room."""
        if seen.content is not None and seen.content.nbytes > CONTENT_BYTES:
            seen = replace(seen, content=_of_galleries(seen, seen.content))
        if seen.content is not None and seen.content.pictures:
            self._pictured = replace(seen, content=_of_galleries(seen, seen.content))
        self._kept.append(seen)
        self._bytes += seen.nbytes
        while len(self._kept) > self._size or (self._bytes > NUMBER_BYTES and len(self._kept) > 1):
            self._bytes -= self._kept.popleft().nbytes
        self._forget_content()

    def find(self, number: int, pictures: bool = False) -> Observation | None:
        """The super-batch of that number, or with 0 the last one; with `pictures`, the last one that has some."""
        pictured = self._pictured
        if not number:
            return pictured if pictures and pictured is not None else self._kept[-1] if self._kept else None
        found = next((seen for seen in reversed(self._kept) if seen.number == number), None)
        if pictured is not None and pictured.number == number and (found is None or found.content is None):
            return pictured
        return found

    def with_content(self) -> Iterator[Observation]:
        """All super-batches of which content is kept, newest first."""
        found = [seen for seen in reversed(self._kept) if seen.content is not None]
        yield from found
        if (pictured := self._pictured) is not None and pictured.number not in {seen.number for seen in found}:
            yield pictured

    def _forget_content(self) -> None:
        """Takes the content of older super-batches away, and pictures earlier than the rest."""
        left, bytes_, pictures = self._contents, CONTENT_BYTES, WITH_PICTURES
        for place in range(len(self._kept) - 1, -1, -1):
            seen = self._kept[place]
            if seen.content is None:
                continue
            left, bytes_ = left - 1, bytes_ - seen.content.nbytes
            if left < 0 or bytes_ < 0:
                self._kept[place] = replace(seen, content=None)
            elif seen.content.pictures:
                pictures -= 1
                if pictures < 0:
                    content = replace(seen.content, pictures={}, no_picture="pictures of this one are no longer kept")
                    self._kept[place] = replace(seen, content=content)


def _of_galleries(seen: Observation, content: Content) -> Content:
    rows = set(shown_rows(galleries(seen)).tolist())

    def thinned(column: Sequence[bytes]) -> list[bytes]:
        return [entry if index in rows else b"" for index, entry in enumerate(column)]

    tags = content.tags if isinstance(content.tags, np.ndarray) else thinned(content.tags)
    return replace(content, ids=thinned(content.ids), captions=thinned(content.captions), tags=tags)
