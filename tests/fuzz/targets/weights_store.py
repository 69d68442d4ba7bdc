"""Where weights come from: folders that a stranger writes into, and a Redis that answers anything."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from selector_proto.weights.layout import Keys, encode_manifest
from selector_proto.weights.redis_store import RedisStore
from selector_proto.weights.store import StoreError

from fuzz.files import KINDS, placed
from fuzz.frames import each, joined, split
from fuzz.mutation import raw
from fuzz.target import Decode, Target
from fuzz.targets.weights import manifest, payload
from selector_server.weights.fetcher import Fetcher, Incomplete
from selector_server.weights.host_share import HostShare

_RUN, _VERSION, _MOST = "run", 7, 1 << 20
_KEYS = Keys(_RUN)


@contextmanager
def folders(folder: Path) -> Iterator[Decode]:
    store, share = folder / "store", folder / "share"
    store.mkdir()
    fetcher = Fetcher(f"file://{store}", _RUN, _MOST, share=HostShare(share))
    plain = Fetcher(f"file://{store}", _RUN, _MOST)
    names = [_KEYS.pointer, _KEYS.manifest(_VERSION), *(_KEYS.chunk(_VERSION, "p", i) for i in range(2))]
    files = [fetcher._store._file(name) for name in names]
    shared = share / (manifest(payload()).payload_blake3.hex() + ".weights")

    def decode(data: bytes) -> str:
        parts = split(data, 5)
        for file, part in zip([*files, shared], parts, strict=False):
            placed(file, part)
        version = fetcher.newest()
        text = fetcher.manifest(version)
        for one in (fetcher, plain):
            fetched = one.fetch(version, text)
            assert sum(len(view.data) for view in fetched.tensors.values()) <= fetched.manifest.payload_bytes
            again = b"".join(bytes(view.data) for view in fetched.tensors.values())
            assert again in payload(), "tensors that nobody published"
        return ""

    yield decode
    for one in (fetcher, plain):
        one.close()


def folder_seeds() -> list[bytes]:
    data = payload()
    parts = [b"7", encode_manifest(manifest(data)), data, b"", data]
    seeds = [joined(b"\0" + part for part in parts)]
    for at in range(5):
        for kind in range(1, KINDS - 1):
            seeds.append(joined(bytes([kind if at == i else 0]) + part for i, part in enumerate(parts)))
    return seeds


@contextmanager
def servers(folder: Path) -> Iterator[Decode]:
    """A server that answers with the input, to whatever is asked, from the first word."""
    path = folder / "redis"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    answers = b""

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                try:
                    connection.recv(1 << 16)  # the command: nobody takes an answer to nothing
                    connection.sendall(answers)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(1 << 16):
                        pass
                except OSError:
                    continue  # it has heard enough

    threading.Thread(target=serve, daemon=True).start()
    fetcher = Fetcher(f"unix://{path}", _RUN, _MOST)
    store = fetcher._store
    assert isinstance(store, RedisStore)
    pool = _pool(store)
    rooms = [memoryview(bytearray(8)), memoryview(bytearray(100))]

    def decode(data: bytes) -> str:
        nonlocal answers
        kind, answers = data[0] if data else 0, data[1:]
        try:
            match kind % 4:
                case 0:
                    return f"newest {fetcher.newest() > 0}"
                case 1:
                    return f"manifest {bool(fetcher.manifest(1))}"
                case 2:
                    return f"value {store.get('a') is not None}"
            lengths = list(store.read_into(["a", "b"], rooms))
            assert all(length <= len(room) for length, room in zip(lengths, rooms, strict=False)) or len(lengths) < 3
            return f"fill {len(lengths)}"
        finally:
            pool.disconnect()

    yield decode
    fetcher.close()


def _pool(store: RedisStore) -> redis.ConnectionPool:
    """Of the store's own client, which asks once only."""
    with store._connected() as client:
        assert isinstance(client, redis.Redis)
        pool = client.connection_pool
        pool.connection_kwargs["retry"] = Retry(NoBackoff(), 0)
        client.set_retry(pool.connection_kwargs["retry"])
        return pool


def server_seeds() -> list[bytes]:
    values = [
        b"$1\r\n7\r\n",
        b"$-1\r\n",
        b"_\r\n",
        b"$0\r\n\r\n",
        b"-ERR no\r\n",
        b":7\r\n",
        b"*1\r\n$1\r\n7\r\n",
        b"%1\r\n+a\r\n:1\r\n",
    ]
    values += [
        b"$5\r\nabcde\r\n$3\r\nxyz\r\n",
        b"$9\r\nabcdefghi\r\n",
        b"$99999999999\r\nabc",
        b"#t\r\n",
        b",1.5\r\n",
        b"~1\r\n:1\r\n",
    ]
    return [bytes([kind]) + value for kind in range(4) for value in values]


_WORDS = (
    b"\r\n",
    b"$-1\r\n",
    b"$",
    b"*",
    b":",
    b"-",
    b"+",
    b"_\r\n",
    b"*1\r\n" * 3000,
    b"%1\r\n",
    b">1\r\n",
    b"(1\r\n",
    b"=5\r\ntxt:a\r\n",
    b"99999999999999999999",
)
TARGETS = (
    Target(
        "weights-folder",
        "pointer, manifest, chunks and shares in folders",
        folders,
        folder_seeds,
        each([raw(b"\x037")]),
        (Incomplete, StoreError),
        share=0.5,
    ),
    Target(
        "redis-replies",
        "what a Redis answers",
        servers,
        server_seeds,
        raw(*_WORDS),
        (Incomplete, StoreError),
        share=0.4,
    ),
)
