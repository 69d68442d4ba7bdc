"""WebDataset shards are tar files in which KEY.jpg and KEY.txt follow one another. They are read as a stream, and split
into samples as the webdataset library does; nothing is ever unpacked to disk, so that names in them lead nowhere."""

import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from selector_proto.contract import MAX_ID_BYTES, caption_id

from selector_server.config import Config
from selector_server.errors import Exclusion, InvalidRequest, LimitExceeded, SelectorError, SetupError
from selector_tools.pools.captions import Captions, Numbered, in_utf8
from selector_tools.pools.pool import Batch

MAX_MEMBER_BYTES: int = Config.model_fields["max_image_bytes"].default
# Of several images of one sample the first of these counts, as in open_clip's training, which knows the first four.
IMAGES = ("jpg", "png", "jpeg", "webp", "avif", "gif", "bmp", "tif", "tiff")
# What the library's base_plus_ext and tar_file_iterator say: the key ends at the first dot of the file's name.
_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_PASSED_OVER = re.compile(r"__[^/]*__($|/)")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")

Ids = Literal["shard/key", "key"]
_Pair = tuple[str, str, bytes, bytes]  # its id, the id of the other kind, image and text
# The files of a sample by extension: the content, None where nobody asks for it, its size where that is too large.
Files = Mapping[str, bytes | int | None]


class TarPool:
    """The pairs of `shards`, whose names in ids are `names`. A sample's id is "NAME/KEY", or with `ids` "key" the
    library's `__key__` alone. It is as many pairs as it has captions."""

    def __init__(
        self, shards: Sequence[Path], names: Sequence[str], ids: Ids = "shard/key", captions: Captions | None = None
    ) -> None:
        self.size: int | None = None
        self._shards, self._names, self._ids, self._captions = shards, names, ids, captions or Captions()

    def batches(self, size: int) -> Iterator[Batch]:
        """Yields the pairs, as Pool says."""
        pairs: list[_Pair] = []
        bad: list[tuple[object, SelectorError]] = []
        empty = True
        for called, other, found in self._pairs():
            if isinstance(found, SelectorError):
                bad.append((called.encode(errors="backslashreplace").decode(), found))
            else:
                pairs.append((called, other, *found))
            if len(pairs) == size or len(bad) == size:
                yield _batch(pairs, bad)
                pairs, bad, empty = [], [], False
        if pairs or bad:
            yield _batch(pairs, bad)
        elif empty:
            raise SetupError("--pool", ", ".join(map(str, self._shards)), "holds no pair of image and text")

    def _pairs(self) -> Iterator[tuple[str, str, tuple[bytes, bytes] | SelectorError]]:
        """Yields each pair's id, its id of the other kind, and its image and text, or else what is wrong with it."""
        known = _Known()
        for shard, name in zip(self._shards, self._names, strict=True):
            for key, files in _samples(shard, self._captions.extension):
                both = f"{name}/{key}", key
                called, other = both if self._ids == "shard/key" else both[::-1]
                try:
                    contents = _contents(key, files, self._captions)
                except SelectorError as error:
                    yield called, other, error
                    continue
                image, captions = contents or (b"", [])
                for number, caption in captions:
                    ids = caption_id(called, number), caption_id(other, number)
                    try:
                        _check_id(ids[0], known)
                        yield *ids, (image, in_utf8(caption))
                    except SelectorError as error:
                        yield *ids, error


def _batch(pairs: Sequence[_Pair], bad: list[tuple[object, SelectorError]]) -> Batch:
    ids, images, texts = [pair[0] for pair in pairs], [pair[2] for pair in pairs], [pair[3] for pair in pairs]
    captions = [text.decode(errors="replace") for text in texts]
    return Batch(ids, images, texts, captions, bad, other_ids=[pair[1] for pair in pairs])


def _samples(shard: Path, text: str) -> Iterator[tuple[str, Files]]:
    """Yields key and files of each sample: files of one key that follow one another. A second file of an extension
    begins another sample, as in open_clip's training. The files of texts have the extension `text`."""
    key, files = "", dict[str, bytes | int | None]()
    for name, extension, content in _members(shard, text):
        if files and (name != key or extension in files):
            yield key, files
            files = {}
        key = name
        files[extension] = content
    if files:
        yield key, files


