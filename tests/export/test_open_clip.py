"""Models of open_clip against open_clip itself, which resizes by its own functions."""

import json

import pytest
import torch
from selector_tools.export.torchvision import make_importable
from support.exports import assert_close, export, inputs, kept_patches, randomise, served

make_importable()
import open_clip  # noqa: E402
import timm.layers  # noqa: E402

TIMM = {"timm_pool": "avg", "timm_proj": "linear"}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VISION = {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
MODELS = {
    "tiny-vit": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT},
    "tiny-quick": {"embed_dim": 24, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT},
    "tiny-timm": {
        "embed_dim": 24,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"},
        "text_cfg": TEXT | {"vocab_size": 100, "hf_tokenizer_name": "nobody/tiny-SigLIP"},
    },
    "tiny-resnet": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "patch_size": None},
        "text_cfg": TEXT,
    },
    "tiny-convnext": {
        "embed_dim": 24,
        "vision_cfg": TIMM | {"image_size": 160, "timm_model_name": "test_convnext"},
        "text_cfg": TEXT,
    },
    "tiny-coatnet": {  # its attention has a table of the distances between cells
        "embed_dim": 24,
        "vision_cfg": TIMM | {"image_size": 160, "timm_model_name": "test_coatnet"},
        "text_cfg": TEXT,
    },
}


@pytest.fixture(scope="module", autouse=True)
def tiny_models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    for name, config in MODELS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def model(name, seed=1, **more):
    return randomise(open_clip.create_model(name, **more), seed)


@torch.no_grad()
def encoded(module, images, tokens):
    return module.encode_image(images), module.encode_text(torch.from_numpy(tokens))


def resized_by_open_clip(full, low):
    state = dict(full.state_dict())
    open_clip.model.resize_pos_embed(state, low)
    patch = low.visual.conv1.kernel_size
    state["visual.conv1.weight"] = timm.layers.resample_patch_embed(state["visual.conv1.weight"], patch)
    low.load_state_dict(state)
    return low.eval()


def test_a_smaller_image_and_weights_bound_later(tmp_path, capsys):
    assert export("--open-clip", "tiny-vit", "--image-size", 32, "--licence", "MIT", "--out", tmp_path / "B") == 0
    said = capsys.readouterr()
    for line in (
        "model: tiny-vit, learner, width 24, fp32, softmax loss",
        "image: 32 x 32 x 3, crop, bicubic, mean 0.481455,0.457827,0.408211",
        "text: 12 tokens of 49408, pad token 0, end token 49407, with tokenizer",
        "resize: visual.positional_embedding (positions), 4 x 4 to 2 x 2, bicubic, antialiased",
        "max absolute difference to torch ",
    ):
        assert line in said.out
    assert "random weights (seed 0)" in said.err
    assert "No pretrained" not in said.err
    full = model("tiny-vit")
    low = resized_by_open_clip(full, open_clip.create_model("tiny-vit", force_image_size=32))
    pixels, tokens, images = inputs(tmp_path / "B")
    found = served(tmp_path / "B", full.state_dict(), pixels, tokens)
    assert_close(found, encoded(low, images, tokens))


def test_another_patch_size(tmp_path):
    assert export("--open-clip", "tiny-vit", "--patch-size", 32, "--out", tmp_path / "B") == 0
    full = model("tiny-vit")
    low = open_clip.create_model("tiny-vit", vision_cfg=VISION | {"patch_size": 32})
    low = resized_by_open_clip(full, low)
    pixels, tokens, images = inputs(tmp_path / "B")
    found = served(tmp_path / "B", full.state_dict(), pixels, tokens)
    assert_close(found, encoded(low, images, tokens))


def test_a_timm_tower_at_another_image_and_patch_size(tmp_path, capsys):
    sizes = ("--image-size", 128, "--patch-size", 32)
    assert export("--open-clip", "tiny-timm", *sizes, "--out", tmp_path / "B") == 0
    said = capsys.readouterr().out
    assert "sigmoid loss" in said
    assert "pad token 1, end token 1, without tokenizer" in said
    assert "note: the bundle has no tokenizer" in said
    full = model("tiny-timm")
    state = {name: value.clone() for name, value in full.state_dict().items()}
    full.visual.trunk.set_input_size(img_size=(128, 128), patch_size=(32, 32))
    pixels, tokens, images = inputs(tmp_path / "B")
    assert_close(served(tmp_path / "B", state, pixels, tokens), encoded(full, images, tokens))


class Keep(torch.nn.Module):
    """Drops the same tokens as the bundle, after the prefix of one."""

    def __init__(self, kept):
        super().__init__()
        self.kept = torch.tensor([0, *(index + 1 for index in kept)])

    def forward(self, tokens):
        return tokens[:, self.kept]


def test_keep_patches(tmp_path, capsys):
    assert export("--open-clip", "tiny-vit", "--keep-patches", 0.5, "--out", tmp_path / "B") == 0
    assert "patches kept: 0.5" in capsys.readouterr().out
    full = model("tiny-vit")
    full.visual.patch_dropout = Keep(kept_patches(4, 4, 0.5))
    pixels, tokens, images = inputs(tmp_path / "B")
    assert_close(served(tmp_path / "B", full.state_dict(), pixels, tokens), encoded(full, images, tokens))


