"""Makes what `selector serve` needs for one example: the learner's bundle, and that of a reference which this program
trains on correctly labelled pairs.

python examples/make_bundles.py two-tower --out bundles
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pairs import MAX_TOKENS, SIDE, VOCABULARY, pairs, smaller
from safetensors.torch import save_file
from selector_tools.cli import main as selector
from selector_tools.export.torchvision import make_importable
from torch import Tensor
from towers import LinearTowers, TwoTower, low_resolution, pixels, sigmoid_loss

REFERENCE_STEPS = 150


def train_reference(
    model: torch.nn.Module, loss: Callable[[dict[str, Any]], Tensor], file: Path, rate: float = 3e-3
) -> None:
    """Trains for some steps on clean pairs, and writes the weights into `file`."""
    rng, optimizer = np.random.default_rng(7), torch.optim.Adam(model.parameters(), rate)
    for _ in range(REFERENCE_STEPS):
        optimizer.zero_grad()
        loss(pairs(64, rng, mislabelled=0.0)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, file)


def own_module(build: Callable[[], TwoTower | LinearTowers], work: Path) -> list[list[str]]:
    """Returns the flags of `selector export` for learner and reference. `build` makes both, at the size they see."""
    model = build()

    def loss(batch: dict[str, Any]) -> Tensor:
        image = model.encode_image(pixels(smaller(batch["images"], SIDE // model.image_size)))
        return sigmoid_loss(image, model.encode_text(torch.from_numpy(batch["texts"])), model)

    train_reference(model, loss, work / "reference.safetensors")
    sizes = ["--max-tokens", str(MAX_TOKENS), "--vocabulary", str(VOCABULARY)]
    return [["--module", f"towers:{build.__name__}", *sizes]] * 2


def open_clip_model(work: Path) -> list[list[str]]:
    """Returns such flags for open_clip. The learner trains at 32 pixels and is exported for 16, the reference trains at
    16."""
    make_importable()
    import open_clip  # noqa: PLC0415 - takes seconds
    from open_clip_training import contrastive_loss  # noqa: PLC0415

    open_clip.add_model_config(Path(__file__).parent / "configs")
    model, tokenize = open_clip.create_model("tiny-clip-16"), open_clip.get_tokenizer("tiny-clip-16")
    mean, std = model.visual.image_mean, model.visual.image_std

    def loss(batch: dict[str, Any]) -> Tensor:
        embedded = model(pixels(smaller(batch["images"]), mean, std), tokenize(batch["captions"]))
        out: Tensor = contrastive_loss(model)(*embedded)  # of images, texts, scale and bias
        return out

    train_reference(model, loss, work / "reference.safetensors", rate=1e-3)
    return [["--open-clip", "tiny-clip-32", "--image-size", "16"], ["--open-clip", "tiny-clip-16"]]


def huggingface_model(work: Path) -> list[list[str]]:
    """Returns such flags for a tiny CLIP of transformers, from a folder with its configuration."""
    from huggingface_trainer import tiny_clip  # noqa: PLC0415 - imports transformers

    model = tiny_clip()
    model.config.save_pretrained(work / "model")

    def loss(batch: dict[str, Any]) -> Tensor:
        images, texts = pixels(batch["images"]), torch.from_numpy(batch["texts"])
        out: Tensor = model(input_ids=texts, pixel_values=images, return_loss=True).loss
        return out

    train_reference(model, loss, work / "reference.safetensors")
    return [["--transformers", str(work / "model"), "--mean", "0.5", "--std", "0.5"]] * 2


MODELS: dict[str, Callable[[Path], list[list[str]]]] = {
    "two-tower": lambda work: own_module(TwoTower, work),
    "two-tower-low": lambda work: own_module(low_resolution, work),
    "linear": lambda work: own_module(LinearTowers, work),
    "open-clip": open_clip_model,
    "huggingface": huggingface_model,
}


def main() -> int:
    """Writes OUT/learner and OUT/reference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--out", type=Path, default=Path("bundles"))
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        learner, reference = MODELS[flags.model](work)
        checkpoint = ["--role", "reference", "--checkpoint", str(work / "reference.safetensors")]
        return selector(["export", *learner, "--out", str(flags.out / "learner")]) or selector(
            ["export", *reference, *checkpoint, "--out", str(flags.out / "reference")]
        )


if __name__ == "__main__":
    raise SystemExit(main())
