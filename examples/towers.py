"""The examples' models in torch. `selector export --module towers:TwoTower` calls the class."""

import math
from typing import Any

import torch
from pairs import SIDE, VOCABULARY
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

WIDTH = 16
torch.set_num_threads(1)  # the models are too small for more, and the sidecar wants a core


class TwoTower(nn.Module):
    """A convolution, pooled to 8 x 8, and the mean of words. It takes images of any multiple of 16."""

    def __init__(self, image_size: int = SIDE) -> None:
        super().__init__()
        self.image_size = image_size  # the size that its bundle takes
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 32, 4, stride=2, padding=1)
        self.norm = nn.LayerNorm(32 * 64)
        self.project = nn.Linear(32 * 64, WIDTH)
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.logit_bias = nn.Parameter(torch.tensor(-4.0))  # -log(b), the prior of a batch of 64

    def encode_image(self, images: Tensor) -> Tensor:
        """Takes float [B, 3, H, W] and returns float [B, D]."""
        hidden = self.stem(images).relu()
        pooled = nn.functional.avg_pool2d(hidden, hidden.shape[-1] // 8)  # 8 x 8 at any size
        out: Tensor = self.project(self.norm(pooled.flatten(1)))
        return out

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Takes int64 [B, T] and returns float [B, D]."""
        out: Tensor = self.words(tokens).mean(dim=1)
        return out


def low_resolution() -> TwoTower:
    """Returns the same parameters, for a bundle that takes pictures of 16 pixels."""
    return TwoTower(SIDE // 2)


class LinearTowers(nn.Module):
    """The twin in torch of numpy_jax.py's model. It is needed only once, for the bundle."""

    image_size = SIDE

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Parameter(0.02 * torch.randn(SIDE * SIDE * 3, WIDTH))
        self.words = nn.Parameter(torch.randn(VOCABULARY, WIDTH))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.logit_bias = nn.Parameter(torch.tensor(-4.0))

    def encode_image(self, images: Tensor) -> Tensor:
        """Takes float [B, 3, H, W] and returns float [B, D]; rows of `image` are in the order of uint8 [H, W, 3]."""
        return images.permute(0, 2, 3, 1).flatten(1) @ self.image

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Takes int64 [B, T] and returns float [B, D]."""
        return self.words[tokens].mean(dim=1)


def pixels(images: Any, mean: Any = 0.5, std: Any = 0.5) -> Tensor:
    """Takes uint8 [B, H, W, 3] and returns float [B, 3, H, W], scaled as the bundle's manifest says (-1 to 1)."""
    scaled = (torch.from_numpy(images).float() / 255 - torch.tensor(mean)) / torch.tensor(std)
    return scaled.permute(0, 3, 1, 2)


def pair_losses(image: Tensor, text: Tensor, model: Any) -> Tensor:
    """Returns each image's part of SigLIP's loss of embeddings [b, D], float [b]."""
    logits = model.logit_scale.exp() * normalize(image, dim=1) @ normalize(text, dim=1).T + model.logit_bias
    signs = 1 - 2 * torch.eye(len(logits))
    return softplus(signs * logits).sum(dim=1)


def sigmoid_loss(image: Tensor, text: Tensor, model: Any) -> Tensor:
    """Returns SigLIP's loss of embeddings [b, D]."""
    return pair_losses(image, text, model).mean()
