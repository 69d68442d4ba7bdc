"""Bundles that tests export by the command, and what they answer with weights that are bound later."""

from pathlib import Path

import numpy as np
import torch
from selector_tools.cli import main
from selector_tools.export.bundle_writer import tensor_views

from selector_server.encoding.bundle import load
from selector_server.encoding.device import Device
from selector_server.encoding.model import Model

COUNT = 5


def export(*arguments) -> int:
    """The command's exit code."""
    try:
        return main(["export", *map(str, arguments)])
    except SystemExit as stopped:
        return stopped.code


def served(path: Path, state, pixels, tokens, role="learner"):
    """The sidecar's raw embeddings, image and text, with the trainer's `state` bound after the export."""
    model = Model(load(path, role), Device("cpu"), micro_batch=3)
    floats = {name: value for name, value in (state or {}).items() if value.is_floating_point()}
    weights = model.bind(tensor_views(floats)) if role == "learner" else model.constant_weights()
    return model.raw(pixels, tokens, weights)


def inputs(path: Path, seed=0, role="learner"):
    """Random pixels and tokens of a bundle's sizes, and the images that its model takes."""
    manifest = load(path, role).manifest
    image, text = manifest.image, manifest.text
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (COUNT, image.height, image.width, image.channels), dtype=np.uint8)
    tokens = rng.integers(0, text.vocabulary, (COUNT, text.max_tokens))
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (image.mean, image.std))
    return pixels, tokens, (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std


def randomise(module, seed=1):
    """Other weights for `module`, no two tensors alike; logit scale and bias, single numbers, stay."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            if value.numel() > 1:
                start = 1.0 if value.mean() > 0.5 else 0.0  # norms stay norms
                value.copy_(start + 0.1 * torch.randn(value.shape, generator=generator))
        for name, value in module.named_buffers():
            if "running" in name:
                value.copy_(0.02 + 0.2 * torch.rand(value.shape, generator=generator))
    return module.eval()


def assert_close(found, wanted, limit=1e-4):
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert float(ours.std(dim=0).max()) > 1e-3, "embeddings of different samples are alike"
        assert float((ours - theirs).abs().max()) < limit * max(1.0, float(theirs.abs().max()))


def kept_patches(high: int, wide: int, share: float) -> list[int]:
    """The patches that --keep-patches keeps: a lattice of the plastic number's powers."""
    plastic = 1.32471795724474602596
    cells = [(row, column) for row in range(high) for column in range(wide)]
    order = sorted(cells, key=lambda cell: (cell[0] / plastic + cell[1] / plastic**2) % 1.0)
    return sorted(row * wide + column for row, column in order[: round(share * len(cells))])
