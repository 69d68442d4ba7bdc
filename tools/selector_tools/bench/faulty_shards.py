"""WebDataset shards with a known share of bad samples, and a reader that gives them in super-batches as they are."""

import io
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 48  # pixels of a good picture, which the sidecar resizes
HUGE_SIDE = 8192  # more pixels than a sidecar takes
COLOURS = ("red", "green", "blue", "yellow", "pink", "cyan", "grey", "white")
# What is wrong with bad samples, by turns. The words are the reasons by which the sidecar excludes them.
FAULTS = ("unreadable", "format", "missing", "too_large", "repeated")
_SUPER_BATCHES_A_SHARD = 5


@dataclass(frozen=True)
class Shards:
    """Shards whose samples, read in order, make `steps` super-batches of `size`. `planted` counts the bad ones."""

    files: list[Path]
    size: int
    steps: int
    planted: Counter[str]

    def super_batches(self) -> Iterator[dict[str, list[Any]]]:
        """Yields `images` (files, or None), `texts` (or None) and `ids` ("SHARD/KEY") of each super-batch."""
        batch: dict[str, list[Any]] = {"images": [], "texts": [], "ids": []}
        for shard in self.files:
            for key, image, text in _samples(shard):
                for column, value in zip(batch.values(), (image, text, f"{shard.stem}/{key}"), strict=True):
                    column.append(value)
                if len(batch["ids"]) == self.size:
                    yield batch
                    batch = {name: [] for name in batch}


def write_shards(folder: Path, share: float, size: int, steps: int) -> Shards:
    """Writes shards in which this share of the samples is bad, at random places."""
    rng = np.random.default_rng(0)
    bad = rng.choice(steps * size, round(share * steps * size), replace=False)
    faults = {int(place): FAULTS[turn % len(FAULTS)] for turn, place in enumerate(bad)}
    donors = _donors(faults, size)
    faults |= {place: "unreadable" for place, fault in faults.items() if fault == "repeated" and place not in donors}
    huge, files = _huge(), []
    folder.mkdir()
    for first in range(0, steps * size, _SUPER_BATCHES_A_SHARD * size):
        last = min(steps * size, first + _SUPER_BATCHES_A_SHARD * size)
        files.append(folder / f"{first // (_SUPER_BATCHES_A_SHARD * size):05}.tar")
        with tarfile.open(files[-1], "w") as tar:
            for place in range(first, last):
                _add(tar, donors.get(place, place), faults.get(place, ""), huge)
    return Shards(files, size, steps, Counter(faults.values()))


def _donors(faults: dict[int, str], size: int) -> dict[int, int]:
    """Returns which sample each repeated one repeats: a good one of its super-batch that stands before it. It is not
    its neighbour, whose files would count as the same sample's, and no other one repeats it."""
    donors: dict[int, int] = {}
    for place, fault in faults.items():
        taken = set(donors.values())
        free = (other for other in range(place - place % size, place - 1) if other not in faults and other not in taken)
        if fault == "repeated" and (donor := next(free, None)) is not None:
            donors[place] = donor
    return donors


def _add(tar: tarfile.TarFile, number: int, fault: str, huge: bytes) -> None:
    """Adds the files of one sample, which are named by its key."""
    rng = np.random.default_rng(number)
    image = _file(Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((SIDE, SIDE)), "JPEG")
    if fault == "unreadable":
        image = image[: len(image) // 2]
    elif fault == "format":
        image = b"<html><title>404 Not Found</title></html>"
    elif fault == "too_large":
        image = huge
    files = {"jpg": image, "txt": f"{COLOURS[number % len(COLOURS)]} number {number % 1000}".encode()}
    if fault == "missing":
        del files["txt"]
    for kind, content in files.items():
        member = tarfile.TarInfo(f"{number:09}.{kind}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


def _huge() -> bytes:
    return _file(Image.new("1", (HUGE_SIDE, HUGE_SIDE)), "PNG")


def _file(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def _samples(shard: Path) -> Iterator[tuple[str, bytes | None, str | None]]:
    """Yields key, image and text of each sample: of neighbours with the same key."""
    with tarfile.open(shard) as tar:
        for key, members in groupby(tar, lambda member: member.name.partition(".")[0]):
            files = {}
            for member in members:
                file = tar.extractfile(member)
                assert file is not None
                files[member.name.partition(".")[2]] = file.read()
            text = files.get("txt")
            yield key, files.get("jpg"), None if text is None else text.decode()
