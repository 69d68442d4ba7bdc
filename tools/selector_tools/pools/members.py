"""Writes shards again with what the reference makes of each sample: WebDataset shards with members KEY.ref.npy."""

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import asdict
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from selector_client.loading.reference import MEMBER

from selector_server.errors import SetupError
from selector_tools.pools import scores, storage
from selector_tools.pools.pool import Shard
from selector_tools.pools.webdataset import TarShard, files_in_tar

ABOUT = "reference.json"
_FLAG = "--shards"


def name_of(shard: str) -> str:
    """Returns what the file of the shard of this name is called; it is quoted as that of its scores is."""
    return quote(shard, safe="") + ".tar"


def begin(folder: str, shards: Sequence[Shard], about: scores.About) -> list[TarShard]:
    """Writes in `folder` of which reference the members are, and returns the shards. Raises SetupError if one of those
    is no tar file, or if the members that are there are of another reference."""
    tars = [shard for shard in shards if isinstance(shard, TarShard)]
    if len(tars) < len(shards):
        raise SetupError(_FLAG, folder, "takes WebDataset shards only; the pool has others")
    place = storage.joined(folder, ABOUT)
    if storage.kind(folder, _FLAG) == "folder":
        storage.sweep(folder)
    if storage.kind(place, _FLAG) is not None:
        with storage.opened(place, _FLAG) as found:
            try:
                known = scores.About(**json.loads(found.read()))
            except (ValueError, TypeError) as error:
                raise SetupError(_FLAG, place, "does not say of which reference the members are") from error
        scores.check(known, about, place, _FLAG)
        return tars
    with storage.written(place, _FLAG) as file:
        file.write(json.dumps(asdict(about)).encode())
    return tars


def add(shard: TarShard, scored: str, folder: str) -> None:
    """Copies a shard's files to `folder`, uncompressed, and puts behind those of each sample that was scored its
    embeddings, float16 [2, D]: image, text. `scored` is the place of its scores. Samples that cannot be used have none.
    Raises SetupError if samples have several captions."""
    left = {}
    for part in scores.read(scored, flag="--out"):
        for row, name in enumerate(part.ids):
            left[str(name)] = np.stack([part.image[row], part.text[row]])
    target = storage.joined(folder, name_of(shard.name))
    with storage.written(target, _FLAG) as file, tarfile.open(fileobj=file, mode="w") as out:
        key, seen = "", set[str]()
        for member, name, extension, content in files_in_tar(shard.place):
            if extension == MEMBER:
                continue
            if name != key or extension in seen:
                _end(out, key, left.pop(shard.called(key)[0], None))
                key, seen = name, set()
            seen.add(extension)
            out.members = []  # type: ignore[attr-defined] # or they would all be kept
            out.addfile(member, io.BytesIO(content or b""))
        _end(out, key, left.pop(shard.called(key)[0], None))
        if left:
            what = f"has {len(left)} pairs that are no sample of their own, of which the first is {next(iter(left))}"
            raise SetupError(_FLAG, shard.place, f"{what}; samples must have one caption")


def _end(out: tarfile.TarFile, key: str, found: NDArray[np.float16] | None) -> None:
    """Adds what was found of the sample with this key."""
    if found is None:
        return
    content = io.BytesIO()
    np.save(content, found)
    header = tarfile.TarInfo(f"{key}.{MEMBER}")
    header.size = content.tell()
    content.seek(0)
    out.addfile(header, content)
