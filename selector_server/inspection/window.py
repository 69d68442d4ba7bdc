"""The last super-batches: numbers of many, content of the few newest. Bounded by their number and by their bytes."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from selector_server.inspection.observation import Content, Observation
from selector_server.inspection.pictures import galleries, shown_rows

# So many of the newest super-batches keep their content.
WITH_CONTENT = 16
NUMBER_BYTES, CONTENT_BYTES = 64 << 20, 64 << 20


class Window:
    """At most `size` super-batches, oldest first; `with_content` of them keep theirs. The last one is always kept;
    of a content that alone is larger than all may be, the candidates of galleries alone keep theirs. It is changed by
    one thread, and its callers see to it that nobody reads meanwhile."""

    def __init__(self, size: int, with_content: int = WITH_CONTENT) -> None:
        self._size, self._with_content = size, with_content
        self._kept: deque[Observation] = deque()
        self._bytes = 0

    def __iter__(self) -> Iterator[Observation]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, seen: Observation) -> None:
        """Keeps one more, in the place of the oldest where there is no room."""
        if seen.content is not None and seen.content.nbytes > CONTENT_BYTES:
            seen = replace(seen, content=_of_galleries(seen, seen.content))
        self._kept.append(seen)
        self._bytes += seen.nbytes
        while len(self._kept) > self._size or (self._bytes > NUMBER_BYTES and len(self._kept) > 1):
            self._bytes -= self._kept.popleft().nbytes
        self._forget_content()

    def find(self, number: int, pictures: bool = False) -> Observation | None:
        """The super-batch of that number, or with 0 the last one; with `pictures`, the last one that has some."""
        for seen in reversed(self._kept):
            if seen.number == number or (not number and (not pictures or _has_pictures(seen))):
                return seen
        return self._kept[-1] if self._kept and not number else None

    def _forget_content(self) -> None:
        """Takes the content of older super-batches away."""
        left, bytes_ = self._with_content, CONTENT_BYTES
        for place in range(len(self._kept) - 1, -1, -1):
            seen = self._kept[place]
            if seen.content is None:
                continue
            left, bytes_ = left - 1, bytes_ - seen.content.nbytes
            if left < 0 or bytes_ < 0:
                self._kept[place] = replace(seen, content=None)


def _has_pictures(seen: Observation) -> bool:
    return seen.content is not None and bool(seen.content.pictures)


def _of_galleries(seen: Observation, content: Content) -> Content:
    rows = set(shown_rows(galleries(seen)).tolist())

    def thinned(column: object) -> list[bytes]:
        return [entry if index in rows else b"" for index, entry in enumerate(column)]  # type: ignore[var-annotated,arg-type]

    ids, captions = (thinned(column) for column in (content.ids, content.captions))
    return replace(content, ids=ids, captions=captions, tags=())
