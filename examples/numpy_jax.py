"""Selection without torch: linear towers in numpy, with gradients by JAX if it is installed and else by hand. It needs
`pip install jest-selector` alone."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from pairs import SIDE, VOCABULARY, super_batches
from selector_client import SelectingLoader, Selector, WeightPublisher
from selector_client.callbacks import TrainingHooks
from shared import arguments, report

try:
    import jax
    import jax.numpy as jnp
except ImportError:
    jax = None

Arrays = dict[str, Any]
WIDTH = 16


def start() -> Arrays:
    """Returns parameters by the names that the bundle knows."""
    rng = np.random.default_rng(0)
    image, words = 0.02 * rng.standard_normal((SIDE * SIDE * 3, WIDTH)), rng.standard_normal((VOCABULARY, WIDTH))
    start = {"image": image, "words": words, "logit_scale": np.log(10.0), "logit_bias": -4.0}
    return {name: np.asarray(value, np.float32) for name, value in start.items()}


def gradients_by_hand(parameters: Arrays, images: Any, texts: Any) -> Arrays:
    """Returns the gradients of the sigmoid loss, for images float [b, P] and texts int [b, T]."""
    image, text = images @ parameters["image"], parameters["words"][texts].mean(axis=1)
    lengths = [np.linalg.norm(rows, axis=1, keepdims=True) for rows in (image, text)]
    u, v = image / lengths[0], text / lengths[1]
    scale, signs = np.exp(parameters["logit_scale"]), 1 - 2 * np.eye(len(u), dtype=np.float32)
    cosines = u @ v.T
    logits = signs * (scale * cosines + parameters["logit_bias"])
    slopes = signs / (1 + np.exp(-logits)) / len(u)  # the derivative of the loss in each logit
    to_u, to_v = scale * slopes @ v, scale * slopes.T @ u
    to_image = (to_u - u * (u * to_u).sum(axis=1, keepdims=True)) / lengths[0]
    to_text = (to_v - v * (v * to_v).sum(axis=1, keepdims=True)) / lengths[1]
    to_words = np.zeros_like(parameters["words"])
    np.add.at(to_words, texts, to_text[:, None] / texts.shape[1])
    return {
        "image": images.T @ to_image,
        "words": to_words,
        "logit_scale": scale * (slopes * cosines).sum(),
        "logit_bias": slopes.sum(),
    }


def loss_in_jax(parameters: Arrays, images: Any, texts: Any) -> Any:
    """Returns the sigmoid loss for images float [b, P] and texts int [b, T]."""
    image, text = images @ parameters["image"], parameters["words"][texts].mean(axis=1)
    u, v = (rows / jnp.linalg.norm(rows, axis=1, keepdims=True) for rows in (image, text))
    logits = jnp.exp(parameters["logit_scale"]) * u @ v.T + parameters["logit_bias"]
    return jax.nn.softplus((1 - 2 * jnp.eye(len(logits))) * logits).sum(axis=1).mean()


def main() -> None:
    """Trains by gradient descent with selection, and prints how it went."""
    flags = arguments(__doc__)
    parameters, mislabelled = start(), []
    gradients: Callable[..., Arrays] = gradients_by_hand if jax is None else jax.jit(jax.grad(loss_in_jax))
    rates = {"image": 0.01, "words": 1.0, "logit_scale": 0.0, "logit_bias": 0.0}

    selector = Selector(flags.sidecar, run=flags.run, filter_ratio=0.8)
    publisher = WeightPublisher(flags.redis, run=flags.run, every=5)
    loader = SelectingLoader(super_batches(flags.steps), selector)
    hooks = TrainingHooks(selector, loader, publisher)
    for step, batch in enumerate(loader):
        images = (batch["images"].reshape(len(batch["images"]), -1) / 127.5 - 1).astype(np.float32)
        slopes = gradients(parameters, images, batch["texts"])
        parameters = {name: value - rates[name] * slopes[name] for name, value in parameters.items()}
        hooks.after_step(step + 1, parameters)  # a mapping from names to arrays is published like a module
        mislabelled.append(batch["mislabelled"])
    hooks.close()
    report(selector, loader, publisher, mislabelled)
    assert "torch" not in sys.modules
    print("gradients by", "hand" if jax is None else "JAX", "- torch was never imported")


if __name__ == "__main__":
    main()
