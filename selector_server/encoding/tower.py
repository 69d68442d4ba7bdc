"""A tower is one ONNX graph on one device. It is run in micro-batches, and its weights may be graph inputs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from selector_server.encoding.bundle import EMBEDDING
from selector_server.encoding.device import Device, MicroBatch, OutOfMemory
from selector_server.errors import BundleError, NotPossible
from selector_server.sampling.threads import spread
from selector_server.telemetry.encoding_metrics import EncodingMetrics

Bound = Mapping[str, Tensor]  # from a graph input's name to a contiguous tensor on the tower's device

# On a CPU a batch is cut into so many pieces or more, if it has so many samples, which the sampler's threads encode
# beside each other. As pieces depend on the batch's size alone, so do the last bits of embeddings.
PIECES = 16
# The types that weight inputs may have, as ONNX Runtime names them.
FLOATS = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(bfloat16)": torch.bfloat16}


class Tower:
    """Encodes inputs [n, …] to embeddings, float32 [n, width] on the device. The graph's input for samples is called
    `data`. Raises BundleError for a graph that does not fit.

    The attribute `weights` has each weight input's shape and type by its name. `metrics` counts micro-batches, and
    those that had to be halved.
    """

    def __init__(
        self,
        model: Path,
        data: str,
        width: int,
        device: Device,
        micro_batch: int,
        metrics: EncodingMetrics,
    ) -> None:
        self._session, self._device, self._width = device.session(model), device, width
        self._data, self._limit, self._micro_batch = data, micro_batch, MicroBatch(micro_batch)
        self._metrics = metrics
        inputs = {node.name: node for node in self._session.get_inputs()}
        if data not in inputs or EMBEDDING not in {node.name for node in self._session.get_outputs()}:
            raise BundleError("ONNX graph", model, f"needs an input {data!r} and an output {EMBEDDING!r}")
        del inputs[data]
        if odd := [f"{name} {node.type}" for name, node in inputs.items() if node.type not in FLOATS]:
            raise BundleError("ONNX graph", model, f"weight inputs must be floats, not {', '.join(odd[:5])}")
        self.weights = {name: (tuple(node.shape), FLOATS[node.type]) for name, node in inputs.items()}
        self.providers: list[str] = self._session.get_providers()

    def encode(
        self,
        batch: NDArray[Any],
        weights: Bound,
        check: Callable[[], None] = lambda: None,
        rows: NDArray[np.int64] | None = None,
    ) -> Tensor:
        """Encodes a batch, or these `rows` of it, with `weights`, which holds at least this tower's weight inputs; each
        run binds exactly that set. A micro-batch that does not fit into memory is halved and tried again. `check` is
        called before each micro-batch. Raises NotPossible if one sample alone does not fit, and what `check` raises."""
        count = len(batch) if rows is None else len(rows)

        def part(start: int, stop: int) -> NDArray[Any]:
            return batch[start:stop] if rows is None else batch[rows[start:stop]]

        out = torch.empty((count, self._width), dtype=torch.float32, device=self._device.torch)
        bound = {name: weights[name] for name in self.weights}

        def encoder() -> Callable[[range], None]:
            binding = self._device.bind(self._session, bound)
            return lambda piece: self._encode(part, piece, binding, out, check)

        step = max(1, min(self._limit, count // PIECES) if self._device.kind.is_host else count)
        spread(encoder, [range(count)[at : at + step] for at in range(0, count, step)], self._device.torch)
        return out

    def _encode(
        self,
        part: Callable[[int, int], NDArray[Any]],
        piece: range,
        binding: ort.IOBinding,
        out: Tensor,
        check: Callable[[], None],
    ) -> None:
        """Encodes a piece of the batch, of which part(start, stop) are samples, into its rows of `out`."""
        start, upload = piece.start, None
        while start < piece.stop:
            check()
            stop = min(piece.stop, start + self._micro_batch.size)
            try:
                data = (upload or self._device.send(part(start, stop))).wait()
                stop = start + len(data)
                # The next samples travel while these are computed.
                upload = self._device.send(part(stop, min(piece.stop, stop + self._micro_batch.size)))
                self._device.run(self._session, binding, (self._data, data), (EMBEDDING, out[start:stop]))
            except OutOfMemory as error:
                if stop - start == 1:
                    raise NotPossible("micro-batch", 1, "the device's memory does not hold one sample") from error
                upload = None
                self._micro_batch.halve(stop - start)
                self._metrics.halvings.inc()
                continue
            self._micro_batch.fitted()
            self._metrics.micro_batch.observe(stop - start)
            start = stop