def test_a_reference_in_half_precision_from_a_checkpoint(tmp_path):
    full = model("tiny-vit")
    torch.save({"epoch": 3, "state_dict": full.state_dict()}, tmp_path / "c.pt")
    flags = ("--role", "reference", "--precision", "fp16", "--checkpoint", tmp_path / "c.pt")
    assert export("--open-clip", "tiny-vit", *flags, "--image-size", 32, "--out", tmp_path / "B") == 0
    low = resized_by_open_clip(full, open_clip.create_model("tiny-vit", force_image_size=32))
    pixels, tokens, images = inputs(tmp_path / "B", role="reference")
    found = served(tmp_path / "B", None, pixels, tokens, role="reference")
    assert_close(found, encoded(low, images, tokens), limit=2e-2)


def test_a_tower_that_only_convolves_takes_a_smaller_image_as_it_is(tmp_path, capsys):
    assert export("--open-clip", "tiny-convnext", "--image-size", 112, "--out", tmp_path / "B") == 0
    said = capsys.readouterr()
    assert "image: 112 x 112 x 3" in said.out
    assert "resize: " not in said.out
    assert "max absolute difference to torch " in said.out
    assert "note: 112 px are no multiple of its last grid's cell, 32 px, so edges count less" in said.err
    full = model("tiny-convnext")
    pixels, tokens, images = inputs(tmp_path / "B")
    assert_close(served(tmp_path / "B", full.state_dict(), pixels, tokens), encoded(full, images, tokens))


def test_a_resnet_whose_pooling_has_positions(tmp_path, capsys):
    assert export("--open-clip", "tiny-resnet", "--image-size", 32, "--out", tmp_path / "B") == 0
    resize = "resize: visual.attnpool.positional_embedding (positions), 2 x 2 to 1 x 1, bicubic, antialiased"
    said = capsys.readouterr()
    assert resize in said.out
    assert "note: " not in said.err
    full, low = model("tiny-resnet"), open_clip.create_model("tiny-resnet", force_image_size=32).eval()
    state = dict(full.state_dict())
    table = state["visual.attnpool.positional_embedding"]
    grid = table[1:].T.reshape(1, -1, 2, 2)
    grid = torch.nn.functional.interpolate(grid, (1, 1), mode="bicubic", antialias=True)
    state["visual.attnpool.positional_embedding"] = torch.cat([table[:1], grid.flatten(2)[0].T])
    low.load_state_dict(state)
    pixels, tokens, images = inputs(tmp_path / "B")
    assert_close(served(tmp_path / "B", full.state_dict(), pixels, tokens), encoded(low, images, tokens))


@pytest.mark.parametrize(
    ("name", "flags", "said"),
    [
        ("tiny-resnet", ("--patch-size", 8), "--patch-size is 8; tiny-resnet has no patches; leave it out"),
        ("tiny-resnet", ("--keep-patches", 0.5), "keep patches is 0.5; the image tower has no patches"),
        (
            "tiny-resnet",
            ("--image-size", 63),
            "image tower of tiny-resnet at image 63 is broken; it raises RuntimeError",
        ),
        ("tiny-resnet", ("--image-size", 63), "; its last grid has cells of 32 px: 32 or 64"),
        ("tiny-resnet", ("--image-size", 20), "--image-size is 20; must be at least 32, one cell"),
        ("tiny-coatnet", ("--image-size", 80), "relative_position_bias_table is [81, 2]; no linear map leads from"),
        ("tiny-vit", ("--image-size", 40), "image size is 40; must be a multiple of the patch size, 16: 32 or 48"),
        ("tiny-vit", ("--image-size", 8), "image size is 8; must be a multiple of the patch size, 16: 16"),
    ],
)
def test_sizes_that_cannot_be_are_refused_with_why(name, flags, said, tmp_path, capsys):
    assert export("--open-clip", name, *flags, "--out", tmp_path / "B") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("selector export: ")
    assert said in last


def test_an_unknown_architecture_lists_close_names(tmp_path, capsys):
    assert export("--open-clip", "ViT-B16", "--out", tmp_path / "B") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "selector export: --open-clip is ViT-B16; is no architecture of open_clip; close names are ViT-B-16" in error


def test_published_weights_that_see_other_pixels_are_pointed_out(tmp_path):
    from selector_tools.export.open_clip import architecture

    [note] = architecture("ViT-B-16-SigLIP", tmp_path).notes
    assert "weights 'webli' need mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5), resize_mode squash" in note
    assert architecture("ViT-B-16", tmp_path).notes == ()


@pytest.mark.parametrize(
    ("model", "forced", "flags", "said"),
    [
        ("tiny-vit", True, (), "was trained with QuickGELU, says "),
        ("tiny-quick", False, (), "was trained with QuickGELU, says "),
        ("tiny-vit", False, ("--force-quick-gelu",), "was trained with GELU, says "),
        ("tiny-vit", True, ("--force-quick-gelu",), "must be a torch file"),
        ("unknown", True, (), "must be a torch file"),
    ],
)
def test_a_training_run_whose_parameters_name_another_activation(model, forced, flags, said, tmp_path, capsys):
    """As open_clip_train leaves them, beside the folder of its checkpoints."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "epoch_1.pt").write_bytes(b"no")
    (tmp_path / "params.txt").write_text(f"epochs: 1\nforce_quick_gelu: {forced}\nmodel: {model}\n")
    flags += ("--checkpoint", tmp_path / "checkpoints" / "epoch_1.pt", "--out", tmp_path / "B")
    assert export("--open-clip", "tiny-vit", *flags) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
