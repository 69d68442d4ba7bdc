"""Where towers run: one device, known to ONNX Runtime and torch, how arrays get there, and how much fits at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from selector_server.device_kinds import DEVICE_NAMES, KINDS, is_device
from selector_server.errors import BundleError, SetupError
from selector_server.machine import memory_bounds, resident

# The ONNX element type of each torch dtype that a tower takes or gives.
ELEMENTS = {
    torch.float32: 1,
    torch.uint8: 2,
    torch.int64: 7,
    torch.float16: 10,
    torch.bfloat16: 16,
}
# ONNX Runtime 1.32 ends by a segmentation fault in this one, if float16 weights are constants and the device is a CPU.
_DISABLED = ["FuseFp16InitializerToFp32NodeTransformer"]
_OUT_OF_MEMORY = ("failed to allocate memory", "out of memory", "bad_alloc", "bad allocation")
# So many runs must fit before a larger micro-batch is tried again.
PATIENCE = 64


class OutOfMemory(Exception):
    """A run did not fit into the device's memory; a smaller one may."""


class MicroBatch:
    """How many samples a thread encodes at once: as many as memory holds, up to a limit.

    `size` begins at `limit`, is halved when memory runs out, and creeps back by an eighth of the limit.
    """

    def __init__(self, limit: int) -> None:
        self.size = self._limit = limit
        self._fits = 0

    def halve(self, tried: int) -> None:
        """Says that `tried` samples, more than 1, did not fit. Other threads may have said so of fewer before."""
        self.size, self._fits = min(self.size, tried // 2), 0

    def fitted(self) -> None:
        """Says that one more run fitted."""
        if self.size == self._limit:
            return
        self._fits += 1
        if self._fits >= PATIENCE:
            self.size, self._fits = min(self._limit, self.size + max(1, self._limit // 8)), 0


@dataclass
class Upload:
    """An array on its way to the device."""

    tensor: Tensor
    copied: Any = None  # the event, of torch's module for the device, that the copy is over
    source: Any = None  # the page-locked memory that is copied, until the copy is over

    def wait(self) -> Tensor:
        """Waits until the tensor may be used, and returns it."""
        if self.copied is not None:
            self.copied.synchronize()
            self.source = None
        return self.tensor


class Device:
    """One device of one kind. It never falls back to another."""

    def __init__(self, name: str) -> None:
        """`name` is that of a kind, or kind:N for its N-th device. Raises SetupError if there is no such device."""
        if not is_device(name):
            raise SetupError("device", name, f"must be {DEVICE_NAMES}")
        kind, _, index = name.partition(":")
        self.name, self.kind, self.index = name, KINDS[kind], int(index or 0)
        self.provider = self.kind.provider
        self.torch = torch.device("cpu")
        # torch's module for accelerators of this kind, such as torch.cuda, and a stream for copies to this one.
        self._module: Any = None
        self._copies: Any = None
        if not self.kind.is_host:
            self._module = torch.get_device_module(self.kind.torch_type)
            if not self._module.is_available() or self.index >= self._module.device_count():
                limit = f"torch sees {self._module.device_count()} {kind.upper()} devices"
                raise SetupError("device", name, limit)
            self.torch = torch.device(self.kind.torch_type, self.index)
            ort.preload_dlls()  # of CUDA, which does nothing in other builds
            self._copies = self._module.Stream(self.torch)

    def probe(self) -> None:
        """Computes something small. Raises whatever the device raises when it is lost."""
        if float(torch.ones(2, device=self.torch).sum()) != 2.0:
            raise RuntimeError(f"{self.name} computes 1 + 1 wrongly")

    def session(self, model: Path) -> ort.InferenceSession:
        """A session that runs on this device or not at all. Raises BundleError or SetupError."""
        options = ort.SessionOptions()
        # Runs lie beside each other, and none waits for threads of its own within each operator: see sampling.threads.
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        providers = [(self.provider, self.kind.provider_options(self.index))]
        try:
            session = ort.InferenceSession(str(model), options, providers=providers, disabled_optimizers=_DISABLED)
        except Exception as error:  # onnxruntime raises several unrelated types
            # Its messages begin with places in its source and end with what is wrong.
            raise BundleError("ONNX graph", model, " ".join(str(error).split())[-300:]) from error
        session.disable_fallback()
        if session.get_providers()[0] != self.provider:
            raise SetupError("device", self.name, f"{model} would run on {session.get_providers()[0]}")
        return session

    def memory(self) -> dict[str, int]:
        """Bytes by kind: of an accelerator as a whole, or of this process on a CPU, as the system counts them."""
        if self._module is None:
            return resident()
        try:
            free, total = self._module.mem_get_info(self.torch)
        except RuntimeError:  # a broken device must not take the other metrics along
            return {}
        allocated, reserved = self._module.memory_allocated(self.torch), self._module.memory_reserved(self.torch)
        other = max(0, total - free - reserved)  # of ONNX Runtime and of other processes
        return {"allocated": allocated, "cached": reserved - allocated, "other": other, "free": free}

    def memory_limit(self) -> int:
        """Bytes of memory that the device has, or that this process may use on a CPU; 0 if the system does not say."""
        if self._module is None:
            return min((bound.limit for bound in memory_bounds()), default=0)
        return int(self._module.mem_get_info(self.torch)[1])

    def send(self, array: NDArray[Any]) -> Upload:
        """Begins to copy `array`, of any shape and dtype, to the device, beside whatever computes there; a CPU takes it
        as it is. Raises OutOfMemory."""
        # A request's arrays are views into a read-only payload, which torch must not share.
        tensor = torch.from_numpy(np.require(array, requirements=("C", "W")))
        if self._copies is None:
            return Upload(tensor)
        try:
            pinned = tensor.pin_memory()
            with self._module.stream(self._copies):
                copy = pinned.to(self.torch, non_blocking=True)
                event = self._module.Event()
                event.record(self._copies)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(str(error)) from error
        return Upload(copy, event, pinned)

    def bind(self, session: ort.InferenceSession, tensors: Mapping[str, Tensor]) -> ort.IOBinding:
        """The inputs of the session that stay the same from run to run, on this device. It serves one thread."""
        binding = session.io_binding()
        for name, tensor in tensors.items():
            binding.bind_input(name, *self._place(tensor))
        return binding

    def run(
        self,
        session: ort.InferenceSession,
        binding: ort.IOBinding,
        data: tuple[str, Tensor],
        output: tuple[str, Tensor],
    ) -> None:
        """Runs the session with what is bound, from a tensor on this device into a contiguous one. Raises
        OutOfMemory."""
        binding.bind_input(data[0], *self._place(data[1]))
        binding.bind_output(output[0], *self._place(output[1]))
        if self._module is not None:
            # ONNX Runtime has streams of its own: what torch has yet to do with this memory must be over.
            self._module.current_stream(self.torch).synchronize()
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime raises several unrelated types
            if any(sign in str(error).lower() for sign in _OUT_OF_MEMORY):
                raise OutOfMemory(str(error)) from error
            raise

    def _place(self, tensor: Tensor) -> tuple[str, int, int, list[int], int]:
        """Where a tensor lies and what it is, as ONNX Runtime is told."""
        return self.torch.type, self.index, ELEMENTS[tensor.dtype], list(tensor.shape), tensor.data_ptr()
