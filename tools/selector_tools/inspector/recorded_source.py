"""A Source that reads what a sidecar recorded, without the sidecar."""

from pathlib import Path

from selector_server.errors import NotPossible
from selector_server.inspection import parquet
from selector_server.inspection.local_source import LocalSource
from selector_server.inspection.observation import Observation
from selector_server.inspection.recorder import recorded
from selector_server.inspection.stores import Inspection

# So many of the newest super-batches are opened; whoever wants more reads the files in a notebook.
OPENED = 4096


class RecordedSource(LocalSource):
    """The newest super-batches of a folder, as a sidecar would show them. Raises NotPossible for a folder without any,
    and for a file that is none."""

    def __init__(self, folder: Path) -> None:
        newest: list[list[tuple[str, Observation]]] = []
        for file in reversed(recorded(folder)):
            newest.append(list(parquet.read(file)))
            if sum(map(len, newest)) >= OPENED:
                break
        seen = [one for part in reversed(newest) for one in part][-OPENED:]
        if not seen:
            raise NotPossible("folder", folder, "has no files that selector serve --record wrote")
        content = any(one.content is not None for _, one in seen)
        inspection = Inspection(OPENED, content, with_content=OPENED)
        for _, one in seen:
            inspection.add(one)
        super().__init__(inspection, seen[-1][0])
