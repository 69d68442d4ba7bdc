"""What a stranger may put where a file is expected."""

import os
import shutil
from pathlib import Path

KINDS = 8


def placed(path: Path, said: bytes, content: bytes | None = None) -> None:
    """Puts something at `path`: its first byte says what, the rest is its content unless that is given."""
    kind = said[0] % KINDS if said else 1
    removed(path)
    match kind:
        case 1:
            pass  # nothing
        case 2:
            path.mkdir()
        case 3:
            os.mkfifo(path)
        case 4:
            path.symlink_to(path.name)  # a loop
        case 5:
            path.symlink_to("/dev/zero")
        case 6:
            path.symlink_to("/dev/null")
        case _:
            path.write_bytes(said[1:] if content is None else content)


def removed(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except IsADirectoryError:
        shutil.rmtree(path)
