"""An own module: what is odd in it must not make the bundle wrong."""

import sys

import pytest
import torch
from selector_proto import safetensors
from selector_tools.export.torchvision import make_importable
from support.exports import assert_close, export, inputs, kept_patches, randomise, served

CODE = """
import torch
from torch import nn


class Own(nn.Module):
    def __init__(self, image_size, patch_size, width=24):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch_size, patch_size)
        self.positions = nn.Parameter(torch.randn(1, (image_size // patch_size) ** 2, width) * 0.1)
        self.tokens = nn.Identity()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.layer = nn.Linear(width, width)
        self.again = self.layer
        self.words = nn.Embedding(50, width)
        self.out = nn.Linear(width, 50, bias=False)
        self.out.weight = self.words.weight
        self.unused = nn.Linear(5, 5)
        self.register_buffer("ramp", torch.linspace(0.5, 1.5, width), persistent=False)
        self.register_buffer("shift", torch.full((width,), 0.1))
        self.register_buffer("steps", torch.tensor(3))
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.offset = nn.Parameter(torch.tensor([-10.0]))

    def encode_image(self, images):
        tokens = self.tokens(self.patches(images).flatten(2).transpose(1, 2) + self.positions)
        tokens = self.norms[0](tokens) + self.norms[1](self.layer(tokens)) + self.shift
        return self.again(tokens.mean(dim=1)) * self.ramp

    def encode_text(self, tokens):
        words = self.norms[2](self.words(tokens))
        return self.norms[3]((self.out(words).softmax(dim=-1) @ self.out.weight + words).mean(dim=1))


def small(image_size=16, patch_size=4):
    return Own(image_size, patch_size)


def needy(image_size, patch_size):
    return Own(image_size, patch_size)


def compiled():
    return torch.compile(Own(16, 4))


def broken():
    raise KeyError("weights")


def silent():
    return Own(16, 4)


def number():
    return 3


def untraceable(image_size=16, patch_size=4):
    module = Own(image_size, patch_size)
    encode = module.encode_image
    module.encode_image = lambda images: encode(images) if images.sum() > 0 else encode(-images)
    return module


def uneven(image_size=16, patch_size=4):
    module = Own(image_size, patch_size)
    module.encode_image = lambda images: images.mean(dim=(2, 3))
    return module


def crashing(image_size=16, patch_size=4):
    module = Own(image_size, patch_size)
    module.encode_text = lambda tokens: tokens @ images
    return module
"""
TEXT = ("--max-tokens", 6, "--vocabulary", 50, "--pad-token", 0)
LOGIT = ("--logit-scale", "scale", "--no-logit-scale-is-log", "--logit-bias", "offset")


