"""Trains a reference on a curated set that fits into memory."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, softplus

from selector_server.encoding.source import Source
from selector_server.errors import SetupError


@dataclass(frozen=True)
class Recipe:
    """AdamW with a linear warm-up and a cosine decay to zero; matrices decay, vectors and scalars do not."""

    steps: int
    batch: int
    learning_rate: float
    weight_decay: float = 1e-4
    seed: int = 0
    device: str = "cpu"
    betas: tuple[float, float] = (0.9, 0.95)  # the paper's A.1
    warm_up: float = 0.05
    gradient_norm: float = 1.0


def fit(
    source: Source,
    pixels: NDArray[np.uint8],
    tokens: NDArray[np.int64],
    recipe: Recipe,
    on_step: Callable[[float], None] = lambda _: None,
) -> None:
    """Trains source.module in place, with source.loss, on uint8 [n, H, W, C] and int64 [n, T]; `on_step` gets each
    step's loss. Raises SetupError."""
    if source.loss not in CRITERIA:
        raise SetupError("--loss", source.loss, f"a reference is trained with one of {', '.join(CRITERIA)}")
    if len(pixels) < recipe.batch:
        raise SetupError("--batch", recipe.batch, f"the pool holds {len(pixels)} readable pairs")
    module = source.module.to(recipe.device).train()
    optimizer = torch.optim.AdamW(_groups(module, recipe.weight_decay), recipe.learning_rate, betas=recipe.betas)
    rows = _rows(len(pixels), recipe.batch, recipe.seed)
    with torch.random.fork_rng():  # dropout's draws
        torch.manual_seed(recipe.seed)
        for step in range(recipe.steps):
            at = next(rows)
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * _schedule(step, recipe)
            batch = (torch.from_numpy(part[at]).to(recipe.device) for part in (pixels, tokens))
            loss = _loss(source, *batch)
            if not math.isfinite(value := loss.item()):
                raise SetupError("--learning-rate", recipe.learning_rate, f"the loss at step {step + 1} is {value}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(module.parameters(), recipe.gradient_norm)
            optimizer.step()
            on_step(value)
    module.to("cpu").eval()


def _loss(source: Source, pixels: Tensor, tokens: Tensor) -> Tensor:
    mean, std = (torch.tensor(v, device=pixels.device).view(1, -1, 1, 1) for v in (source.image.mean, source.image.std))
    images = (pixels.permute(0, 3, 1, 2).float() / 255.0 - mean) / std
    image = normalize(source.encode_image(source.module, images), dim=1)
    text = normalize(source.encode_text(source.module, tokens), dim=1)
    scale, bias = _logit(source)
    logits = scale * image @ text.T + bias
    own = torch.arange(len(logits), device=logits.device)
    return CRITERIA[source.loss](logits, own)


def _sigmoid(logits: Tensor, own: Tensor) -> Tensor:
    """Summed over each image's texts, averaged over images, as in SigLIP."""
    signs = torch.ones_like(logits)
    signs[own, own] = -1.0
    return softplus(signs * logits).sum(dim=1).mean()


def _softmax(logits: Tensor, own: Tensor) -> Tensor:
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


CRITERIA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sigmoid": _sigmoid,
    "softmax": _softmax,
}


def _logit(source: Source) -> tuple[Tensor, Tensor]:
    logit = source.logit
    stored = dict(source.module.named_buffers()) | dict(source.module.named_parameters(remove_duplicate=False))
    scale = stored[logit.scale_parameter].reshape(())
    bias = torch.zeros_like(scale) if logit.bias_parameter is None else stored[logit.bias_parameter].reshape(())
    return (scale.exp() if logit.scale_is_log else scale), bias


def _groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trained:
        raise SetupError("model", "frozen", "must have parameters that require a gradient")
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def _schedule(step: int, recipe: Recipe) -> float:
    warm_up = max(1, round(recipe.warm_up * recipe.steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, recipe.steps - warm_up)))


def _rows(count: int, size: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Endless batches of different rows, in shuffled epochs; what is left of an epoch is dropped."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(count)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]
