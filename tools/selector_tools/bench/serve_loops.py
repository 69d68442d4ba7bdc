"""Bundles that are served and measured, and the bare loops that the sidecar is measured against."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
from selector_server.encoding.model import Model
from selector_tools.export.bundle_writer import export_learner, export_reference
from selector_tools.export.torch_model import TorchModel

MICRO_BATCHES = (8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Bundles:
    """A learner's weights are graph inputs, a reference's are constants."""

    learner: Bundle
    reference: Bundle


def exported(source: TorchModel, folder: Path, reference: TorchModel | None = None) -> Bundles:
    """Exports learner and reference, from the same model where it does not matter what they know."""
    learner = export_learner(source, folder / "learner").bundle
    return Bundles(learner, export_reference(reference or source, folder / "reference").bundle)


class Trifle(nn.Module):
    """Two towers that do nearly no work, so that what remains is the sidecar's own cost."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.words = nn.Linear(3, 32), nn.Embedding(1000, 32)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode_image(self, images: Tensor) -> Tensor:
        """Looks at the colour of a few pixels only."""
        return self.image(images[:, :, ::37, ::37].mean(dim=(2, 3)))  # type: ignore[no-any-return]

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Takes the mean of the words."""
        return self.words(tokens).mean(dim=1)  # type: ignore[no-any-return]


def trifle(image: ImageInput, max_tokens: int) -> TorchModel:
    """Returns such towers for samples of the same size as those of the model that is measured."""
    return TorchModel(
        name="trifle",
        module=Trifle(),
        image=image,
        text=TextInput(max_tokens=max_tokens, vocabulary=1000),
        logit=Logit(scale_parameter="logit_scale", scale_is_log=True),
    )


class Loop:
    """Towers that run one after the other over B samples, in micro-batches."""

    def __init__(self, towers: list[tuple[str, Callable[[NDArray[Any]], None]]], finish: Callable[[], None]) -> None:
        self._towers, self._finish = towers, finish

    def seconds(self, samples: dict[str, NDArray[Any]], micro_batch: int) -> float:
        """Returns the time of one run over `samples`, which are keyed by the names of the towers' inputs."""
        started = perf_counter()
        for data, run in self._towers:
            for start in range(0, len(samples[data]), micro_batch):
                run(samples[data][start : start + micro_batch])
        self._finish()
        return perf_counter() - started


def bare(device: Device, *bundles: Bundle) -> Loop:
    """Returns plain ONNX Runtime sessions with their default options: all cores, spinning threads, weights bound once.
    Nothing is normalised, joined or picked."""
    return Loop([tower for bundle in bundles for tower in _bare_towers(bundle, device)], lambda: None)


def compiled(device: Device, source: TorchModel, dtype: torch.dtype, times: int) -> Loop:
    """Returns the same model through torch.compile; one run goes `times` over the samples."""
    model = source.frozen(dtype).to(device.torch)
    image, text = (torch.compile(partial(encode, model)) for encode in (source.encode_image, source.encode_text))
    (mean, std) = (
        torch.tensor(v, device=device.torch).view(1, -1, 1, 1) for v in (source.image.mean, source.image.std)
    )

    @torch.inference_mode()
    def run_image(batch: NDArray[Any]) -> None:
        pixels = torch.from_numpy(batch).to(device.torch).permute(0, 3, 1, 2)
        image(((pixels / 255.0 - mean) / std).to(dtype))

    @torch.inference_mode()
    def run_text(batch: NDArray[Any]) -> None:
        text(torch.from_numpy(batch).to(device.torch))

    finish = torch.get_device_module(device.torch).synchronize
    return Loop([(PIXELS, run_image), (TOKENS, run_text)] * times, finish)


def _bare_towers(bundle: Bundle, device: Device) -> list[tuple[str, Callable[[NDArray[Any]], None]]]:
    bound: dict[str, Any] = {}
    if bundle.manifest.role == "learner":
        weights = Model(bundle, Device("cpu"), 1).bundled_weights()
        bound = {name: _put(tensor.numpy(), device) for name, tensor in weights.bound.items()}
    files = ((PIXELS, IMAGE_TOWER), (TOKENS, TEXT_TOWER))
    return [(data, _bare(bundle.path / file, data, bound, device)) for data, file in files]


def _bare(file: Path, data: str, weights: dict[str, Any], device: Device) -> Callable[[NDArray[Any]], None]:
    provider = (device.provider, device.kind.provider_options(device.index))
    session = ort.InferenceSession(str(file), providers=[provider])
    binding = session.io_binding()
    for node in session.get_inputs():
        if node.name != data:
            binding.bind_ortvalue_input(node.name, weights[node.name])

    def run(batch: NDArray[Any]) -> None:
        binding.bind_ortvalue_input(data, _put(batch, device))
        binding.clear_binding_outputs()
        binding.bind_output(EMBEDDING, device.torch.type, device.index)
        session.run_with_iobinding(binding)

    return run


def _put(array: NDArray[Any], device: Device) -> Any:
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device.torch.type, device.index)
