"""The two ends of the transport benchmark: a server process that sums, and a client that times."""

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from selector_client.selecting.candidates import Candidates
from selector_client.selecting.shared_ring import Ring
from selector_proto.tensors import Payload
from selector_proto.v1 import selector_pb2 as pb

from selector_server.buffers import Pool
from selector_server.rpc.receive import Patience, Receiver
from selector_server.rpc.shared_memory import SPARE, SharedFolder
from selector_tools.bench.measuring import in_turns, seconds_of

_LARGE = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
SUMMERS = 2  # threads of the server that sum what arrived
_STREAM, _UNARY = "/bench/Stream", "/bench/Unary"


class Trial:
    """A client that sends payloads of one size each way in turn."""

    def __init__(self, address: str, folder: str, size: int) -> None:
        self._channel = grpc.insecure_channel(address, options=_LARGE)
        self._ring, self._size = Ring(folder), size
        self._data = np.random.default_rng(0).integers(0, 2**63, size // 8, np.uint64)
        self._copy, self._sum = self._data.copy(), int(self._data.sum())
        payload = Payload()
        payload.add(self._data.view(np.uint8))
        self._candidates = Candidates(1, pb.Selection(), payload)
        self._stream = self._channel.stream_unary(_STREAM, pb.SelectRequest.SerializeToString, bytes)
        self._unary = self._channel.unary_unary(_UNARY, pb.SelectRequest.SerializeToString, bytes)

    def run(self, repeats: int) -> dict[str, list[float]]:
        """Returns the seconds of each way, after one round that warms up. Raises RuntimeError if bytes are lost."""
        ways: dict[str, Callable[[], bytes | None]] = {
            "shared_memory": self._by_shared_memory,
            "stream": lambda: self._stream(self._candidates.messages(pb.Selection())),
            "unary": lambda: self._unary(pb.SelectRequest(payload=self._data.tobytes())),
            "memcpy": lambda: np.copyto(self._copy, self._data),
        }

        def sent(way: str) -> None:
            answer = ways[way]()
            if answer is not None and int(answer) != self._sum:
                raise RuntimeError(f"{way} lost bytes: the sum is {int(answer)}, not {self._sum}")

        return in_turns({way: partial(seconds_of, partial(sent, way)) for way in ways}, repeats, warm_up=1)

    def _by_shared_memory(self) -> bytes:
        slot = self._ring.take()
        assert slot is not None
        slot.write(self._candidates.payload.parts(), self._size)
        selection = self._candidates.selection(pb.Selection())
        selection.shared_memory.name, selection.shared_memory.generation = slot.name, slot.generation
        answer: bytes = self._stream(iter([pb.SelectRequest(selection=selection)]))
        self._ring.give(slot)
        return answer

    def __enter__(self) -> "Trial":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()
        self._ring.close()


@contextmanager
def serving(folder: str) -> Iterator[str]:
    """Runs a server in a process of its own, which shares `folder`, and yields its address."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(folder, theirs), daemon=True)
    process.start()
    try:
        yield f"127.0.0.1:{ours.recv()}"
    finally:
        process.kill()
        process.join()


def _serve(folder: str, pipe: Connection) -> None:
    asyncio.run(_server(folder, pipe))


async def _server(folder: str, pipe: Connection) -> None:
    shared, threads, pool = SharedFolder(Path(folder)), ThreadPoolExecutor(SUMMERS), Pool(SPARE)

    async def stream(messages: AsyncIterator[pb.SelectRequest], context: Any) -> bytes:  # noqa: ARG001 - grpc's
        receiver = Receiver(messages, Patience(60, 0), pool, shared)
        await receiver.header(1 << 40)
        return _sum(np.frombuffer(await receiver.payload(), np.uint64), threads)

    async def unary(message: pb.SelectRequest, context: Any) -> bytes:  # noqa: ARG001
        return _sum(np.frombuffer(message.payload, np.uint64), threads)

    parse = pb.SelectRequest.FromString
    methods = {
        _STREAM: grpc.stream_unary_rpc_method_handler(stream, parse),
        _UNARY: grpc.unary_unary_rpc_method_handler(unary, parse),
    }
    server = grpc.aio.server(options=_LARGE)
    handlers = {name.rpartition("/")[2]: method for name, method in methods.items()}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bench", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    pipe.send(port)
    await server.wait_for_termination()


def _sum(words: NDArray[np.uint64], threads: ThreadPoolExecutor) -> bytes:
    parts = threads.map(lambda part: int(part.sum()), np.array_split(words, SUMMERS))
    return str(sum(parts) % 2**64).encode()
