"""The memory that requests free stays with the process, in one pool for all of its threads."""

import platform
import subprocess
import sys

import pytest

# Four threads hold blocks at once, of a size that glibc keeps in the pool of a thread; then glibc tells its pools.
POOLS = """
import ctypes, sys, threading
if sys.argv[1] == "kept":
    from selector_server.machine import keep_freed_memory
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
all_there, told = threading.Barrier(5), threading.Event()
def hold():
    block = libc.malloc(50_000)
    all_there.wait()
    told.wait()
    libc.free(block)
for _ in range(4):
    threading.Thread(target=hold).start()
all_there.wait()
libc.fopen.restype, libc.malloc_info.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
libc.fclose.argtypes = [ctypes.c_void_p]
stream = libc.fopen(b"/dev/stdout", b"w")
libc.malloc_info(0, stream)
libc.fclose(stream)
told.set()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="NOT TESTED: only glibc has pools of threads")
def test_threads_share_one_pool():
    def pools(how: str) -> int:
        command = [sys.executable, "-c", POOLS, how]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.count("<heap nr=")

    assert pools("kept") == 1
    assert pools("usual") > 1, "the test cannot tell"
