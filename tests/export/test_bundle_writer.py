"""Bundles from torch models: every weight under its own name, whatever the model does with it."""

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from selector_tools.export.bundle_writer import export_learner, export_reference, tensor_views
from support.model import LOGIT, TOKENS, TwoTower, embed, samples, source
from torch import nn

from selector_server.encoding.bundle import ImageInput, Resize, TextInput, load
from selector_server.encoding.device import Device
from selector_server.encoding.model import Model
from selector_server.encoding.resizing import resized, source_shape
from selector_server.errors import BundleError

PIXELS, IDS = samples(12)
IDS = IDS.astype(np.int64)


class Awkward(TwoTower):
    """Has what exports stumble over: tied weights, equal tensors, an unused parameter, buffers of both kinds."""

    def __init__(self, seed):
        super().__init__(seed)
        self.first, self.second = nn.LayerNorm(16), nn.LayerNorm(16)  # equal when fresh
        self.tied = nn.Linear(16, 64, bias=False)
        self.tied.weight = self.words.weight
        self.unused = nn.Parameter(torch.zeros(3))
        self.register_buffer("mask", torch.linspace(0.5, 1.5, 16), persistent=False)
        self.register_buffer("shift", torch.linspace(-1, 1, 16))
        self.register_buffer("positions", torch.arange(TOKENS))

    def encode_image(self, images):
        return self.second(self.first(super().encode_image(images))) * self.mask + self.shift

    def encode_text(self, tokens):
        hidden = super().encode_text(tokens + 0 * self.positions)
        return self.tied(hidden) @ self.words.weight


def served(model, path):
    """The learner's bundle with these weights published to it."""
    served = Model(load(path, "learner"), Device("cpu"), 5)
    return served.encode(PIXELS, IDS, served.bind(tensor_views(_floats(model.state_dict()))))


def _floats(state):
    return {name: value for name, value in state.items() if value.is_floating_point()}


