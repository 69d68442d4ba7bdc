"""Where towers run: one device, as ONNX Runtime and torch both name it, and how arrays get there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from selector_server.errors import BundleError, SetupError
from selector_server.machine import memory_bounds, resident

# torch dtype -> ONNX element type.
ELEMENTS = {
    torch.float32: 1,
    torch.uint8: 2,
    torch.int64: 7,
    torch.float16: 10,
    torch.bfloat16: 16,
}
# ONNX Runtime 1.32 ends by a segmentation fault in it, where float16 weights are constants and the device is a CPU.
_DISABLED = ["FuseFp16InitializerToFp32NodeTransformer"]
_OUT_OF_MEMORY = ("failed to allocate memory", "out of memory", "bad_alloc", "bad allocation")


class OutOfMemory(Exception):
    """A run did not fit; a smaller one may."""


@dataclass
class Upload:
    """An array on its way to the device. `tensor` may be used after `wait`."""

    tensor: Tensor
    copied: Any = None  # a CUDA event
    source: Any = None  # page-locked memory, until the copy is over

    def wait(self) -> Tensor:
        if self.copied is not None:
            self.copied.synchronize()
            self.source = None
        return self.tensor


class Device:
    """`name` is cpu, cuda or cuda:N; `threads` the CPU threads of a session. Never falls back to another device."""

    def __init__(self, name: str, threads: int) -> None:
        kind, _, index = name.partition(":")
        self.name, self.kind, self.index, self.threads = name, kind, int(index or 0), threads
        self.torch = torch.device(kind, self.index) if kind == "cuda" else torch.device("cpu")
        self.provider = "CUDAExecutionProvider" if kind == "cuda" else "CPUExecutionProvider"
        self._copies: Any = None
        if kind == "cuda":
            if not torch.cuda.is_available() or self.index >= torch.cuda.device_count():
                raise SetupError("device", name, f"torch sees {torch.cuda.device_count()} CUDA devices")
            ort.preload_dlls()
            self._copies = torch.cuda.Stream(self.torch)  # type: ignore[no-untyped-call]

    def probe(self) -> None:
        """Computes something small. Raises whatever the device raises when it is lost."""
        if float(torch.ones(2, device=self.torch).sum()) != 2.0:
            raise RuntimeError(f"{self.name} computes 1 + 1 wrongly")

    def session(self, model: Path) -> ort.InferenceSession:
        """A session that runs on this device or not at all. Raises BundleError or SetupError."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        # Threads that spin between runs would take the trainer's cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        provider = {"device_id": self.index} if self.kind == "cuda" else {}
        try:
            session = ort.InferenceSession(
                str(model), options, providers=[(self.provider, provider)], disabled_optimizers=_DISABLED
            )
        except Exception as error:  # onnxruntime raises several unrelated types
            # Its messages begin with places in its source and end with what is wrong.
            raise BundleError("ONNX graph", model, " ".join(str(error).split())[-300:]) from error
        session.disable_fallback()
        if session.get_providers()[0] != self.provider:
            raise SetupError("device", self.name, f"{model} would run on {session.get_providers()[0]}")
        return session

    def memory(self) -> dict[str, int]:
        """Bytes by kind. CUDA: of the whole device. CPU: of this process, as the system counts them."""
        if self.kind == "cpu":
            return resident()
        try:
            free, total = torch.cuda.mem_get_info(self.torch)
        except RuntimeError:  # a broken device must not take the other metrics along
            return {}
        allocated, reserved = torch.cuda.memory_allocated(self.torch), torch.cuda.memory_reserved(self.torch)
        other = max(0, total - free - reserved)  # ONNX Runtime's, and other processes'
        return {"allocated": allocated, "cached": reserved - allocated, "other": other, "free": free}

    def memory_limit(self) -> int:
        """Bytes that there are for it."""
        if self.kind == "cpu":
            return min((bound.limit for bound in memory_bounds()), default=0)
        return int(torch.cuda.mem_get_info(self.torch)[1])

    def send(self, array: NDArray[Any]) -> Upload:
        """Begins to copy `array` to the device, beside whatever computes there; a CPU takes it as it is. Raises
        OutOfMemory."""
        # A request's arrays are views into a read-only payload, which torch must not share.
        tensor = torch.from_numpy(np.require(array, requirements=("C", "W")))
        if self._copies is None:
            return Upload(tensor)
        try:
            pinned = tensor.pin_memory()
            with torch.cuda.stream(self._copies):
                copy = pinned.to(self.torch, non_blocking=True)
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record(self._copies)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(str(error)) from error
        return Upload(copy, event, pinned)

    def run(self, session: ort.InferenceSession, inputs: dict[str, Tensor], output: tuple[str, Tensor]) -> None:
        """Runs the session from tensors on this device into a contiguous one. Raises OutOfMemory."""
        binding = session.io_binding()
        for name, tensor in inputs.items():
            place = (self.kind, self.index, ELEMENTS[tensor.dtype], list(tensor.shape), tensor.data_ptr())
            binding.bind_input(name, *place)
        name, out = output
        binding.bind_output(name, self.kind, self.index, ELEMENTS[out.dtype], list(out.shape), out.data_ptr())
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime raises several unrelated types
            if any(sign in str(error).lower() for sign in _OUT_OF_MEMORY):
                raise OutOfMemory(str(error)) from error
            raise
