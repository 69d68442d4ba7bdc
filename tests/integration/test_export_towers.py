"""`selector export` of larger models, and of what open_clip's own training leaves."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from selector_client import Selector
from selector_tools.export.torchvision import make_importable
from support.exports import assert_close, export, inputs, randomise, served

make_importable()
import open_clip  # noqa: E402

TIMM = {"timm_pool": "avg", "timm_proj": "linear"}
TEXT = {"context_length": 12, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}
VISION = {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
MODELS = {
    "small-fastvit": {  # MobileCLIP's kind
        "embed_dim": 24,
        "vision_cfg": TIMM | {"image_size": 256, "timm_model_name": "fastvit_t8"},
        "text_cfg": TEXT,
    },
    "small-hybrid": {  # ViTamin's kind: convolutions before a transformer
        "embed_dim": 24,
        "vision_cfg": TIMM | {"image_size": 224, "timm_model_name": "vit_tiny_r_s16_p8_224", "timm_pool": "token"},
        "text_cfg": TEXT,
    },
    "small-coca": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": VISION | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": TEXT | {"attn_pooler_heads": 2},
    },
    "small-trained": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT | {"vocab_size": 49408}},
}


@pytest.fixture(scope="module", autouse=True)
def configs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    for name, config in MODELS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return folder


def model(name, **more):
    return randomise(open_clip.create_model(name, **more), 1)


@torch.no_grad()
def encoded(module, images, tokens):
    return module.encode_image(images), module.encode_text(torch.from_numpy(tokens))


def test_a_tower_of_mobileclips_kind_takes_a_smaller_image_as_it_is(tmp_path, capsys):
    assert export("--open-clip", "small-fastvit", "--image-size", 64, "--out", tmp_path / "B") == 0
    assert "resize: " not in capsys.readouterr().out
    full = model("small-fastvit")
    pixels, tokens, images = inputs(tmp_path / "B")
    assert_close(served(tmp_path / "B", full.state_dict(), pixels, tokens), encoded(full, images, tokens))


def test_convolutions_before_a_transformer(tmp_path, capsys):
    assert export("--open-clip", "small-hybrid", "--image-size", 96, "--out", tmp_path / "B") == 0
    assert "resize: visual.trunk.pos_embed (positions), 7 x 7 to 3 x 3" in capsys.readouterr().out
    full = model("small-hybrid")
    state = {name: value.clone() for name, value in full.state_dict().items()}
    full.visual.trunk.set_input_size(img_size=(96, 96))
    pixels, tokens, images = inputs(tmp_path / "B")
    assert_close(served(tmp_path / "B", state, pixels, tokens), encoded(full, images, tokens))


def test_coca_at_a_smaller_image(tmp_path):
    assert export("--open-clip", "small-coca", "--image-size", 32, "--out", tmp_path / "B") == 0
    full, low = model("small-coca"), open_clip.create_model("small-coca", force_image_size=32)
    state = dict(full.state_dict())
    open_clip.model.resize_pos_embed(state, low)
    low.load_state_dict(state)
    pixels, tokens, images = inputs(tmp_path / "B")
    assert_close(served(tmp_path / "B", full.state_dict(), pixels, tokens), encoded(low.eval(), images, tokens))


def test_a_checkpoint_of_open_clips_own_training(configs, tmp_path, capsys):
    """Trained by open_clip_train, and served; also with the numpy numbers that its schedule left until it used math."""
    code = (
        "import sys; from pathlib import Path;"
        "from selector_tools.export.torchvision import make_importable; make_importable();"
        "import open_clip; open_clip.add_model_config(Path(sys.argv[1]));"
        "from open_clip_train.main import main; main(sys.argv[2:])"
    )
    flags = "--dataset-type synthetic --train-num-samples 8 --batch-size 4 --epochs 1 --workers 0 --warmup 1 --name run"
    more = ["--model", "small-trained", "--device", "cpu", "--force-quick-gelu", "--logs", str(tmp_path)]
    subprocess.run([sys.executable, "-c", code, str(configs), *flags.split(), *more], check=True, capture_output=True)
    file = tmp_path / "run" / "checkpoints" / "epoch_1.pt"
    content = torch.load(file, weights_only=True)
    for group in content["optimizer"]["param_groups"]:
        group["lr"] = np.float64(group["lr"])
    torch.save(content, older := file.with_name("epoch_0.pt"))
    trained = open_clip.create_model("small-trained", pretrained=None, force_quick_gelu=True).eval()
    trained.load_state_dict(content["state_dict"])
    for checkpoint in (file, older):
        out = tmp_path / checkpoint.stem
        flags = ("--checkpoint", checkpoint, "--role", "reference", "--out", out)
        assert export("--open-clip", "small-trained", *flags) == 2
        assert "was trained with QuickGELU" in capsys.readouterr().err
        assert export("--open-clip", "small-trained", "--force-quick-gelu", *flags) == 0
        pixels, tokens, images = inputs(out, role="reference")
        found = served(out, None, pixels, tokens, role="reference")
        assert_close(found, encoded(trained, images, tokens))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["convnext_base", "MobileCLIP-S1", "RN50"])
def test_models_without_patches_are_served_at_112_pixels(name, tmp_path, sidecar, capsys):
    assert export("--open-clip", name, "--image-size", 112, "--out", tmp_path / "B") == 0
    said = capsys.readouterr().out
    assert "max absolute difference to torch " in said
    rng = np.random.default_rng(0)
    pixels, texts = rng.integers(0, 256, (8, 112, 112, 3), dtype=np.uint8), [f"a photo of {i}" for i in range(8)]
    server = sidecar({"learner": tmp_path / "B"})
    settings = {"policy": "independent", "criterion": "hard-learner", "on_error": "raise"}
    with Selector(server.address, sub_batch_size=2, timeout=300, **settings) as selector:
        selection = selector.select(pixels, texts)
    assert len(selection.indices) == 2
    assert np.isfinite(selection.scores).all()