def _contents(key: str, files: Files, captions: Captions) -> tuple[bytes, list[Numbered]] | None:
    """Returns image and captions of a sample, or None if it is not meant to have any. Raises InvalidRequest or
    LimitExceeded if the sample cannot be used."""
    image = next((extension for extension in IMAGES if extension in files), None)
    text = captions.extension if captions.extension in files else None
    if image is None or text is None:
        dotted = [each for each in files if "." in each and each.rpartition(".")[2] in (*IMAGES, captions.extension)]
        if image is text and not dotted:
            return None
        missing = " and ".join(name for name, found in (("image", image), ("text", text)) if found is None)
        if dotted:
            limit = f"WebDataset ends a key at the first dot: of {key}.{dotted[0]} the extension is {dotted[0]}"
            raise InvalidRequest(key, f"without {missing}", limit).excluding(Exclusion.FORMAT)
        pair = f"a pair is an image and a .{captions.extension} of one key that follow one another"
        limit = f"has only .{', .'.join(files)}; {pair}"
        raise InvalidRequest(key, f"without {missing}", limit).excluding(Exclusion.MISSING)
    both = files[image], files[text]
    for extension, content in zip((image, text), both, strict=True):
        if isinstance(content, int):
            size = f"a .{extension} of {content} bytes"
            raise LimitExceeded(key, size, f"at most {MAX_MEMBER_BYTES}").excluding(Exclusion.TOO_LARGE)
    assert isinstance(both[0], bytes)
    assert isinstance(both[1], bytes)
    return both[0], captions.read(key, both[1])


def _check_id(name: str, known: "_Known") -> None:
    """Raises InvalidRequest or LimitExceeded if the sample cannot have this id."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequest("id", ascii(name), f"must be UTF-8: {error}").excluding(Exclusion.TEXT) from error
    if size > MAX_ID_BYTES:
        limit = f"at most {MAX_ID_BYTES} bytes"
        raise LimitExceeded("id", f"an id of {size} bytes", limit).excluding(Exclusion.TOO_LARGE)
    if not known.add(name):
        limit = "an earlier sample has the same; --ids shard/key tells samples of different shards apart"
        raise InvalidRequest("id", "there twice", limit).excluding(Exclusion.REPEATED)


def _members(shard: Path, text: str) -> Iterator[tuple[str, str, bytes | int | None]]:
    """Yields key, extension and content of the files that the library would see; see Files."""
    try:
        with shard.open("rb") as stream:
            mode: Literal["r|*", "r:"] = "r|*" if stream.read(6).startswith(_COMPRESSED) else "r:"
        with tarfile.open(shard, mode, tarinfo=_Header) as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined] # or they would all be kept
                match = _NAME.match(member.name)
                if not member.isreg() or match is None or _PASSED_OVER.match(member.name):
                    continue
                content: bytes | int | None = None
                if (extension := match[2].lower()) in (*IMAGES, text):
                    content = member.size
                    if member.size <= MAX_MEMBER_BYTES:
                        file = tar.extractfile(member)
                        assert file is not None
                        content = file.read()
                yield match[1], extension, content
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise SetupError("--pool", shard, f"must be a tar file, and whole: {error}") from error


class _Header(tarfile.TarInfo):
    """A file's header, for which tarfile takes the end of the archive if it is damaged, or if there is nothing. Only a
    block of zeros is the end here."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_Header":
        at = archive.offset
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            if str(error) == "end of file header":
                raise
            raise tarfile.ReadError(f"neither a file nor the end at byte {at}: {error}") from error


class _Known:
    """Tells names that were there before: by a digest of 8 bytes, of which 10^8 take less than 1 GB."""

    _MOST = 1 << 18

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted: list[NDArray[np.uint64]] = []  # each at least twice as long as the next

    def add(self, name: str) -> bool:
        """Adds a name; returns whether it is new."""
        digest = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
        if digest in self._recent or any(_holds(part, digest) for part in self._sorted):
            return False
        self._recent.add(digest)
        if len(self._recent) == self._MOST:
            part = np.sort(np.fromiter(self._recent, np.uint64))
            while self._sorted and len(self._sorted[-1]) < 2 * len(part):
                part = np.sort(np.concatenate([part, self._sorted.pop()]))
            self._sorted.append(part)
            self._recent = set()
        return True


def _holds(part: NDArray[np.uint64], digest: int) -> bool:
    at = int(np.searchsorted(part, np.uint64(digest)))
    return at < len(part) and int(part[at]) == digest
