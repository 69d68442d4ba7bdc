"""Pools in tables: Parquet files as img2dataset writes them, and Parquet or Arrow files of Hugging Face's datasets.
Columns are found by their names and types, shard by shard, and rows are read a few at a time, however large a row group
or a record batch is."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from selector_proto.contract import caption_id

from selector_server.config import Config
from selector_server.errors import Exclusion, InvalidRequest, LimitExceeded, SelectorError, SetupError
from selector_tools.mistakes import in_one_line
from selector_tools.pools import storage
from selector_tools.pools.captions import Captions, in_utf8
from selector_tools.pools.saved import ARROW
from selector_tools.pools.sharded import IMAGES, NoPair, Pair, PairShard

# Of several columns the first counts.
_IMAGES = ("image", *IMAGES, "img", "image_bytes")
_CAPTIONS = ("caption", "text", "txt", "captions", "texts", "TEXT")
_KEYS = ("key", "__key__", "uid", "id")
_TAGS = "tags"
_ROWS = 64  # are in memory at once
_BLOCK = 1 << 20
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_MAX_IMAGE_BYTES: int = Config.model_fields["max_image_bytes"].default


@dataclass(frozen=True)
class _Columns:
    """The names of the columns; `key` and `tags` are empty where there is none."""

    image: str
    caption: str
    key: str
    tags: str

    @property
    def names(self) -> list[str]:
        return [name for name in (self.image, self.caption, self.key, self.tags) if name]


@dataclass(frozen=True)
class TableShard(PairShard):
    """The pairs of a Parquet or Arrow file. A key is what the column of keys says, or the row's number. A row is as
    many pairs as it has captions."""

    captions: Captions = field(default_factory=Captions)

    def pairs(self) -> Iterator[Pair | NoPair]:
        """Yields the pairs, as PairShard says."""
        number = 0
        try:
            with storage.opened(self.place, block=_BLOCK) as file:
                columns, batches = self._opened(file)
                for batch in batches:
                    for start in range(0, batch.num_rows, _ROWS):
                        for row in batch.slice(start, _ROWS).to_pylist():
                            yield from self._pairs_of(row, columns, number)
                            number += 1
        except (pa.ArrowException, OSError, EOFError) as error:
            kind = "an Arrow" if storage.bare(self.place).endswith(ARROW) else "a Parquet"
            raise SetupError("--pool", self.place, f"must be {kind} file, and whole: {in_one_line(error)}") from error

    def _opened(self, file: BinaryIO) -> tuple[_Columns, Iterator[Any]]:
        """Returns the columns, and an iterator of the record batches."""
        if not storage.bare(self.place).endswith(ARROW):
            # Without these two, whole row groups would be held in memory.
            parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=_BLOCK)
            columns = self._columns(parquet.schema_arrow)
            return columns, parquet.iter_batches(batch_size=_ROWS, columns=columns.names)
        if file.read(6) == b"ARROW1":
            file.seek(0)
            reader = pa.ipc.open_file(file)
            columns = self._columns(reader.schema)
            found = (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            file.seek(-len(_END_OF_STREAM), 2)
            if file.read() != _END_OF_STREAM:  # pyarrow takes a stream that was cut between two batches for a short one
                raise EOFError("the end of the stream is missing")
            file.seek(0)
            reader = pa.ipc.open_stream(file)
            columns, found = self._columns(reader.schema), iter(reader)
        return columns, (batch.select(columns.names) for batch in found)

    def _columns(self, schema: Any) -> _Columns:
        def first(names: tuple[str, ...], fits: Any) -> str:
            return next((name for name in names if name in schema.names and fits(schema.field(name).type)), "")

        captions = (self.captions.entry,) if self.captions.entry else _CAPTIONS
        image, caption = first(_IMAGES, _is_image), first(captions, _is_caption)
        key, tags = first(_KEYS, _is_key), first((_TAGS,), pa.types.is_integer)
        has = f"it has {', '.join(f'{each.name} ({each.type})' for each in schema)}"[:300]
        if not image:
            beside = "; where images are in a .tar beside it, read that one instead" if "url" in schema.names else ""
            limit = f"has no column of images (files, or structs with bytes: {', '.join(_IMAGES)}); {has}{beside}"
            raise SetupError("--pool", self.place, limit)
        if not caption:
            limit = f"has no column of texts or lists of texts ({', '.join(captions)}); {has}"
            raise SetupError("--pool", self.place, f"{limit}; --captions json:COLUMN names one")
        if not key and self.ids == "key":
            limit = f"has no column of keys ({', '.join(_KEYS)}), which --ids key needs; {has}"
            raise SetupError("--pool", self.place, limit)
        return _Columns(image, caption, key, tags)

    def _pairs_of(self, row: dict[str, Any], columns: _Columns, number: int) -> Iterator[Pair | NoPair]:
        key = row[columns.key] if columns.key else number
        called, other = self.called(str(number if key is None else key))
        try:
            if key is None:
                raise InvalidRequest(columns.key, "none", "a pair needs a key").excluding(Exclusion.MISSING)
            tag = row[columns.tags] if columns.tags else None
            if columns.tags and tag is None:
                raise InvalidRequest(_TAGS, "none", "all pairs have one, or none").excluding(Exclusion.VALUE)
            image = _image(called, row[columns.image])
            captions = self.captions.of(called, row[columns.caption], f"its column {columns.caption}")
        except SelectorError as error:
            yield NoPair(called, error)
            return
        for index, caption in captions:
            numbered = caption_id(called, index)
            try:
                yield Pair(numbered, caption_id(other, index), image, in_utf8(caption), tag)
            except SelectorError as error:
                yield NoPair(numbered, error)


def _is_image(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_image(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_caption(kind: Any) -> bool:
    if pa.types.is_dictionary(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_caption(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_key(kind: Any) -> bool:
    return (_is_caption(kind) and not pa.types.is_nested(kind)) or bool(pa.types.is_integer(kind))


def _image(called: str, value: Any) -> bytes:
    """Returns the image file of a row. Raises InvalidRequest or LimitExceeded, which exclude it."""
    content = value.get("bytes") if isinstance(value, dict) else value
    if content is None:
        path = value.get("path") if isinstance(value, dict) else None
        where = "" if path is None else f"; it is outside, at {str(path)[:100]}, where a pool does not look"
        raise InvalidRequest(called, "without image", f"a pair needs one{where}").excluding(Exclusion.MISSING)
    if len(content) > _MAX_IMAGE_BYTES:
        size = f"an image of {len(content)} bytes"
        raise LimitExceeded(called, size, f"at most {_MAX_IMAGE_BYTES}").excluding(Exclusion.TOO_LARGE)
    return bytes(content)
