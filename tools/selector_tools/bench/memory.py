"""Memory readings: of another process, and of one call in a process of its own."""

import ctypes
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

HOW = "peak resident memory of a fresh process during the call, less that before it (CUDA: of its allocator)"

_MMAP_THRESHOLD = -3  # glibc's name for the size from which a block is mapped by itself

# A function that makes the inputs on a device and returns the call that is given them.
Prepare = Callable[[], Callable[[], object]]


def resident_bytes(pid: int | str, field: str = "VmRSS") -> int:
    """Returns how much of a process's memory is in RAM now, or with "VmHWM" the most that ever was. Linux only."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


def peak_mib(prepare: Prepare, device: str, threads: int) -> float:
    """Returns how many MiB `prepare()()` holds at its highest, beyond what `prepare()` left behind.

    It runs in a process of its own, so `prepare` must be picklable.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_measure, prepare, device, threads).result()


def _measure(prepare: Prepare, device: str, threads: int) -> float:
    torch.set_num_threads(threads)
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, 1 << 20)  # larger tensors then go back to the system when they are freed
    call = prepare()
    if device != "cpu":
        module = torch.get_device_module(device)
        module.reset_peak_memory_stats(device)
        before: int = module.memory_allocated(device)
        call()
        return float(module.max_memory_allocated(device) - before) / 2**20
    libc.malloc_trim(0)  # otherwise the call would take again, unseen, what preparing had freed
    before = resident_bytes("self")
    Path("/proc/self/clear_refs").write_text("5")  # this resets the peak, VmHWM
    call()
    return (resident_bytes("self", "VmHWM") - before) / 2**20
