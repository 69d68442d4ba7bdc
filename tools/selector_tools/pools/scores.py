"""Scores beside the data: one Parquet file for each shard of a pool, written whole or not at all, so that the files
themselves say which shards are done. docs/scale.md describes the format; only this module reads and writes it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from selector_server.errors import SetupError
from selector_tools.mistakes import in_one_line
from selector_tools.pools import storage
from selector_tools.pools.pool import Namespace

SUFFIX = ".parquet"
_ABOUT, _SHARD = b"selector.scores", b"selector.shard"
_VERSION = 1
_ROWS = 8192  # of a row group
_BLOCK = 1 << 20

Ids = NDArray[np.int64] | list[str]


@dataclass(frozen=True)
class About:
    """What all scores of a folder must share: the reference (its bundle's fingerprint and name, the width of its
    embeddings, its logit scale and bias), the version of the decoder that read the images, and how ids are made."""

    fingerprint: str
    name: str
    width: int
    scale: float
    bias: float
    decoder: int
    ids: Namespace


@dataclass(frozen=True)
class OfShard:
    """What a file of scores says of its shard: its name, the stamp of the file that was read (see storage.stamp), how
    many pairs were scored, and the counts of those that could not be used, as Exclusions.as_json gives them."""

    name: str
    stamp: str
    pairs: int
    mean_loss: float
    exclusions: dict[str, Any]


@dataclass(frozen=True)
class Scores:
    """n pairs: `ids`; `own_loss` (nats, the sigmoid loss of the image with its own text) and `cosine`, float32 [n]; the
    embeddings `image` and `text`, float16 [n, D], from which these two were computed; `tags` int64 [n] or None."""

    ids: Ids
    own_loss: NDArray[np.float32]
    cosine: NDArray[np.float32]
    image: NDArray[np.float16]
    text: NDArray[np.float16]
    tags: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.ids)


def name_of(shard: str) -> str:
    """Returns what the file with the scores of the shard of this name is called. Slashes and the like are quoted as in
    URLs, so that a name leads nowhere else and every two names have two files."""
    return quote(shard, safe="") + SUFFIX


class Writer:
    """Adds scores to a file that is being written. Either all pairs have tags, or none has."""

    def __init__(self, file: Any, about: About) -> None:
        self.pairs, self._loss, self._held = 0, 0.0, list[Scores]()
        self._file, self._about, self._writer = file, about, None

    def add(self, scores: Scores) -> None:
        """Adds pairs, of which so many are held in memory as make a row group."""
        self._held.append(scores)
        self.pairs += len(scores)
        self._loss += float(scores.own_loss.sum(dtype=np.float64))
        if sum(map(len, self._held)) >= _ROWS:
            self._flush()

    def close(self, shard: str, stamp: str, exclusions: dict[str, Any]) -> OfShard:
        """Ends the file, and returns what it says of its shard."""
        self._flush()
        mean = self._loss / self.pairs if self.pairs else 0.0
        about = OfShard(shard, stamp, self.pairs, mean, exclusions)
        writer = self._opened(tags=False)
        writer.add_key_value_metadata({_SHARD: json.dumps(asdict(about))})
        writer.close()
        return about

    def _flush(self) -> None:
        if not self._held:
            return
        held, self._held = self._held, []

        def joined(name: str) -> NDArray[Any]:
            return np.concatenate([getattr(scores, name) for scores in held])

        ids = [name for scores in held for name in scores.ids] if isinstance(held[0].ids, list) else joined("ids")
        columns = [pa.array(ids), pa.array(joined("own_loss")), pa.array(joined("cosine"))]
        for rows in (joined("image"), joined("text")):
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1]))
        if tagged := held[0].tags is not None:
            columns.append(pa.array(joined("tags")))
        writer, schema = self._opened(tagged), _schema(self._about, tagged)
        writer.write_table(pa.table(columns, schema=schema), row_group_size=_ROWS)

    def _opened(self, tags: bool) -> Any:
        """Returns what writes Parquet; embeddings are left as they are, for nothing makes them smaller."""
        if self._writer is None:
            schema = _schema(self._about, tags)
            leaves = {f"{name}.list.element" for name in ("image", "text")}
            plain = [name for name in schema.names if name not in ("image", "text")]
            packing = dict.fromkeys(plain, "zstd") | dict.fromkeys(leaves, "none")
            self._writer = pq.ParquetWriter(
                self._file, schema, compression=packing, use_dictionary=False, write_statistics=plain
            )
        return self._writer


@contextmanager
def writing(place: str, about: About, flag: str = "--out") -> Iterator[Writer]:
    """Yields what writes a file of scores, which is at `place` after the block, in which it must be closed. Raises
    SetupError."""
    with storage.written(place, flag) as file:
        yield Writer(file, about)


def header(place: str, flag: str = "--out") -> tuple[About, OfShard]:
    """Reads what a file of scores says of itself. Raises SetupError if it is none, or damaged."""
    with storage.opened(place, flag, _BLOCK) as file:
        return _header(file, place, flag)[1:]


def check(found: About, expected: About, place: str, flag: str = "--out") -> None:
    """Raises SetupError if the scores at `place` are of another reference, width, decoder or kind of ids."""
    for name, value in asdict(expected).items():
        if (other := getattr(found, name)) != value:
            shown = [str(each)[:16] for each in (other, value)]
            raise SetupError(flag, place, f"has scores with {name} {shown[0]}; must be {shown[1]}")


def read(place: str, expected: About | None = None, flag: str = "--scores") -> Iterator[Scores]:
    """Yields the scores in a file, by row groups. Raises SetupError if they are damaged or not as `expected`."""
    with storage.opened(place, flag, _BLOCK) as file:
        parquet, about, _ = _header(file, place, flag)
        if expected is not None:
            check(about, expected, place, flag)
        try:
            for number in range(parquet.num_row_groups):
                yield _scores(parquet.read_row_group(number), about.width)
        except (pa.ArrowException, OSError) as error:
            raise SetupError(flag, place, f"is damaged: {in_one_line(error)}") from error


def read_ids(place: str, flag: str = "--out") -> Ids:
    """Returns the ids in a file, without reading the rest of it. Raises SetupError."""
    with storage.opened(place, flag, _BLOCK) as file:
        parquet = _header(file, place, flag)[0]
        return _ids(parquet.read(columns=["id"]).column("id"))


def files_in(folder: str, flag: str = "--scores") -> list[str]:
    """Returns the places of the files of scores in a folder, sorted."""
    return [place for place in storage.files_in(folder, flag) if place.endswith(SUFFIX)]


def _schema(about: About, tags: bool) -> Any:
    vector = pa.list_(pa.field("element", pa.float16(), nullable=False), about.width)
    fields = [
        ("id", pa.int64() if about.ids == "integer" else pa.string()),
        *(("own_loss", pa.float32()), ("cosine", pa.float32()), ("image", vector), ("text", vector)),
        *([("tags", pa.int64())] if tags else []),
    ]
    known = {_ABOUT: json.dumps({"version": _VERSION} | asdict(about))}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields], metadata=known)


def _header(file: Any, place: str, flag: str) -> tuple[Any, About, OfShard]:
    try:
        parquet = pq.ParquetFile(file)
        known = parquet.metadata.metadata or {}
        about, shard = (json.loads(known[key]) for key in (_ABOUT, _SHARD))
        version = about.pop("version")
        if version != _VERSION:
            raise SetupError(flag, place, f"has scores of format {version}; must be {_VERSION}")
        found = About(**about)
        if parquet.schema_arrow.remove_metadata() not in (
            _schema(found, tags).remove_metadata() for tags in (False, True)
        ):
            raise SetupError(flag, place, "has other columns than scores have")
        return parquet, found, OfShard(**shard)
    except (pa.ArrowException, OSError) as error:
        raise SetupError(flag, place, f"must be a Parquet file, and whole: {in_one_line(error)}") from error
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise SetupError(flag, place, f"is no file of scores: {in_one_line(error, kind=True)}") from error


def _scores(table: Any, width: int) -> Scores:
    def numbers(name: str) -> NDArray[Any]:
        return np.concatenate([np.asarray(chunk) for chunk in table.column(name).chunks])

    def vectors(name: str) -> NDArray[np.float16]:
        return np.concatenate([np.asarray(chunk.flatten()).reshape(-1, width) for chunk in table.column(name).chunks])

    tags = numbers("tags") if "tags" in table.column_names else None
    ids = _ids(table.column("id"))
    return Scores(ids, numbers("own_loss"), numbers("cosine"), vectors("image"), vectors("text"), tags)


def _ids(column: Any) -> Ids:
    if pa.types.is_integer(column.type):
        return np.asarray(column.combine_chunks())
    return list(column.to_pylist())
