"""Networks that are not this machine's: namespaces, and a kernel that knows no IPv6.

A process enters one before it does anything else; `ForkedCommand` takes what it must call for that.
"""

import ctypes
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from support import programs

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_SET_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2
_SOCKET = {"x86_64": 41, "aarch64": 198}  # the number of socket(2)
_FAMILY_IPV6, _NOT_SUPPORTED = 10, 97  # AF_INET6, EAFNOSUPPORT


@contextmanager
def network(*commands: str) -> Iterator[Callable[[], None]]:
    """A network namespace of its own, whose loopback is up, after these commands (of sh) in it. What it yields takes
    the thread that calls it there for good."""
    ip, name = programs.optional("ip", "iproute2"), f"selector-test-{os.getpid()}-{threading.get_ident()}"
    made = subprocess.run([ip, "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"NOT RUN: no network namespace can be made here: {made.stderr.strip()}")
    try:
        for command in ("ip link set lo up", *commands):
            subprocess.run([ip, "netns", "exec", name, "sh", "-c", command], check=True, timeout=20)
        yield partial(_enter, name)
    finally:
        subprocess.run([ip, "netns", "delete", name], check=True, timeout=20)


def _enter(name: str) -> None:
    file = os.open(f"/run/netns/{name}", os.O_RDONLY)
    _checked(_LIBC.setns(file, _NEW_NETWORK))
    os.close(file)


def forbid_ipv6() -> None:
    """From here on, socket(AF_INET6) fails in this process as it does where the kernel was started with
    ipv6.disable=1. A seccomp filter causes it, which needs no rights."""
    if os.uname().machine not in _SOCKET or sys.byteorder != "little":
        raise OSError(f"the number of socket(2) is not known for {os.uname().machine}")
    # Each instruction: code, jump if true, jump if false, operand. The first loads the call's number, the second
    # compares it, the next two do the same with the call's first argument, and the last two are the answers.
    steps = [
        (0x20, 0, 0, 0), (0x15, 0, 3, _SOCKET[os.uname().machine]),
        (0x20, 0, 0, 16), (0x15, 0, 1, _FAMILY_IPV6),
        (0x06, 0, 0, 0x00050000 | _NOT_SUPPORTED), (0x06, 0, 0, 0x7FFF0000),
    ]  # fmt: skip
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))
    program = struct.pack("<H6xQ", len(steps), ctypes.addressof(code))
    _checked(_LIBC.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    _checked(_LIBC.prctl(_SET_SECCOMP, _FILTER, ctypes.c_char_p(program), 0, 0))


def there(enter: Callable[[], None], function: Callable[[], object]) -> object:
    """What `function` returns in a thread that has entered a network. It may not call gRPC, whose threads are this
    network's."""
    answers = []

    def run() -> None:
        try:
            enter()
            answers.append(function())
        except Exception as error:
            answers.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    [answer] = answers
    if isinstance(answer, Exception):
        raise answer
    return answer


def _checked(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
