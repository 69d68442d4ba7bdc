"""Trains a reference on a curated set that fits into memory."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, softplus

from selector_server.errors import SetupError
from selector_tools.export.torch_model import TorchModel
from selector_tools.reference.augmentation import Augmentation


@dataclass(frozen=True)
class Recipe:
    """Training is by AdamW with a linear warm-up and a cosine decay to zero. Weight decay applies to matrices, not to
    vectors and scalars. `augmentation` needs pairs whose images are pixels."""

    steps: int
    batch: int
    learning_rate: float
    weight_decay: float = 1e-4
    seed: int = 0
    device: str = "cpu"
    betas: tuple[float, float] = (0.9, 0.95)  # those of JEST, appendix A.1
    warm_up: float = 0.05
    gradient_norm: float = 1.0
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True)
class Pairs:
    """n pairs as a model is trained on them: `images` [n, ...] and `texts` [n, ...]. `embed` takes rows of both, on the
    model's device, to embeddings, float [B, D] of any length."""

    images: NDArray[Any]
    texts: NDArray[Any]
    embed: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.images)

    def at(self, rows: NDArray[Any]) -> "Pairs":
        """Returns the pairs of these rows, int [m] or bool [n]."""
        return Pairs(self.images[rows], self.texts[rows], self.embed)


def whole_pairs(model: TorchModel, pixels: NDArray[np.uint8], tokens: NDArray[np.int64]) -> Pairs:
    """Returns pairs on which the whole of a model is trained: pixels uint8 [n, H, W, C] and tokens int64 [n, T]."""

    def embed(images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        module = model.module
        return model.encode_image(module, model.normalised(images)), model.encode_text(module, texts)

    return Pairs(pixels, tokens, embed)


def fit(
    model: TorchModel,
    pairs: Pairs,
    recipe: Recipe,
    on_step: Callable[[float], None] = lambda _: None,
    stops: Callable[[int], bool] = lambda _: False,
) -> int:
    """Trains `model.module` in place with `model.loss`, and returns the number of steps. `on_step` is called with the
    loss of each step; training ends when `stops` says so after a step, 1 for the first. There must be pairs for a
    batch. Raises SetupError."""
    if model.loss not in CRITERIA:
        raise SetupError("--loss", model.loss, f"a reference is trained with one of {', '.join(CRITERIA)}")
    module = model.module.to(recipe.device).train()
    optimizer = torch.optim.AdamW(_groups(module, recipe.weight_decay), recipe.learning_rate, betas=recipe.betas)
    rows = _rows(len(pairs), recipe.batch, recipe.seed)
    rng = np.random.default_rng((recipe.seed, 1))  # not that of the rows, which stay the same with augmentation
    done = 0
    with torch.random.fork_rng():  # dropout draws from it
        torch.manual_seed(recipe.seed)
        for step in range(recipe.steps):
            at = next(rows)
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * _schedule(step, recipe)
            images, texts = (torch.from_numpy(part[at]).to(recipe.device) for part in (pairs.images, pairs.texts))
            if not recipe.augmentation.off:
                images = recipe.augmentation(images, rng)
            loss = batch_loss(model, *pairs.embed(images, texts))
            if not math.isfinite(value := loss.item()):
                raise SetupError("--learning-rate", recipe.learning_rate, f"the loss at step {step + 1} is {value}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(module.parameters(), recipe.gradient_norm)
            optimizer.step()
            done = step + 1
            on_step(value)
            if stops(done):
                break
    module.to("cpu").eval()
    return done


def batch_loss(model: TorchModel, image: Tensor, text: Tensor) -> Tensor:
    """Returns the model's own loss of a batch, float [], from embeddings [B, D] of any length."""
    scale, bias = logit(model)
    logits = scale * normalize(image, dim=1) @ normalize(text, dim=1).T + bias
    own = torch.arange(len(logits), device=logits.device)
    return CRITERIA[model.loss](logits, own)


def _sigmoid(logits: Tensor, own: Tensor) -> Tensor:
    """Sums the loss over each image's texts and averages it over images, as SigLIP does."""
    signs = torch.ones_like(logits)
    signs[own, own] = -1.0
    return softplus(signs * logits).sum(dim=1).mean()


def _softmax(logits: Tensor, own: Tensor) -> Tensor:
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


CRITERIA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sigmoid": _sigmoid,
    "softmax": _softmax,
}


def logit(model: TorchModel) -> tuple[Tensor, Tensor]:
    """Returns the scale and the bias that the module has now, float [] each."""
    names = model.logit
    stored = dict(model.module.named_buffers()) | dict(model.module.named_parameters(remove_duplicate=False))
    scale = stored[names.scale_parameter].reshape(())
    bias = torch.zeros_like(scale) if names.bias_parameter is None else stored[names.bias_parameter].reshape(())
    return (scale.exp() if names.scale_is_log else scale), bias


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
    """Yields batches of different rows without end, in shuffled epochs; what is left of an epoch is dropped."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(count)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]
