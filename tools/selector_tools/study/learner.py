"""What the studies train: any model of two towers that knows its own loss."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Learner(Protocol):
    """A torch module whose state_dict names what a trainer publishes."""

    def encode_image(self, images: Tensor) -> Tensor:
        """Takes float [B, C, H, W], normalised, to [B, D]."""

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Takes int64 [B, T] to [B, D]."""

    def loss(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Takes uint8 [B, H, W, C] and int64 [B, T] to the loss of the batch, float []."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yields what is trained."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the weights by name."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Takes such weights."""

    def zero_grad(self, set_to_none: bool = ...) -> None:
        """Forgets all gradients."""


def device_of(model: Learner) -> torch.device:
    """Returns where a model's weights are."""
    return next(iter(model.parameters())).device
