"""Weights of a model with another activation fit without any error. A sidecar must not serve them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from selector_client import Canary, WeightPublisher
from selector_proto.activations import activations
from selector_proto.safetensors import TensorView
from selector_proto.weights.layout import ACTIVATIONS
from selector_tools.export.bundle_writer import tensor_views
from selector_tools.export.torchvision import make_importable
from support.exports import export
from support.processes import eventually
from torch import nn

from selector_server.encoding.bundle import load
from selector_server.encoding.device import Device
from selector_server.encoding.model import Model
from selector_server.errors import NotPossible

make_importable()
import open_clip  # noqa: E402

SIDE = 16
TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": SIDE, "layers": 4, "width": 64, "head_width": 32, "patch_size": 4},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 64, "heads": 2, "layers": 4},
}
FORCED = {"gelu": (), "quick_gelu": ("--force-quick-gelu",)}


# The fixture trains two models: half a minute on a free core, minutes on one that is shared.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", autouse=True)
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    (folder / "tiny-act.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    for name, flags in FORCED.items():
        assert export("--open-clip", "tiny-act", *flags, "--out", folder / name) == 0
    return folder


def pairs(count, generator):
    """Squares of a colour at a place, in uint8, and three words that say so."""
    colour, row, column = (torch.randint(0, n, (count,), generator=generator) for n in (8, 4, 4))
    palette = torch.tensor([[r, g, b] for r in (0, 1) for g in (0, 1) for b in (0, 1)]) * 255
    pixels = torch.randint(90, 140, (count, SIDE, SIDE, 3), generator=generator)
    for index in range(count):
        top, left = 4 * row[index], 4 * column[index]
        pixels[index, top : top + 4, left : left + 4] = palette[colour[index]]
    words = torch.stack([colour + 1, row + 20, column + 30, torch.full_like(colour, 63)], dim=1)
    return pixels.to(torch.uint8), nn.functional.pad(words, (0, 4))


def images(pixels):
    mean, std = torch.tensor(open_clip.OPENAI_DATASET_MEAN), torch.tensor(open_clip.OPENAI_DATASET_STD)
    return ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)


def encoded(model, pixels, words):
    return model.encode_image(images(pixels)), model.encode_text(words)


def trained(quick_gelu):
    """A model that has learned to tell such pairs apart. It starts where long training leads, and where GELU and
    QuickGELU differ: most of what its activations are given is negative, and what they give weighs."""
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-act", force_quick_gelu=quick_gelu)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("c_fc.bias"):
                value.fill_(-1.5)
            if name.endswith("c_proj.weight"):
                value.mul_(20)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.0)
    generator, target, losses = torch.Generator().manual_seed(1), torch.arange(32), []
    for _ in range(40):
        found = [nn.functional.normalize(z) for z in encoded(model, *pairs(32, generator))]
        logits = model.logit_scale.exp() * found[0] @ found[1].T
        losses.append((nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0], "these are not random weights"
    return model.eval()


@pytest.fixture(scope="module")
def learned():
    return {"gelu": trained(False), "quick_gelu": trained(True)}


@torch.no_grad()
def canary(model, autocast=False):
    pixels, words = pairs(16, torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        image, text = encoded(model, pixels, words)
    return Canary(pixels.numpy(), words.numpy(), image.float().numpy(), text.float().numpy())


def views(model, canary):
    """What reaches a sidecar: large tensors rounded to bfloat16, and the canary."""
    state = {name: value.bfloat16() if value.numel() >= 1024 else value for name, value in model.state_dict().items()}
    return tensor_views(state) | {name: view(torch.from_numpy(value)) for name, value in canary.tensors().items()}


def view(value):
    kind = {torch.uint8: "U8", torch.int64: "I64", torch.float32: "F32"}[value.dtype]
    return TensorView(kind, tuple(value.shape), value.contiguous().reshape(-1).view(torch.uint8).numpy().data)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", FORCED)
def test_the_canary_of_the_same_activation_passes_whatever_was_rounded(name, autocast, bundles, learned):
    model = Model(load(bundles / name, "learner"), Device("cpu"), 16)
    model.bind(views(learned[name], canary(learned[name], autocast)))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("name", "other"), [("gelu", "quick_gelu"), ("quick_gelu", "gelu")])
def test_the_canary_of_the_other_activation_is_refused(name, other, autocast, bundles, learned):
    """By the numbers alone: the trainer published a mapping, which does not tell what its model is made of."""
    model = Model(load(bundles / name, "learner"), Device("cpu"), 16)
    with pytest.raises(NotPossible, match=r"canary: cosine to the trainer's (image|text) embedding is 0\.99"):
        model.bind(views(learned[other], canary(learned[other], autocast)))


def test_a_model_of_the_other_activation_is_refused_without_a_canary(bundles, learned, sidecar, redis_url, run_name):
    server = sidecar({"learner": bundles / "gelu", "redis": redis_url, "run": run_name})
    with WeightPublisher(redis_url, run_name) as publisher:
        publisher.publish(1, learned["gelu"])
        eventually(lambda: server.status().serving.trainer_step == 1)
        publisher.publish(2, learned["quick_gelu"])
        limit = "the bundle computes with gelu; export it with the trainer's activation"
        said = f"activation of the trainer's model is quick_gelu; {limit}"
        eventually(lambda: said in server.status().last_error, message=lambda: server.status())
        assert server.status().serving.trainer_step == 1


def test_the_manifest_tells_the_activation_and_older_bundles_do_not(bundles, learned, tmp_path):
    for name in FORCED:
        assert load(bundles / name, "learner").manifest.activations == (name,)
    older = tmp_path / "older"
    older.mkdir()
    for file in (bundles / "gelu").iterdir():
        (older / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((older / "manifest.json").read_text())
    del manifest["activations"]
    (older / "manifest.json").write_text(json.dumps(manifest))
    assert load(older, "learner").fingerprint == load(bundles / "gelu", "learner").fingerprint
    model = Model(load(older, "learner"), Device("cpu"), 16)
    told = {ACTIVATIONS: view(torch.tensor(list(b"quick_gelu"), dtype=torch.uint8))}
    model.bind(tensor_views(learned["quick_gelu"].state_dict()) | told)


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.other = nn.GELU(), nn.GELU(approximate="tanh"), nn.ReLU()


def test_activations_of_models():
    assert activations(Mixed()) == ("gelu",)
    assert activations(nn.Linear(1, 1)) == ()
    assert activations({"a": 1}) == ()
    assert activations(nn.DataParallel(open_clip.create_model("tiny-act", force_quick_gelu=True))) == ("quick_gelu",)


def test_a_canary_tolerates_rounding_and_not_much_more(bundles, learned):
    """Seven parts in a hundred are what GELU makes of a large model that was trained with QuickGELU."""
    model, exact = Model(load(bundles / "gelu", "learner"), Device("cpu"), 16), canary(learned["gelu"])
    model.bind(views(learned["gelu"], moved(exact, 0.03)))
    with pytest.raises(NotPossible, match=r"is 0\.99\d\d; at least 0\.999: these are not the weights"):
        model.bind(views(learned["gelu"], moved(exact, 0.07)))


def moved(canary, share):
    generator = np.random.default_rng(0)

    def away(values):
        noise = generator.normal(size=values.shape)
        sizes = [np.linalg.norm(array, axis=1, keepdims=True) for array in (values, noise)]
        return (values + share * noise * sizes[0] / sizes[1]).astype(np.float32)

    return replace(canary, image=away(canary.image), text=away(canary.text))
