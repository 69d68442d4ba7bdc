"""A pool of made-up pairs in WebDataset shards."""

import io
import tarfile
from pathlib import Path

import numpy as np

from selector_tools.bench.synthetic import jpeg, sentences

PHOTOS = 512  # so many are made; pairs beyond them have one of them again


def write_pool(folder: Path, shards: int, pairs: int) -> Path:
    """Writes so many shards of so many pairs, of JPEG files and captions of a dozen words."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    photos = [jpeg(rng) for _ in range(min(shards * pairs, PHOTOS))]
    for number in range(shards):
        with tarfile.open(folder / f"{number:05}.tar", "w") as tar:
            for row, caption in enumerate(sentences(pairs, rng)):
                photo = photos[(number * pairs + row) % len(photos)]
                for kind, content in (("jpg", photo), ("txt", caption.encode())):
                    member = tarfile.TarInfo(f"{row:05}.{kind}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder
