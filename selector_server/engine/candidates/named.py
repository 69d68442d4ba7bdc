"""Candidates that have names only: which of them would compete, before anybody reads their images and texts."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from selector_server.engine.arrays import cosines
from selector_server.engine.candidates.prefilter import close_prefiltered
from selector_server.engine.candidates.preparation import Preparation
from selector_server.engine.closed import ALL_OPEN, Closed, Closing
from selector_server.engine.request import Request
from selector_server.engine.task import Task


@dataclass(frozen=True)
class Named:
    """B candidates by their `ids`; open ones have different ones. There is nothing of them that could be scored: those
    that are open once they are prepared are the shortlist."""

    form: ClassVar[str] = "names"
    encoded: ClassVar[bool] = True
    keyed: ClassVar[bool] = True
    reference_brought: ClassVar[bool] = False
    ids: list[bytes]
    closed: Closed = ALL_OPEN

    @property
    def size(self) -> int:
        return len(self.ids)

    def extra_bytes(self, preparation: Preparation) -> int:
        return self.size * preparation.found_bytes

    def prepare(self, task: Task[Any], preparation: Preparation, request: Request) -> Self:
        """Closes what the task's prefilter leaves out. Raises what `request.check` raises."""
        if task.rule.prefilter is None:
            return self
        closing = Closing(self.closed)
        rows = closing.open_rows(self.size)
        found = preparation.find([self.ids[row] for row in rows.tolist()], None, rows, request)
        request.check()
        if found is not None:
            close_prefiltered(task, closing, rows, found.known, cosines(found.image, found.text))
        return replace(self, closed=closing.closed())
