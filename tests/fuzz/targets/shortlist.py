"""What a client sends that asks for a shortlist: whole Shortlist streams, up to what goes on by a reference cache."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from selector_proto.tensors import WireError
from selector_proto.v1 import selector_pb2 as pb
from support import wire

from fuzz.frames import each, joined, split
from fuzz.mutate_proto import message
from fuzz.mutation import repaired
from fuzz.target import Decode, Target
from selector_server.buffers import Pool
from selector_server.config import Config
from selector_server.encoding.reference_cache import ReferenceCache, integer_key, string_key
from selector_server.engine.candidates.preparation import Preparation
from selector_server.engine.request import Request
from selector_server.errors import SelectorError
from selector_server.rpc.exclusions import write_exclusions
from selector_server.rpc.receive import Patience, Receiver
from selector_server.rpc.status import to_status
from selector_server.rpc.wire import Contract
from selector_server.sampling import Embedded, Loss, load_policies

WIDTH = 4
MOST_STATUS = 4096


@contextmanager
def streams(folder: Path) -> Iterator[Decode]:
    import torch

    config = Config(max_payload_bytes=1 << 18, max_super_batch=1024)
    contract, pool, loop = Contract(config, load_policies(), Loss.SIGMOID, None), Pool(), asyncio.new_event_loop()
    cache = ReferenceCache(folder / "cache", "reference", "f" * 64, WIDTH, 1 << 22)
    keys = [integer_key(number) for number in range(6)] + [string_key(name) for name in "abcdef"]
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((2, len(keys), WIDTH)).astype(np.float32))
    fresh = Embedded.normalise(rows[0], rows[1], 1.0, 0.0)
    cache.merge(keys, cache.find(keys), fresh, 1.0, 0.0, torch.device("cpu"), wait=True)
    preparation = Preparation(None, None, cache)

    async def messages(parts: list[bytes]) -> AsyncIterator[pb.SelectRequest]:
        for part in parts:
            yield pb.SelectRequest.FromString(part)

    async def receive(parts: list[bytes]) -> tuple[pb.Selection, memoryview]:
        receiver = Receiver(messages(parts), Patience(30.0, 0), pool)
        header = await receiver.header(config.max_payload_bytes)
        return header, await receiver.payload()

    def decode(data: bytes) -> str:
        try:
            task = contract.shortlist(*loop.run_until_complete(receive(split(data))))
            closed = task.candidates.prepare(task, preparation, Request()).closed
            closed.check(task.size, task.plan.picks, task.max_excluded_share)
        except (WireError, SelectorError) as error:
            status = to_status(error)
            assert status.code != 13, "an internal error"
            assert status.ByteSize() <= MOST_STATUS, f"a status of {status.ByteSize()} bytes"
            raise
        assert task.excludes or not closed.reasons
        going = closed.open_rows(task.size)
        assert len(going) >= task.plan.picks
        if (told := closed.prefiltered) is not None:
            assert told.known + told.unknown == task.size - len(closed.reasons)
            assert len(going) == told.known + told.unknown - len(told.rows)
        write_exclusions(closed)
        return f"{len(going)} of {task.size} {sorted(reason.name for reason in closed.first)}"

    yield decode
    cache.close()
    loop.close()


def stream_seeds() -> list[bytes]:
    def numbered(numbers: list[int]) -> wire.Request:
        request = wire.Request()
        request.selection.sample_ids.integers.CopyFrom(request.add(np.array(numbers, np.int64)))
        return request.set(prefilter=1.0, sub_batch_size=1)

    missing = pb.Exclusion(reason=pb.EXCLUSION_REASON_MISSING, indices=[1, 2], first="no id")
    excludes = {"bad_samples": pb.BAD_SAMPLES_EXCLUDE, "max_excluded_share": 1.0}
    names = wire.Request()
    names.selection.sample_ids.strings.CopyFrom(names.pack([*(name.encode() for name in "abcdef"), b"g" * 240]))
    requests = [
        numbered(list(range(9))),
        numbered([5, 4, 5, 1, 1 << 62, -1]).set(exclusions=[missing], **excludes),
        numbered(list(range(20))).set(policy="independent", request_id="id", trainer_step=3).with_crc(),
        names.set(prefilter=1.5, sub_batch_size=2, criterion=pb.CRITERION_EASY_REFERENCE),
    ]
    return [joined(one.SerializeToString() for one in request.messages()) for request in requests]


def _consistent(data: bytes) -> bytes:
    """Length and checksum of the payload as the messages have it."""
    parts = split(data, 1)
    try:
        found = [pb.SelectRequest.FromString(part) for part in parts]
    except DecodeError:
        return data
    selection, payload = found[0].selection, b"".join(one.payload for one in found)
    selection.payload_bytes = len(payload)
    if selection.HasField("payload_crc32"):
        selection.payload_crc32 = zlib.crc32(payload)
    return joined(one.SerializeToString() for one in found)


TARGETS = (
    Target(
        "shortlist-stream",
        "SelectRequest messages to a shortlist",
        streams,
        stream_seeds,
        repaired(
            each([message(pb.SelectRequest, "joint", "independent", "uniform", "default")], move=0.03),
            _consistent,
            0.85,
        ),
        (WireError, SelectorError),
        share=0.6,
    ),
)
