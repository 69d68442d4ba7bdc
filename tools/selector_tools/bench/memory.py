"""How much memory a call takes, beyond what it is given: measured, in a process of its own."""

import ctypes
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

HOW = "peak resident memory of a fresh process during the call, less that before it (CUDA: of its allocator)"

_MMAP_THRESHOLD = -3

# Makes the inputs on a device; then takes them.
Prepare = Callable[[], Callable[[], object]]


def peak_mib(prepare: Prepare, device: str, threads: int) -> float:
    """MiB that `prepare()()` holds at its highest, beyond what `prepare()` left. `prepare` must be picklable."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_measure, prepare, device, threads).result()


def _measure(prepare: Prepare, device: str, threads: int) -> float:
    torch.set_num_threads(threads)
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, 1 << 20)  # glibc: larger tensors go back to the system when they are freed
    call = prepare()
    if device != "cpu":
        module = torch.get_device_module(device)
        module.reset_peak_memory_stats(device)
        before: int = module.memory_allocated(device)
        call()
        return float(module.max_memory_allocated(device) - before) / 2**20
    libc.malloc_trim(0)  # else what preparing freed would be taken again, unseen
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, VmHWM
    call()
    return (_resident("VmHWM") - before) / 1024


def _resident(field: str) -> int:
    """KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))
