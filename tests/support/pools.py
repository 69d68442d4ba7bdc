"""Pools on disk: what the tests of `selector cache` and `selector reference` read."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from support.model import WORDS, samples


def png(pixels) -> bytes:
    """uint8 [H, W, 3] as a file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def text(tokens) -> str:
    return " ".join(WORDS[token] for token in tokens)


def write_tar(file: Path, members) -> Path:
    """`members` are (name, bytes) in their order, or TarInfos without content."""
    with tarfile.open(file, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return file


def shard(file: Path, count: int, seed: int = 0) -> Path:
    """`samples(count, seed)` as a shard."""
    pixels, tokens = samples(count, seed)
    members = []
    for row in range(count):
        members += [(f"{row:04}.png", png(pixels[row])), (f"{row:04}.txt", text(tokens[row]).encode())]
    return write_tar(file, members)


def arrays(file: Path, count: int, seed: int = 0, **more) -> Path:
    """`samples(count, seed)` as an .npz; None takes a column out."""
    pixels, tokens = samples(count, seed)
    columns = {"images": pixels, "tokens": tokens} | more
    np.savez(file, **{name: column for name, column in columns.items() if column is not None})
    return file
