"""Runs each target in a forked process and watches it: a crash or a hang is seen, attributed and survived."""

import hashlib
import multiprocessing
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import BinaryIO

from fuzz.engine import Board, Finding, Part, run
from fuzz.target import Target

FINDINGS = Path(__file__).with_name("findings")
# Wall-clock time of one input; generous, for the machine may be busy. CPU time has a tighter bound.
HANG_SECONDS = 10.0
_TICK = 0.05
_DIGITS = re.compile(r"\d{3,}")
# A target that hangs or crashes so often is broken; more of the same would only take long.
MOST_FAILURES = 5
_FORK = multiprocessing.get_context("fork")  # the child starts with all imported, and with a low peak of memory


@dataclass
class Summary:
    """Of one target."""

    target: Target
    inputs: int = 0
    accepted: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    growth: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    digest: str = ""

    def add(self, part: Part) -> None:
        self.inputs += part.inputs
        self.accepted += part.accepted
        self.seconds += part.seconds
        self.slowest = max(self.slowest, part.slowest)
        self.growth = max(self.growth, part.growth)
        self.outcomes.update(part.outcomes)
        known = {_DIGITS.sub("", one.what) for one in self.findings}
        for one in part.findings:  # one of a kind is enough
            if (kind := _DIGITS.sub("", one.what)) not in known:
                self.findings.append(one)
                known.add(kind)
        self.digest = part.digest

    def row(self) -> dict[str, object]:
        return {
            "target": self.target.name,
            "decodes": self.target.decodes,
            "inputs": self.inputs,
            "accepted": self.accepted,
            "seconds": round(self.seconds, 2),
            "inputs_per_second": round(self.inputs / max(self.seconds, 1e-9)),
            "outcomes": len(self.outcomes),
            "slowest_cpu_ms": round(1e3 * self.slowest, 2),
            "peak_growth_mib": round(self.growth / (1 << 20), 2),
            "findings": [{"kind": one.kind, "what": one.what} for one in self.findings],
            "digest": self.digest,
        }


def fuzz(target: Target, seed: int, inputs: int, seconds: float) -> Summary:
    """At most so many inputs and seconds."""
    summary, board, first = Summary(target), Board(), 0
    seeds = [*target.seeds(), *(file.read_bytes() for file in reproducers(target))]
    until, failures = time.monotonic() + seconds, 0
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the last process that writes to it
    while first < inputs and time.monotonic() < until and failures < MOST_FAILURES:
        receiving, sending = _FORK.Pipe(duplex=False)
        board.end(first)  # what a killed one was at
        child = _FORK.Process(target=_child, args=(target, seeds, seed, first, inputs, until, board, sending, log))
        child.start()
        sending.close()
        if (failure := _watch(child, receiving, board, summary)) is None:
            break
        if not failure.data and not board.read()[1]:  # between two inputs
            log.seek(0)
            raise RuntimeError(f"the fuzzer itself failed, {failure.what}:\n{log.read().decode()[-3000:]}")
        summary.findings.append(failure)
        failures += 1
        first = board.read()[0] + 1
    return summary


def reproducers(target: Target) -> list[Path]:
    """Inputs that once were findings; every run tries them again."""
    return sorted(FINDINGS.glob(f"{target.name}-*.bin"))


def save(target: Target, findings: Iterable[Finding], folder: Path) -> list[Path]:
    files = []
    folder.mkdir(parents=True, exist_ok=True)
    for one in findings:
        files.append(folder / f"{target.name}-{hashlib.sha256(one.data).hexdigest()[:12]}.bin")
        files[-1].write_bytes(one.data)
    return files


def _child(
    target: Target,
    seeds: list[bytes],
    seed: int,
    first: int,
    last: int,
    until: float,
    board: Board,
    sending: Connection,
    log: BinaryIO,
) -> None:
    os.dup2(log.fileno(), 2)  # libraries complain about what they are given
    run(target, seeds, seed, first, last, until, board, sending.send)
    sending.close()
    os._exit(0)  # threads of decoders are not waited for


def _watch(child: multiprocessing.Process, receiving: Connection, board: Board, summary: Summary) -> Finding | None:
    """Adds what the child reports; why it did not come to its end, if it did not."""
    ended = False
    try:
        while not ended:
            if receiving.poll(_TICK):
                part: Part = receiving.recv()
                summary.add(part)
                ended = part.ended
                continue
            _, since, data = board.read()
            if since and time.monotonic() - since > HANG_SECONDS:
                return Finding("hang", f"no end within {HANG_SECONDS:g} s", data)
    except EOFError:
        pass
    finally:
        if ended or child.is_alive():
            child.join(0.2)
            child.kill()
        child.join()
    if ended:
        return None
    return Finding("crash", f"exit status {child.exitcode}", board.read()[2])
