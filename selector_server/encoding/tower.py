"""One ONNX graph on one device, run in micro-batches; its weights may be graph inputs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from selector_server.encoding.bundle import EMBEDDING
from selector_server.errors import BundleError, SetupError

Bound = Mapping[str, Any]  # graph input -> OrtValue on the tower's device


class Device:
    """Where towers run: the ONNX Runtime provider and the torch device that name the same hardware."""

    def __init__(self, name: str, threads: int) -> None:
        kind, _, index = name.partition(":")
        self.index = int(index or 0)
        self.kind, self.threads = kind, threads
        self.torch = torch.device(kind, self.index) if kind == "cuda" else torch.device("cpu")
        self.provider = "CUDAExecutionProvider" if kind == "cuda" else "CPUExecutionProvider"
        if kind == "cuda":
            if not torch.cuda.is_available() or self.index >= torch.cuda.device_count():
                raise SetupError("device", name, f"torch sees {torch.cuda.device_count()} CUDA devices")
            ort.preload_dlls()

    def session(self, model: Path) -> ort.InferenceSession:
        """A session that runs on this device or not at all."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        # Threads that spin between runs would take the trainer's cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        provider = {"device_id": self.index} if self.kind == "cuda" else {}
        try:
            session = ort.InferenceSession(str(model), options, providers=[(self.provider, provider)])
        except Exception as error:  # onnxruntime raises several unrelated types
            raise BundleError("ONNX graph", model, str(error).partition("\n")[0][:300]) from error
        session.disable_fallback()
        if session.get_providers()[0] != self.provider:
            raise SetupError("device", self.kind, f"{model} would run on {session.get_providers()[0]}")
        return session

    def put(self, array: NDArray[Any]) -> Any:
        """An OrtValue on this device; on a CPU it aliases `array`, which must then never change."""
        return ort.OrtValue.ortvalue_from_numpy(array, self.kind, self.index)


class Tower:
    """Encodes [n, …] inputs to float [n, D] embeddings on the device."""

    def __init__(self, model: Path, data: str, device: Device, micro_batch: int) -> None:
        self._session, self._device = device.session(model), device
        self._data, self._micro_batch = data, micro_batch
        inputs = {node.name: node for node in self._session.get_inputs()}
        if data not in inputs or EMBEDDING not in {node.name for node in self._session.get_outputs()}:
            raise BundleError("ONNX graph", model, f"needs an input {data!r} and an output {EMBEDDING!r}")
        self.weight_shapes = {name: tuple(node.shape) for name, node in inputs.items() if name != data}
        self.providers: list[str] = self._session.get_providers()

    def encode(self, batch: NDArray[Any], weights: Bound) -> Tensor:
        """`weights` holds at least this tower's weight inputs; each call binds exactly that set."""
        step = self._micro_batch
        return torch.cat([self._run(batch[i : i + step], weights) for i in range(0, len(batch), step)])

    def _run(self, batch: NDArray[Any], weights: Bound) -> Tensor:
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._data, self._device.put(np.ascontiguousarray(batch)))
        for name in self.weight_shapes:
            binding.bind_ortvalue_input(name, weights[name])
        binding.bind_output(EMBEDDING, self._device.kind, self._device.index)
        self._session.run_with_iobinding(binding)
        return torch.utils.dlpack.from_dlpack(binding.get_outputs()[0])
