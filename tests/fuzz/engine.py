"""The loop over inputs of one target, in a process of its own. Everything follows from the seed.

An input that meets a new outcome (another check refuses it, or it is accepted in another way) joins the corpus that
later inputs are made of.
"""

import hashlib
import logging
import mmap
import resource
import struct
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import TracebackType

from fuzz.target import Decode, Target

LONGEST = 1 << 16
_CORPUS = 1000
_BATCH = 500  # inputs between two reports
# Address space beyond what the process has when it begins; threads and their heaps take most of it.
_ADDRESS_SPACE = 3 << 30
_FRAMES = 4
_OURS = ("selector_proto", "selector_client", "selector_server")


class Board:
    """The input under way, in memory that the watching process sees too."""

    _HEAD = struct.Struct("<qdq")  # index, since when (0: none), length

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, self._HEAD.size + LONGEST)

    def begin(self, index: int, data: bytes) -> None:
        self._memory[self._HEAD.size : self._HEAD.size + len(data)] = data
        self._HEAD.pack_into(self._memory, 0, index, time.monotonic(), len(data))

    def end(self, index: int) -> None:
        self._HEAD.pack_into(self._memory, 0, index, 0.0, 0)

    def read(self) -> tuple[int, float, bytes]:
        index, since, length = self._HEAD.unpack_from(self._memory)
        return index, since, self._memory[self._HEAD.size : self._HEAD.size + length]


@dataclass
class Finding:
    """`kind`: exception, slow, memory, hang or crash."""

    kind: str
    what: str
    data: bytes


@dataclass
class Part:
    """What some inputs brought. `slowest` is of CPU seconds, `growth` of peak resident bytes since the seeds ran."""

    inputs: int = 0
    accepted: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    growth: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    digest: str = ""  # of all inputs and outcomes so far
    ended: bool = False


def run(
    target: Target,
    seeds: Sequence[bytes],
    seed: int,
    first: int,
    last: int,
    until: float,
    board: Board,
    report: Callable[[Part], None],
) -> None:
    """Inputs `first` to `last` - 1, or those that can be tried until `until`, a time.monotonic(). The seeds come first.
    Reports in parts."""
    logging.disable()  # decoders say what they refuse
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(dir=_memory_folder()) as folder, target.prepare(Path(folder)) as decode:
        _limit_memory()
        loop = _Loop(target, decode, board)
        corpus = list(seeds)
        for index in range(first, last):
            if index < len(seeds):
                data = seeds[index]
            else:
                random = Random(f"{target.name}/{seed}/{index}")
                data = target.mutate(random, random.choice(corpus), random.choice(corpus))[:LONGEST]
            if loop.attempt(index, data) and len(corpus) < _CORPUS:
                corpus.append(data)
            if index == len(seeds) - 1:
                loop.settle()
            if loop.part.inputs >= _BATCH or loop.part.findings:
                report(loop.taken())
            if time.monotonic() > until:
                break
        part = loop.taken()
        part.ended = True
        report(part)


class _Loop:
    def __init__(self, target: Target, decode: Decode, board: Board) -> None:
        self._target, self._decode, self._board = target, decode, board
        self._hash = hashlib.sha256()
        self._known: set[str] = set()
        self._started = time.monotonic()
        self.part = Part()
        self.settle()

    def settle(self) -> None:
        """What memory the seeds needed is no growth."""
        self._base = self._peak = _usage()[1]

    def taken(self) -> Part:
        now = time.monotonic()
        part, self.part = self.part, Part()
        part.seconds, self._started = now - self._started, now
        part.digest = self._hash.hexdigest()
        return part

    def attempt(self, index: int, data: bytes) -> bool:
        """Whether its outcome is new."""
        part, (before, _) = self.part, _usage()
        self._board.begin(index, data)
        try:
            outcome = "accepted" + (self._decode(data) or "")
            part.accepted += 1
        except self._target.refusals as error:
            outcome = _outcome(error)
        except BaseException as error:  # Rust's panics are no Exception
            outcome = _outcome(error)
            part.findings.append(Finding("exception", f"{outcome}: {str(error)[:300]}", data))
        self._board.end(index)
        after, peak = _usage()
        if (spent := after - before) > self._target.seconds:
            part.findings.append(Finding("slow", f"{spent:.2f} CPU seconds; at most {self._target.seconds}", data))
        if (grown := peak - self._peak) > self._target.mebibytes << 20:
            limit = f"{grown >> 20} MiB more than before; at most {self._target.mebibytes}"
            part.findings.append(Finding("memory", limit, data))
        self._peak = peak
        part.inputs += 1
        part.slowest = max(part.slowest, spent)
        part.growth = peak - self._base
        part.outcomes[outcome] += 1
        self._hash.update(f"{len(data)} {outcome}\n".encode() + data)
        if new := outcome not in self._known:
            self._known.add(outcome)
        return new


def _outcome(error: BaseException) -> str:
    """The error's type, and the lines of ours that it came through."""
    places: list[str] = []
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        if "fuzz" not in path.parts and any(name in path.parts for name in _OURS):
            places.append(f"{path.stem}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " ".join([type(error).__name__, *places[-_FRAMES:]])


def _usage() -> tuple[float, int]:
    """CPU seconds of this process, and its peak of resident bytes."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _ADDRESS_SPACE,) * 2)


def _memory_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