@pytest.fixture(scope="module", autouse=True)
def code(tmp_path_factory):
    """The trainer's code, in the folder that the command runs in."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_models.py").write_text(CODE)
    sys.modules.pop("own_models", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        yield folder
    sys.modules.pop("own_models", None)


def small(seed=1, **sizes):
    import own_models

    return randomise(own_models.small(**sizes), seed)


@torch.no_grad()
def encoded(module, images, tokens):
    return module.encode_image(images), module.encode_text(torch.from_numpy(tokens))


def test_tied_unused_and_unsaved_tensors_and_weights_bound_later(tmp_path, capsys):
    """Freshly initialised norms are all ones: equal tensors must stay apart."""
    fresh = tmp_path / "fresh"
    assert export("--module", "own_models:small", *TEXT, *LOGIT, "--out", fresh, "--seed", 3) == 0
    trained = small(seed=5)
    state = {f"module.{name}": value for name, value in trained.state_dict().items()}
    torch.save({"model": state}, tmp_path / "c.pt")
    weights = ("--checkpoint", tmp_path / "c.pt")
    assert export("--module", "own_models:small", *TEXT, *LOGIT, *weights, "--out", tmp_path / "B") == 0
    assert "model: small, learner, width 24, fp32, sigmoid loss" in capsys.readouterr().out
    pixels, tokens, images = inputs(tmp_path / "B")
    bundled = safetensors.decode(memoryview((tmp_path / "B" / "weights.safetensors").read_bytes()))
    assert "unused.weight" not in bundled
    assert "shift" in bundled
    assert bytes(bundled["positions"].data) == trained.positions.detach().numpy().tobytes()
    for path, other in ((tmp_path / "B", small(seed=6)), (fresh, small(seed=7))):
        pixels, tokens, images = inputs(path)
        assert_close(served(path, other.state_dict(), pixels, tokens), encoded(other, images, tokens))


def test_a_checkpoint_of_a_larger_model_by_its_prefix(tmp_path, capsys):
    trained, averaged = small(seed=5), small(seed=6)
    parts = {"clip": trained.state_dict(), "ema": averaged.state_dict()}
    state = {f"{part}.{name}": value for part, own in parts.items() for name, value in own.items()}
    torch.save(state, tmp_path / "c.pt")
    weights = ("--checkpoint", tmp_path / "c.pt", "--strip-prefix", "clip")
    assert export("--module", "own_models:small", *TEXT, *LOGIT, *weights, "--out", tmp_path / "B") == 0
    assert f"taking what is called clip, and none of {len(parts['ema'])} other entries" in capsys.readouterr().err
    bundled = safetensors.decode(memoryview((tmp_path / "B" / "weights.safetensors").read_bytes()))
    assert bytes(bundled["positions"].data) == trained.positions.detach().numpy().tobytes()


def test_a_compiled_module_is_known_by_its_own_names(tmp_path):
    assert export("--module", "own_models:compiled", "--image-size", 16, *TEXT, *LOGIT, "--out", tmp_path / "B") == 0
    other = small(seed=6)
    pixels, tokens, images = inputs(tmp_path / "B")
    assert_close(served(tmp_path / "B", other.state_dict(), pixels, tokens), encoded(other, images, tokens))


def test_low_resolution(tmp_path, capsys):
    make_importable()
    import timm.layers

    sizes = ("--image-size", 16, "--patch-size", 8)
    how = ("--interpolation", "bilinear", "--no-antialias")
    assert export("--module", "own_models:small", *sizes, *how, *TEXT, *LOGIT, "--out", tmp_path / "B") == 0
    assert "resize: patches.weight (patch), 4 x 4 to 8 x 8, bilinear\n" in capsys.readouterr().out
    full, low = small(), small(patch_size=8)
    state = dict(full.state_dict())
    how = {"interpolation": "bilinear", "antialias": False}
    state["patches.weight"] = timm.layers.resample_patch_embed(state["patches.weight"], [8, 8], **how)
    grid = state["positions"].transpose(1, 2).unflatten(2, (4, 4))
    grid = torch.nn.functional.interpolate(grid, (2, 2), mode="bilinear")
    low.load_state_dict(state | {"positions": grid.flatten(2).transpose(1, 2)})
    pixels, tokens, images = inputs(tmp_path / "B")
    assert_close(served(tmp_path / "B", full.state_dict(), pixels, tokens), encoded(low, images, tokens))


def test_kept_patches_of_a_factory_that_must_be_told_its_sizes(tmp_path):
    sizes = ("--image-size", 16, "--patch-size", 4, "--keep-patches", 0.3, "--tokens-at", "tokens")
    assert export("--module", "own_models:needy", *sizes, *TEXT, *LOGIT, "--out", tmp_path / "B") == 0
    full = small()
    kept = torch.tensor(kept_patches(4, 4, 0.3))
    full.tokens.register_forward_hook(lambda _module, _inputs, tokens: tokens[:, kept])
    pixels, tokens, images = inputs(tmp_path / "B")
    assert_close(served(tmp_path / "B", full.state_dict(), pixels, tokens), encoded(full, images, tokens))


@pytest.mark.parametrize(
    ("module", "more", "said"),
    [
        ("own_models", (), "--module is own_models; must be package.module:factory"),
        ("no_such:thing", (), "--module is no_such:thing; cannot be imported: ModuleNotFoundError"),
        ("own_models:thing", (), "cannot be imported: AttributeError"),
        ("own_models:CODE", (), "cannot be imported: AttributeError"),
        ("os:sep", (), "is a str; must be callable"),
        ("own_models:broken", (), "it raises KeyError: 'weights'"),
        ("own_models:number", (), "returns a int; must return a torch module with encode_image and encode_text"),
        ("own_models:silent", (), "does not tell its image size"),
        ("own_models:small", ("--image-size", 18, "--patch-size", 4), "image size is 18; must be a multiple"),
        ("own_models:small", ("--logit-scale", "no"), "--logit-scale is no; must be an entry"),
        ("own_models:small", ("--logit-bias", "no"), "--logit-bias is no; must be an entry"),
        ("own_models:small", ("--tokens-at", "no"), "--tokens-at is no; must be a submodule"),
        ("own_models:small", ("--keep-patches", 0.5), "keep patches is 0.5; the image tower has no patches"),
        ("own_models:small", ("--pad-token", 50), "pad_token and end_token must be below the vocabulary, 50"),
        ("own_models:uneven", (), "embeddings of uneven is [1, 3] and [1, 24]; images and texts must"),
        (
            "own_models:crashing",
            (),
            "text tower of crashing is broken; it raises NameError: name 'images'",
        ),
        ("own_models:untraceable", (), "own_models:untraceable; cannot be traced by torch.export: "),
    ],
)
def test_what_is_wrong_with_a_module_is_one_line(module, more, said, tmp_path, capsys):
    assert export("--module", module, *TEXT, *LOGIT, *more, "--out", tmp_path / "B") == 2
    error = capsys.readouterr().err
    assert error.strip().splitlines()[-1].startswith("selector export: ")
    assert said in error.strip().splitlines()[-1]
    assert "Traceback" not in error
    assert not (tmp_path / "B").exists()
