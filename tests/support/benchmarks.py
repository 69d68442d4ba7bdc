"""Processes of benchmarks, which are new Pythons there: in tests they are forked from one that has imported already
what they need, as the tests' own sidecars are."""

import multiprocessing
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest
from selector_tools import processes

from support.forked import PROCESSES, ForkedCommand

_CLI = "selector_tools.cli"


def fork_processes(patch: pytest.MonkeyPatch) -> None:
    """Forks sidecars and the processes of multiprocessing, while `patch` holds. Cores that a sidecar is to have are
    not looked at."""
    get_context = multiprocessing.get_context
    patch.setattr(multiprocessing, "get_context", lambda kind=None: PROCESSES if kind == "spawn" else get_context(kind))
    known = {name: getattr(subprocess, name) for name in ("PIPE", "TimeoutExpired")}
    patch.setattr(processes, "subprocess", SimpleNamespace(Popen=_start, **known))


def _start(command: Sequence[str], stderr: IO | None = None, **options) -> subprocess.Popen | ForkedCommand:
    if _CLI not in command:
        return subprocess.Popen(command, stderr=stderr, **options)
    return ForkedCommand(command[command.index(_CLI) + 1 :], dict(os.environ), Path(stderr.name))
