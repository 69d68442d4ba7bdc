"""Learners of any size to publish: two towers of large linear layers, quick to export and cheap per parameter."""

import math
from pathlib import Path

import torch
from selector_client import Canary
from torch import Tensor, nn

from selector_server.encoding.bundle import ImageInput, Logit, TextInput
from selector_tools.export.bundle_writer import export_learner, export_reference
from selector_tools.export.torch_model import TorchModel

SIDE, WORDS, EMBEDDING = 16, 1000, 64
DEPTH = 12
IMAGE = ImageInput(height=SIDE, width=SIDE, channels=3)
TEXT = TextInput(max_tokens=16, vocabulary=WORDS)


class _Tower(nn.Module):
    def __init__(self, first: nn.Module, width: int) -> None:
        super().__init__()
        self.first, self.last = first, nn.Linear(width, EMBEDDING)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(DEPTH))

    def forward(self, inputs: Tensor) -> Tensor:
        """The layers are residual, so that depth neither grows nor shrinks what goes through them."""
        x = self.first(inputs)
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        return self.last(x)  # type: ignore[no-any-return]


class Learner(nn.Module):
    """An image and a text tower with about `parameters` parameters together."""

    def __init__(self, parameters: float) -> None:
        super().__init__()
        pixels = SIDE * SIDE * 3
        ends = pixels + WORDS + 2 * EMBEDDING
        # The width solves 2 x DEPTH x w^2 + ends x w = parameters.
        width = max(8, round((math.sqrt(ends**2 + 8 * DEPTH * parameters) - ends) / (4 * DEPTH)))
        self.image = _Tower(nn.Linear(pixels, width), width)
        self.words = nn.Embedding(WORDS, width)
        self.text = _Tower(nn.Identity(), width)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode_image(self, images: Tensor) -> Tensor:
        """Takes float [B, 3, 16, 16] and returns [B, 64]."""
        return self.image(images.flatten(1))  # type: ignore[no-any-return]

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Takes int64 [B, 16] and returns [B, 64]."""
        return self.text(self.words(tokens).mean(dim=1))  # type: ignore[no-any-return]


def learner(parameters: float) -> tuple[Learner, TorchModel]:
    """Returns a learner and what its bundle is exported from; they share their weights."""
    module = Learner(parameters).requires_grad_(False)
    logit = Logit(scale_parameter="logit_scale", scale_is_log=True)
    return module, TorchModel(name="layers", module=module, image=IMAGE, text=TEXT, logit=logit)


def canary(module: Learner, samples: int) -> Canary:
    """Returns random samples with the embeddings that the learner gives them now."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (samples, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    tokens = torch.randint(0, WORDS, (samples, TEXT.max_tokens), generator=generator)
    images = (pixels.permute(0, 3, 1, 2) / 255.0 - 0.5) / 0.5
    with torch.inference_mode():
        image, text = module.encode_image(images), module.encode_text(tokens)
    return Canary(pixels.numpy(), tokens.numpy(), image.numpy(), text.numpy())


def bundles(folder: Path, parameters: float) -> tuple[str, ...]:
    """Exports a learner and a reference of this size, and returns the flags of a sidecar that has them."""
    _, source = learner(parameters)
    export_learner(source, folder / "learner")
    export_reference(source, folder / "reference")
    return ("--learner", str(folder / "learner"), "--reference", str(folder / "reference"))
