"""Models by name: open_clip's tags, hf-hub names and those of transformers, from a cache that the test fills. Nothing
here reaches a network."""

import json
import os
import shutil

import pytest
import safetensors.torch
import torch
from selector_tools.export.torchvision import make_importable
from support.exports import assert_close, export, inputs, randomise, served
from support.forked import ForkedCommand

make_importable()
import huggingface_hub  # noqa: E402
import open_clip  # noqa: E402
import transformers  # noqa: E402

from selector_server.encoding.bundle import load  # noqa: E402

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}
PREPROCESSING = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "resize_mode": "squash"}
TAGS = {
    "quick": {"hf_hub": "some/quick/", "quick_gelu": True, "mean": (0.1, 0.2, 0.3), "resize_mode": "squash"},
    "plain": {"hf_hub": "some/plain/"},
    "away": {"hf_hub": "some/away/weights.bin"},
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The hub's cache, as its library fills it."""
    return tmp_path_factory.mktemp("hub")


def put(cache, name):
    """Returns the folder for the files of a model, in its only revision."""
    model = cache / f"models--{name.replace('/', '--')}"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    (model / "snapshots" / COMMIT).mkdir(parents=True)
    return model / "snapshots" / COMMIT


@pytest.fixture(scope="module")
def full(tmp_path_factory, cache):
    """The models in the cache: one of open_clip under each of three names, one of transformers in both forms."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "tiny-hub.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder)
    models = {
        "plain": randomise(open_clip.create_model("tiny-hub"), 1),
        "quick": randomise(open_clip.create_model("tiny-hub", force_quick_gelu=True), 2),
    }
    for name in ("plain", "quick", "described"):
        place, state = put(cache, f"some/{name}"), models["plain" if name == "plain" else "quick"].state_dict()
        safetensors.torch.save_file(state, place / "open_clip_model.safetensors")
        if name == "described":
            config = {"model_cfg": CONFIG | {"quick_gelu": True}, "preprocess_cfg": PREPROCESSING}
            (place / "open_clip_config.json").write_text(json.dumps(config))
    (put(cache, "some/bare") / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = small | {"vocab_size": 64, "max_position_embeddings": 6, "eos_token_id": 63}
    vision = small | {"image_size": 16, "patch_size": 4}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    models["clip"] = randomise(transformers.CLIPModel(config), 3)
    models["clip"].save_pretrained(place := put(cache, "some/clip"))
    shutil.copy(place / "config.json", older := put(cache, "some/older-clip"))
    torch.save(models["clip"].state_dict(), older / "pytorch_model.bin")
    shutil.copy(place / "config.json", put(cache, "some/clip-without-weights"))
    return models


@pytest.fixture(autouse=True)
def offline(monkeypatch, cache, full):
    """As HF_HUB_OFFLINE=1 and HF_HUB_CACHE do it, which are read when the library is imported."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    for tag, settings in TAGS.items():
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED.setdefault("tiny-hub", {}), tag, settings)


@torch.no_grad()
def encoded(model, images, tokens):
    return model.encode_image(images), model.encode_text(torch.from_numpy(tokens))


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (("tiny-hub", "--pretrained", "plain"), "plain"),
        (("tiny-hub", "--pretrained", "quick", "--force-quick-gelu"), "quick"),
        (("hf-hub:some/described",), "quick"),
    ],
)
def test_weights_by_name_come_from_the_cache(flags, name, full, tmp_path, capsys):
    assert export("--open-clip", *flags, "--role", "reference", "--out", tmp_path / "B") == 0
    said = capsys.readouterr()
    assert "random" not in said.err
    assert "note: open_clip's weights" not in said.out
    assert f"activation: {'gelu' if name == 'plain' else 'quick_gelu'}\n" in said.out
    if name == "quick":
        assert "squash, " in said.out
        assert "mean 0.1,0.2,0.3" in said.out
    manifest = load(tmp_path / "B", "reference").manifest
    assert manifest.source.endswith("; its own weights" if "hf-hub" in flags[0] else f"; {name}")
    assert manifest.name == ("some/described" if "hf-hub" in flags[0] else "tiny-hub")
    pixels, tokens, images = inputs(tmp_path / "B", role="reference")
    found = served(tmp_path / "B", None, pixels, tokens, role="reference")
    assert_close(found, encoded(full[name], images, tokens))


def test_a_smaller_image_keeps_weights_and_preprocessing(full, tmp_path, capsys):
    flags = ("--image-size", 16, "--role", "reference", "--out", tmp_path / "B")
    assert export("--open-clip", "hf-hub:some/described", *flags) == 0
    assert "image: 16 x 16 x 3, squash, bilinear, mean 0.1,0.2,0.3" in capsys.readouterr().out
    low = open_clip.create_model("tiny-hub", force_quick_gelu=True, force_image_size=16).eval()
    state = dict(full["quick"].state_dict())
    open_clip.model.resize_pos_embed(state, low)
    low.load_state_dict(state)
    pixels, tokens, images = inputs(tmp_path / "B", role="reference")
    assert_close(served(tmp_path / "B", None, pixels, tokens, role="reference"), encoded(low, images, tokens))


