"""What lies in the reference cache's store."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from fuzz.frames import each, joined, split
from fuzz.mutate_json import tree
from fuzz.mutation import raw, repaired
from fuzz.target import Decode, Target
from selector_server.encoding.reference_cache import ReferenceCache, integer_key, stat, tag
from selector_server.errors import SetupError

_WIDTH, _FINGERPRINT = 4, "ab" * 32
_TAG = tag(_FINGERPRINT)
_SIZE = 4 * _WIDTH
_MOST = 1 << 20


@contextmanager
def records(folder: Path) -> Iterator[Decode]:
    cache = ReferenceCache(folder, "name", _FINGERPRINT, _WIDTH, _MOST)
    ids = [integer_key(i) for i in range(3)]

    def decode(data: bytes) -> str:
        written = split(data, 3)[:3]

        def write(transaction: lmdb.Transaction) -> None:
            for key, record in zip(ids, written, strict=True):
                transaction.put(b"r" + _TAG + key, record)

        cache._store.run(write, write=True)
        found = cache.find(ids)
        right = [len(one) == 4 + _SIZE and struct.pack("<I", zlib.crc32(one[4:])) == one[:4] for one in written]
        assert found.known.tolist() == right, "a record that is none"
        assert found.image.shape == found.text.shape == (sum(right), _WIDTH)
        assert found.image.tobytes() == b"".join(
            one[4 : 4 + _SIZE // 2] for one, good in zip(written, right, strict=True) if good
        )
        return f"{sum(right)}"

    yield decode
    cache.close()


def record_seeds() -> list[bytes]:
    row = bytes(range(_SIZE))
    record = struct.pack("<I", zlib.crc32(row)) + row
    return [joined([record, record, record]), joined([b"", record, record[:-1]])]


@contextmanager
def headers(folder: Path) -> Iterator[Decode]:
    def decode(data: bytes) -> str:
        # LMDB takes a folder once in a process: one after the other.
        with lmdb.open(str(folder), map_size=_MOST, sync=False) as store, store.begin(write=True) as transaction:
            transaction.put(b"h" + _TAG, data)
            transaction.put(b"r" + _TAG + b"s1", data[:10])
        (held,) = stat(folder).references
        assert held.entries == 1
        assert isinstance(held.name, str)
        assert isinstance(held.width, int), "a header that is none"
        return ""

    yield decode


def header_seeds() -> list[bytes]:
    return [b'{"name": "n", "fingerprint": "' + _FINGERPRINT.encode() + b'", "width": 4}']


def _checked(data: bytes) -> bytes:
    return joined(struct.pack("<I", zlib.crc32(one[4:])) + one[4:] for one in split(data))


TARGETS = (
    Target(
        "cache-records",
        "records of the reference cache",
        records,
        record_seeds,
        repaired(each([raw()]), _checked, 0.3),
        (SetupError,),
        share=2.0,
    ),
    Target("cache-headers", "headers of the reference cache", headers, header_seeds, tree(), (SetupError,), share=0.1),
)
