"""Puts two frozen towers and their projections together, and embeds a pool by the towers once."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from selector_server.encoding.bundle import ImageInput, Logit, TextInput
from selector_server.errors import SetupError
from selector_tools.export.torch_model import TorchModel
from selector_tools.mistakes import in_one_line
from selector_tools.progress import bar
from selector_tools.reference.training import Pairs

_BATCH = 64  # Pairs that the towers see at once.


@dataclass(frozen=True)
class ImageTower:
    """`module` takes float32 [B, C, H, W], normalised, to [B, F], and `patch` is the side of a patch if it has some."""

    module: nn.Module
    image: ImageInput
    name: str
    origin: str
    patch: tuple[int, int] | None


@dataclass(frozen=True)
class TextTower:
    """`module` takes int64 [B, T] to [B, F]."""

    module: nn.Module
    text: TextInput
    name: str
    origin: str
    tokenizer: Path | None


class FrozenTowers(nn.Module):
    """Only the projections, the logit scale and the logit bias are trained. `bias` is what the bias starts at."""

    def __init__(self, image: nn.Module, text: nn.Module, widths: tuple[int, int], width: int, bias: float) -> None:
        super().__init__()
        self.image_tower, self.text_tower = (tower.eval().requires_grad_(False) for tower in (image, text))
        self.image_projection, self.text_projection = (_projection(of, width) for of in widths)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.logit_bias = nn.Parameter(torch.tensor(bias))

    def train(self, mode: bool = True) -> "FrozenTowers":
        """Switches the projections alone: dropout and batch statistics of the towers stay off."""
        super().train(mode)
        self.image_tower.eval()
        self.text_tower.eval()
        return self

    def encode_image(self, images: Tensor) -> Tensor:
        """Takes float32 [B, C, H, W], normalised, to [B, D]."""
        return self.image_projection(self.image_tower(images))  # type: ignore[no-any-return]

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Takes int64 [B, T] to [B, D]."""
        return self.text_projection(self.text_tower(tokens))  # type: ignore[no-any-return]


def _projection(of: int, width: int) -> nn.Module:
    # Towers differ in how large their features are; the norm makes one learning rate fit all.
    return nn.Sequential(nn.LayerNorm(of), nn.Linear(of, width))


def joined(image: ImageTower, text: TextTower, width: int, batch: int) -> TorchModel:
    """Returns the model of both towers with fresh projections to `width`. The logit bias starts at -log(`batch`), as
    one of so many texts is an image's own. Raises SetupError if a tower fails."""
    high, wide, most = image.image.height, image.image.width, text.text.max_tokens
    widths = (
        _width("--image-tower", image, torch.zeros((1, image.image.channels, high, wide)), f"{high} x {wide} pixels"),
        _width("--text-tower", text, torch.zeros((1, most), dtype=torch.int64), f"{most} tokens"),
    )
    return TorchModel(
        name=f"{image.name}+{text.name}"[:128],
        module=FrozenTowers(image.module, text.module, widths, width, -math.log(batch)),
        image=image.image,
        text=text.text,
        logit=Logit(scale_parameter="logit_scale", scale_is_log=True, bias_parameter="logit_bias"),
        tokenizer=text.tokenizer,
        origin=f"frozen {image.origin} and {text.origin}",
        patch=image.patch,
    )


def _width(flag: str, tower: ImageTower | TextTower, sample: Tensor, size: str) -> int:
    try:
        with torch.no_grad():
            return int(tower.module(sample).shape[1])
    except Exception as error:  # whatever the library raises
        raise SetupError(flag, tower.name, f"of {size} it raises {in_one_line(error, kind=True)}") from error


def embedded_once(model: TorchModel, pixels: NDArray[np.uint8], tokens: NDArray[np.int64], device: str) -> Pairs:
    """Runs the towers of a joined model over pixels uint8 [n, H, W, C] and tokens int64 [n, T], and returns pairs on
    whose features the projections are trained."""
    module: Any = model.module.to(device)

    def image_features(rows: Tensor) -> Tensor:
        return module.image_tower(model.normalised(rows))  # type: ignore[no-any-return]

    with bar("embed", 2 * len(pixels)) as advance:
        images = _features(image_features, pixels, device, advance)
        texts = _features(module.text_tower, tokens, device, advance)
    return Pairs(images, texts, lambda image, text: (module.image_projection(image), module.text_projection(text)))


def _features(
    tower: Callable[[Tensor], Tensor], rows: NDArray[Any], device: str, advance: Callable[[int], None]
) -> NDArray[np.float32]:
    parts = []
    with torch.no_grad():
        for start in range(0, len(rows), _BATCH):
            some = torch.from_numpy(rows[start : start + _BATCH]).to(device)
            parts.append(tower(some).float().cpu().numpy())
            advance(len(some))
    return np.concatenate(parts)