@pytest.mark.parametrize("name", ["some/clip", "some/older-clip"])
def test_a_name_of_transformers_comes_from_the_cache(name, full, tmp_path, capsys):
    assert export("--transformers", name, "--role", "reference", "--out", tmp_path / "B") == 0
    said = capsys.readouterr()
    assert f"model: {name}, reference" in said.out
    assert "random" not in said.err
    pixels, tokens, images = inputs(tmp_path / "B", role="reference")
    found = served(tmp_path / "B", None, pixels, tokens, role="reference")
    with torch.no_grad():
        wanted = [
            full["clip"].get_image_features(pixel_values=images),
            full["clip"].get_text_features(input_ids=torch.from_numpy(tokens)),
        ]
    assert_close(found, [getattr(features, "pooler_output", features) for features in wanted])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ("--open-clip", "tiny-hub", "--pretrained", "opnai"),
            "is opnai; open_clip has for tiny-hub quick, plain, away",
        ),
        (("--open-clip", "tiny-hub", "--pretrained", "quick"), "is quick; was trained with QuickGELU; add --force-"),
        (("--open-clip", "tiny-hub", "--pretrained", "plain", "--force-quick-gelu"), "is plain; was trained with GELU"),
        (
            ("--open-clip", "tiny-hub", "--pretrained", "away"),
            "--pretrained is away; HF_HUB_OFFLINE is set, and its cache",
        ),
        (("--open-clip", "hf-hub:some/described", "--pretrained", "x"), "has its own weights; leave it out"),
        (("--open-clip", "hf-hub:some/no"), "--open-clip is hf-hub:some/no; HF_HUB_OFFLINE is set, and its cache, "),
        (
            ("--open-clip", "hf-hub:some/bare"),
            "--open-clip is hf-hub:some/bare; HF_HUB_OFFLINE is set, and its cache, ",
        ),
        (("--open-clip", "hf-hub:a/b/c"), "--open-clip is hf-hub:a/b/c; cannot be had: "),
        (("--open-clip", "local-dir:/no/folder"), "--open-clip is local-dir:/no/folder; cannot be read: "),
        (("--transformers", "some/no"), "--transformers is some/no; HF_HUB_OFFLINE is set, and its cache, "),
        (("--transformers", "/no/folder"), "--transformers is /no/folder; must be a path that exists, or a name such"),
        (("--transformers", "some/clip-without-weights"), "no weights of it are on the hub or in "),
    ],
)
def test_what_cannot_be_had_is_one_line(flags, said, tmp_path, capsys):
    assert export(*flags, "--out", tmp_path / "B") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("selector export: ")
    assert said in lines[0]


def test_a_checkpoint_replaces_the_weights_of_the_name(full, tmp_path):
    """Then only its description must be there."""
    torch.save(full["plain"].state_dict(), tmp_path / "c.pt")
    flags = ("--checkpoint", tmp_path / "c.pt", "--role", "reference", "--out", tmp_path / "B")
    assert export("--open-clip", "hf-hub:some/bare", *flags) == 0
    pixels, tokens, images = inputs(tmp_path / "B", role="reference")
    found = served(tmp_path / "B", None, pixels, tokens, role="reference")
    assert_close(found, encoded(full["plain"], images, tokens))


def test_a_folder_of_open_clip(full, cache, tmp_path, capsys):
    place = cache / "models--some--described" / "snapshots" / COMMIT
    assert export("--open-clip", f"local-dir:{place}", "--out", tmp_path / "B") == 0
    assert "random" not in capsys.readouterr().err
    pixels, tokens, images = inputs(tmp_path / "B")
    found = served(tmp_path / "B", full["quick"].state_dict(), pixels, tokens)
    assert_close(found, encoded(full["quick"], images, tokens))


def test_the_command_itself_with_the_variables_of_the_hub(cache, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "hub").symlink_to(cache)
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}

    def said(name, folder, variables):
        """What it prints in a process that imports the libraries with these variables, and its exit status."""
        log = tmp_path / f"{folder}.log"
        command = ForkedCommand(["export", "--transformers", name, "--out", str(tmp_path / folder)], variables, log)
        return log, command.wait(100)

    log, status = said("some/clip", "B", env)
    assert (status, "max absolute difference to torch" in log.read_text()) == (0, True), log.read_text()
    unreachable = env | {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    log, status = said("some/no", "C", unreachable)
    assert status == 2
    assert "--transformers is some/no; the hub cannot be reached, and its cache, " in log.read_text().splitlines()[-1]
