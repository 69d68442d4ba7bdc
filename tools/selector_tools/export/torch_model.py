"""What an export starts from: a torch model, how it is called, and what its inputs mean."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from selector_server.encoding.bundle import ImageInput, Logit, Resize, TextInput


class TwoTower(Protocol):
    """A module that can be exported without further words."""

    def encode_image(self, images: Tensor) -> Tensor:
        """Takes float32 [B, C, H, W], normalised, to [B, D]."""

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Takes int64 [B, T] to [B, D]."""


def _encode_image(module: nn.Module, images: Tensor) -> Tensor:
    return cast(TwoTower, module).encode_image(images)


def _encode_text(module: nn.Module, tokens: Tensor) -> Tensor:
    return cast(TwoTower, module).encode_text(tokens)


@dataclass(frozen=True)
class TorchModel:
    """`module` is the trainer's model: its state_dict names what a trainer publishes. It is not changed.

    `encode_image` and `encode_text` call it as TwoTower says. `patch` is the side (h, w) of an image patch, if the
    image tower cuts images into patches; `stride` is how many pixels (h, w) a cell of its last grid stands for, if it
    convolves them instead. `tokens_at` names the submodule whose output is [B, prefix + patches, W], where patches can
    be dropped. `resizes` and `state` (the trainer's own state_dict) are set where `module` was built at another
    resolution than the trainer's, see `low_resolution`.
    """

    name: str
    module: nn.Module
    image: ImageInput
    text: TextInput
    logit: Logit
    loss: str = "sigmoid"
    encode_image: Callable[[Any, Tensor], Tensor] = _encode_image
    encode_text: Callable[[Any, Tensor], Tensor] = _encode_text
    tokenizer: Path | None = None
    origin: str = ""
    licence: str = ""
    patch: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    tokens_at: str = ""
    patches_kept: float = 1.0
    state: Mapping[str, Tensor] = field(default_factory=dict)
    resizes: Mapping[str, Resize] = field(default_factory=dict)

    def __post_init__(self) -> None:
        module = self.module
        while isinstance(inner := getattr(module, "_orig_mod", getattr(module, "module", None)), nn.Module):
            module = inner  # torch.compile and DistributedDataParallel wrap the model
        object.__setattr__(self, "module", module)
        if not self.state:
            object.__setattr__(self, "state", module.state_dict())

    def frozen(self, dtype: torch.dtype) -> nn.Module:
        """Returns a copy of the module to trace and to run, because its mode, precision and device are not the
        trainer's."""
        return copy.deepcopy(self.module).to("cpu", dtype).eval().requires_grad_(False)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Counts the whole patches, or the whole cells of the last grid, down and across; None if there is neither."""
        if (cell := self.patch or self.stride) is None:
            return None
        return self.image.height // cell[0], self.image.width // cell[1]

    def normalised(self, pixels: Tensor) -> Tensor:
        """Turns uint8 [B, H, W, C] into what `encode_image` takes, float32 [B, C, H, W], as the bundle's image tower
        does it."""
        values = (self.image.mean, self.image.std)
        mean, std = (torch.tensor(value, device=pixels.device).view(1, -1, 1, 1) for value in values)
        return (pixels.permute(0, 3, 1, 2).float() / 255.0 - mean) / std
