"""Bundles to serve and to measure, and the bare loop that a served one is measured against."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from selector_server.encoding.bundle import (
    EMBEDDING,
    IMAGE_TOWER,
    PIXELS,
    TEXT_TOWER,
    TOKENS,
    Bundle,
    ImageInput,
    Logit,
    TextInput,
)
from selector_server.encoding.device import Device
from selector_server.encoding.export import export_learner, export_reference
from selector_server.encoding.model import Model
from selector_server.encoding.source import Source

MICRO_BATCHES = (8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Bundles:
    """One model twice: with its weights as graph inputs, and as constants."""

    learner: Bundle
    reference: Bundle


def exported(source: Source, folder: Path) -> Bundles:
    """Learner and reference of the same architecture, resolution and weights, for those do not matter here."""
    learner = export_learner(source, folder / "learner").bundle
    return Bundles(learner, export_reference(source, folder / "reference").bundle)


class Trifle(nn.Module):
    """Two towers of nearly no work: what remains is the sidecar's own cost."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.words = nn.Linear(3, 32), nn.Embedding(1000, 32)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode_image(self, images: Tensor) -> Tensor:
        """A few pixels' colour."""
        return self.image(images[:, :, ::37, ::37].mean(dim=(2, 3)))  # type: ignore[no-any-return]

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Mean of the words."""
        return self.words(tokens).mean(dim=1)  # type: ignore[no-any-return]


def trifle(image: ImageInput, max_tokens: int) -> Source:
    """As a source, for samples of the same size as the model that is measured."""
    return Source(
        name="trifle",
        module=Trifle(),
        image=image,
        text=TextInput(max_tokens=max_tokens, vocabulary=1000),
        logit=Logit(scale_parameter="logit_scale", scale_is_log=True),
    )


class BareLoop:
    """Both towers of some bundles in plain ONNX Runtime sessions with their default options: all cores, spinning
    threads, weights bound once. Nothing is normalised, joined or picked."""

    def __init__(self, *bundles: Bundle) -> None:
        self._towers = [tower for bundle in bundles for tower in _bare_towers(bundle)]

    def seconds(self, pixels: NDArray[np.uint8], tokens: NDArray[np.int64], micro_batch: int) -> float:
        """Time to encode B samples in micro-batches."""
        samples: dict[str, NDArray[Any]] = {PIXELS: pixels, TOKENS: tokens}
        started = perf_counter()
        for data, run in self._towers:
            for start in range(0, len(pixels), micro_batch):
                run(samples[data][start : start + micro_batch])
        return perf_counter() - started


def _bare_towers(bundle: Bundle) -> list[tuple[str, Callable[[NDArray[Any]], None]]]:
    bound: dict[str, NDArray[Any]] = {}
    if bundle.manifest.role == "learner":
        weights = Model(bundle, Device("cpu", 1), 1).bundled_weights()
        bound = {name: tensor.numpy() for name, tensor in weights.bound.items()}
    return [
        (data, _bare(bundle.path / file, data, bound)) for file, data in ((IMAGE_TOWER, PIXELS), (TEXT_TOWER, TOKENS))
    ]


def _bare(file: Path, data: str, weights: dict[str, NDArray[Any]]) -> Callable[[NDArray[Any]], None]:
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for node in session.get_inputs():
        if node.name != data:
            binding.bind_cpu_input(node.name, weights[node.name])

    def run(batch: NDArray[Any]) -> None:
        binding.bind_cpu_input(data, np.ascontiguousarray(batch))
        binding.clear_binding_outputs()
        binding.bind_output(EMBEDDING)
        session.run_with_iobinding(binding)
        binding.copy_outputs_to_cpu()

    return run