def scrambled(model, seed):
    """Weights that all differ: what was merged at export would now be wrong."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
        model.shift.copy_(torch.randn(16))
    return model


def test_published_weights_are_the_models_own(tmp_path):
    exported = export_learner(source("awkward", Awkward(0)), tmp_path / "awkward")
    assert exported.difference < 1e-4
    parameters = exported.bundle.manifest.parameters
    assert {"first.weight", "second.weight", "first.bias", "second.bias", "shift"} <= parameters.keys()
    assert not {"unused", "mask", "positions"} & parameters.keys()
    assert len({"words.weight", "tied.weight"} & parameters.keys()) == 1
    trained = scrambled(Awkward(1), 7).eval()
    ours, theirs = served(trained, tmp_path / "awkward"), embed(trained, PIXELS, IDS)
    np.testing.assert_allclose(ours.image, theirs.image, atol=1e-5)
    np.testing.assert_allclose(ours.text, theirs.text, atol=1e-5)


def test_the_trainers_model_is_left_as_it_was(tmp_path):
    model = Awkward(0).train()
    model.first.eval()
    model.half()
    export_reference(source("awkward", model), tmp_path / "awkward")
    assert model.training
    assert not model.first.training
    assert all(p.requires_grad and p.dtype is torch.float16 for p in model.parameters())


def test_wrapped_models_are_exported_under_their_own_names(tmp_path):
    model = TwoTower(0)
    wrapped = torch.compile(nn.parallel.DataParallel(model))
    parameters = export_learner(source("wrapped", wrapped), tmp_path / "wrapped").bundle.manifest.parameters
    assert "image.weight" in parameters


def test_half_precision(tmp_path):
    model = TwoTower(3).eval()
    exported = export_learner(source("half", model), tmp_path / "half", precision="fp16")
    assert 0 < exported.difference < 2e-2
    assert exported.bundle.manifest.precision == "fp16"
    other = TwoTower(4).eval()
    ours, theirs = served(other, tmp_path / "half"), embed(other, PIXELS, IDS)
    assert ours.image.dtype is torch.float32
    np.testing.assert_allclose(ours.image, theirs.image, atol=5e-3)
    reference = export_reference(source("half", model), tmp_path / "half-reference", precision="fp16")
    assert reference.difference < 2e-2


class OneBatch(TwoTower):
    """Turns the batch size into a number."""

    def encode_image(self, images):
        return super().encode_image(images.reshape(int(images.shape[0]), -1))


class Unlike(TwoTower):
    """Says something else whenever it is asked."""

    def encode_text(self, tokens):
        return super().encode_text(tokens) * torch.rand(())


@pytest.mark.parametrize(
    ("model", "message"),
    [(OneBatch(0), "the graph must take any batch size"), (Unlike(0), "text tower: difference to torch is")],
)
def test_a_bundle_that_would_be_wrong_is_not_written(tmp_path, model, message):
    with pytest.raises(BundleError, match=message):
        export_reference(source("wrong", model), tmp_path / "wrong")
    assert not list(tmp_path.iterdir())


def test_refusals(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(BundleError, match="exists already"):
        export_reference(source("tiny", TwoTower(0)), tmp_path / "there")
    logit = LOGIT.model_copy(update={"scale_parameter": "no_such"})
    with pytest.raises(BundleError, match=r"logit is \['no_such'\]; must be entries"):
        export_learner(source("tiny", TwoTower(0), logit=logit), tmp_path / "unnamed")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda: ImageInput(height=8, width=8, channels=3, mean=(0.1, 0.2)), "1 or 3 values, not 2"),
        (lambda: ImageInput(height=8, width=8, channels=1, std=(0.0,)), "std must be positive"),
        (lambda: ImageInput(height=8, width=8, channels=3, std=(float("nan"),)), "finite"),
        (lambda: TextInput(max_tokens=4, vocabulary=10, pad_token=10), "below the vocabulary, 10"),
        (lambda: TextInput(max_tokens=4, vocabulary=10, end_token=11), "below the vocabulary, 10"),
        (lambda: Resize(kind="patch", size=(5000, 1), to=(1, 1), interpolation="bilinear", antialias=True), "1024"),
    ],
)
def test_manifests_that_make_no_sense(part, message):
    with pytest.raises(ValidationError, match=message):
        part()


def test_the_fingerprint_covers_what_happens_before_the_graph(tmp_path):
    first = export_reference(source("a", TwoTower(0)), tmp_path / "a").bundle
    file = tmp_path / "a" / "manifest.json"
    manifest = json.loads(file.read_text())
    for change in ({"interpolation": "bilinear"}, {"fit": "crop"}):
        file.write_text(json.dumps(manifest | {"image": manifest["image"] | change}))
        assert load(tmp_path / "a", "reference").fingerprint != first.fingerprint
    file.write_text(json.dumps(manifest | {"logit_bias": -3.0, "licence": "MIT"}))
    assert load(tmp_path / "a", "reference").fingerprint == first.fingerprint, "embeddings do not depend on it"


# Resizes


def resize(kind, size, to, prefix=0):
    return Resize(kind=kind, size=size, to=to, prefix=prefix, interpolation="bicubic", antialias=False)


def test_kernels_and_tables_are_resized_as_torch_resizes_images():
    table = torch.randn(1, 2 + 9 * 9, 5)
    grid = table[:, 2:].reshape(1, 9, 9, 5).permute(0, 3, 1, 2)
    wanted = nn.functional.interpolate(grid, (4, 6), mode="bicubic").permute(0, 2, 3, 1).reshape(1, 24, 5)
    found = resized(resize("positions", (9, 9), (4, 6), 2), table)
    torch.testing.assert_close(found, torch.cat([table[:, :2], wanted], dim=1), rtol=0, atol=1e-6)
    kernel, image = torch.randn(7, 3, 8, 8), torch.randn(2, 3, 8, 8)
    larger = resized(resize("patch", (8, 8), (16, 16)), kernel)
    before = (kernel.flatten(1) @ image.flatten(1).T).T
    after = (larger.flatten(1) @ nn.functional.interpolate(image, (16, 16), mode="bicubic").flatten(1).T).T
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
    rows = kernel.permute(0, 2, 3, 1).flatten(1)  # a Linear over patches: pixels by row, channels innermost
    linear = resized(resize("patch-linear", (8, 8), (16, 16)), rows)
    torch.testing.assert_close(linear, larger.permute(0, 2, 3, 1).flatten(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("one", "shape"),
    [
        (resize("patch", (8, 8), (4, 4)), (7, 3, 8, 8)),
        (resize("patch", (8, 8), (4, 4)), (7, 48)),
        (resize("positions", (4, 4), (2, 2), 1), (4, 5)),
        (resize("patch-linear", (4, 4), (2, 2)), (7, 13)),
    ],
)
def test_graph_inputs_that_a_map_does_not_fit(one, shape):
    with pytest.raises(ValueError, match="cannot come from"):
        source_shape(one, shape)


def test_a_manifest_whose_map_does_not_fit_its_graph(tmp_path):
    export_learner(source("tiny", TwoTower(0)), tmp_path / "tiny")
    file = tmp_path / "tiny" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["parameters"]["image.weight"]["resize"] = resize("positions", (4, 4), (2, 2)).model_dump()
    file.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"parameters\.image\.weight is positions; a graph input of shape"):
        Model(load(tmp_path / "tiny", "learner"), Device("cpu"), 4)
