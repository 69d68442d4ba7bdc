"""WebDataset shards are tar files in which KEY.jpg and KEY.txt follow one another. They are read as a stream, and split
into samples as the webdataset library does; nothing is ever unpacked to disk, so that names in them lead nowhere."""

import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from selector_proto.contract import caption_id

from selector_server.config import Config
from selector_server.errors import Exclusion, InvalidRequest, LimitExceeded, SelectorError, SetupError
from selector_tools.pools import storage
from selector_tools.pools.captions import Captions, Numbered, in_utf8
from selector_tools.pools.sharded import IMAGES, NoPair, Pair, PairShard

MAX_MEMBER_BYTES: int = Config.model_fields["max_image_bytes"].default
# What the library's base_plus_ext and tar_file_iterator say: the key ends at the first dot of the file's name.
_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_PASSED_OVER = re.compile(r"__[^/]*__($|/)")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")

# The files of a sample by extension: the content, None where nobody asks for it, its size where that is too large.
Files = Mapping[str, bytes | int | None]


@dataclass(frozen=True)
class TarShard(PairShard):
    """The pairs of a tar file. A key is what the webdataset library calls `__key__`. A sample is as many pairs as it
    has captions."""

    captions: Captions = field(default_factory=Captions)

    def pairs(self) -> Iterator[Pair | NoPair]:
        """Yields the pairs, as PairShard says."""
        for key, files in _samples(self.place, self.captions.extension):
            called, other = self.called(key)
            try:
                contents = _contents(key, files, self.captions)
            except SelectorError as error:
                yield NoPair(called, error)
                continue
            image, captions = contents or (b"", [])
            for number, caption in captions:
                numbered = caption_id(called, number)
                try:
                    yield Pair(numbered, caption_id(other, number), image, in_utf8(caption))
                except SelectorError as error:
                    yield NoPair(numbered, error)


def _samples(shard: str, text: str) -> Iterator[tuple[str, Files]]:
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


def _members(shard: str, text: str) -> Iterator[tuple[str, str, bytes | int | None]]:
    """Yields key, extension and content of the files that the library would see; see Files."""
    names = (*IMAGES, text)
    for member, key, extension, content in files_in_tar(
        shard, lambda extension, size: extension in names and size <= MAX_MEMBER_BYTES
    ):
        yield key, extension, member.size if content is None and extension in names else content


def files_in_tar(
    place: str, wanted: Callable[[str, int], bool] = lambda *_: True
) -> Iterator[tuple[tarfile.TarInfo, str, str, bytes | None]]:
    """Yields header, key, extension and content of the files that the library would see; the content is None unless a
    file of this extension and size is wanted. Raises SetupError if the tar file is damaged."""
    try:
        with storage.opened(place) as stream:
            packed = stream.read(6).startswith(_COMPRESSED)
            stream.seek(0)
            with tarfile.open(mode="r|*" if packed else "r:", fileobj=stream, tarinfo=_Header) as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined] # or they would all be kept
                    match = _NAME.match(member.name)
                    if not member.isreg() or match is None or _PASSED_OVER.match(member.name):
                        continue
                    extension, content = match[2].lower(), None
                    if wanted(extension, member.size):
                        file = tar.extractfile(member)
                        assert file is not None
                        content = file.read()
                    yield member, match[1], extension, content
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise SetupError("--pool", place, f"must be a tar file, and whole: {error}") from error


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
