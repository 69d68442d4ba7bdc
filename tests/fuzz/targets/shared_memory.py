"""Files that a client leaves in the shared folder, and what it says of them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from google.protobuf.message import DecodeError
from selector_proto import shared_memory as layout
from selector_proto.v1 import selector_pb2 as pb

from fuzz.files import KINDS, placed, removed
from fuzz.frames import each, joined, split
from fuzz.mutate_proto import message
from fuzz.mutation import raw
from fuzz.target import Decode, Target
from selector_server.errors import InvalidRequest
from selector_server.rpc.shared_memory import SharedFolder

_MOST = 1 << 20
_NAME = f"selector-{'0' * 32}.payload"


@contextmanager
def shared(folder: Path) -> Iterator[Decode]:
    own = SharedFolder(folder)
    file, token = folder / _NAME, folder / layout.TOKEN_FILE
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    def decode(data: bytes) -> str:
        said, header, payload, other = split(data, 4)[:4]
        try:
            where = pb.Selection.FromString(said)
        except DecodeError:
            return "unparsed"
        placed(file, header, (header[1:].ljust(layout.PAYLOAD_OFFSET, b"\0") + payload) if header else b"")
        placed(token, other)
        with suppress(OSError):
            layout.read_token(handle)
        try:
            view = own.read(where.shared_memory, min(where.payload_bytes, _MOST))
            assert view.readonly
            assert bytes(view) == payload[: len(view)], "bytes that nobody wrote"
        finally:
            layout.sweep(handle)
            removed(file)
        return ""

    yield decode
    os.close(handle)
    own.close()


def seeds() -> list[bytes]:
    made = []
    for size in (0, 5, 5000):
        where = pb.Selection(payload_bytes=size, shared_memory=pb.SharedMemory(name=_NAME, generation=3))
        header = layout.Header(3, size).encode()
        made += [
            joined([where.SerializeToString(), bytes([kind]) + header, b"p" * size, b"\0t"]) for kind in range(KINDS)
        ]
    return made


_NAMES = (_NAME, f"../{_NAME}", "token", f"{_NAME}\n", f"selector-{'a' * 32}.payload", f"/etc/{_NAME}")
TARGETS = (
    Target(
        "shared-memory",
        "names, headers and files of the shared folder",
        shared,
        seeds,
        each([message(pb.Selection, *_NAMES, wire=0.02), raw(layout.MAGIC), raw()]),
        (InvalidRequest,),
    ),
)
