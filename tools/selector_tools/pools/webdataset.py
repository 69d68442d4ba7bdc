"""WebDataset shards are tar files in which KEY.jpg (or .jpeg, .png, .webp) and KEY.txt follow one another. They are
read as a stream; nothing is ever unpacked to disk, so that names in them lead nowhere."""

import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path

from selector_proto.contract import MAX_ID_BYTES

from selector_server.errors import SetupError
from selector_tools.pools.pool import Batch

MAX_MEMBER_BYTES = 16 << 20
IMAGES = ("jpg", "jpeg", "png", "webp")
TEXT = "txt"
# The key ends at the first dot of the file's name, as in WebDataset.
_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)", re.DOTALL)
_BLOCK = 512


class TarPool:
    """The pairs of `shards`; a sample's id is "SHARD_STEM/KEY". Raises SetupError for two shards of one stem."""

    def __init__(self, shards: Sequence[Path]) -> None:
        stems: dict[str, Path] = {}
        for shard in shards:
            if (other := stems.setdefault(shard.stem, shard)) is not shard:
                raise SetupError("--pool", shard, f"must differ in its name from {other}: ids begin with it")
        self.size: int | None = None
        self._shards = shards

    def batches(self, size: int) -> Iterator[Batch]:
        """Yields the pairs, as Pool says."""
        pairs = chain.from_iterable(map(_pairs, self._shards))
        empty = True
        while some := list(islice(pairs, size)):
            empty = False
            ids, images, texts, captions = zip(*some, strict=True)
            yield Batch(list(ids), list(images), list(texts), list(captions))
        if empty:
            raise SetupError("--pool", ", ".join(map(str, self._shards)), "holds no pair of image and text")


def _pairs(shard: Path) -> Iterator[tuple[str, bytes, bytes, str]]:
    """Yields (id, image file, text, caption) of each pair of one shard."""
    done: set[str] = set()
    last, parts = "", dict[str, bytes]()
    for key, kind, content in _members(shard):
        if key != last and parts:
            yield _pair(shard, last, parts, done)
            parts = {}
        if kind in parts:
            raise SetupError("--pool", f"{shard.stem}/{key}", f"has a second {kind}")
        last = key
        parts[kind] = content
    if parts:
        yield _pair(shard, last, parts, done)


def _pair(shard: Path, key: str, parts: Mapping[str, bytes], done: set[str]) -> tuple[str, bytes, bytes, str]:
    name = f"{shard.stem}/{key}"
    if key in done:
        raise SetupError("--pool", name, "is there twice; the files of a sample must follow one another")
    done.add(key)
    if "image" not in parts:
        raise SetupError("--pool", name, f"has no image; must have a .{', .'.join(IMAGES)} next to its .{TEXT}")
    if "text" not in parts:
        raise SetupError("--pool", name, f"has no text; must have a .{TEXT} next to its image")
    try:
        if len(name.encode()) > MAX_ID_BYTES:
            raise SetupError("--pool", name, f"an id must have at most {MAX_ID_BYTES} bytes")
        return name, parts["image"], parts["text"], parts["text"].decode()
    except UnicodeError as error:
        raise SetupError("--pool", ascii(name), f"its name and its text must be UTF-8: {error}") from error


def _members(shard: Path) -> Iterator[tuple[str, str, bytes]]:
    """Yields (key, "image" or "text", content) of the files that make pairs; others are passed over."""
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                match = _NAME.fullmatch(member.name)
                if not member.isreg() or match is None:
                    continue
                key, extension = match[1], match[2].lower()
                if extension not in (*IMAGES, TEXT):
                    continue
                if member.size > MAX_MEMBER_BYTES:
                    limit = f"has {member.size} bytes; a file may have {MAX_MEMBER_BYTES}"
                    raise SetupError("--pool", f"{shard.stem}/{member.name}", limit)
                file = tar.extractfile(member)
                assert file is not None
                yield key, "text" if extension == TEXT else "image", file.read()
            _check_end(shard, tar.offset)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise SetupError("--pool", shard, f"must be a tar file, uncompressed and whole: {error}") from error


def _check_end(shard: Path, offset: int) -> None:
    """Raises ReadError if the archive does not end at `offset`, where its mark is a block of zeros: tarfile takes a
    damaged header for the end."""
    with shard.open("rb") as stream:
        stream.seek(offset)
        if stream.read(_BLOCK) != bytes(_BLOCK):
            raise tarfile.ReadError(f"neither a file nor the end at byte {offset}")
