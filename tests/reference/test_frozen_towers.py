"""References of frozen pretrained towers, against the libraries that the towers come from."""

import json
import shutil
import socket

import numpy as np
import pytest
import safetensors.torch
import torch
from selector_tools import cli
from selector_tools.export.torchvision import make_importable
from support.exports import served
from support.model import WORDS, write_tokenizer
from support.pools import arrays

from selector_server.encoding import bundle

make_importable()
import timm  # noqa: E402
import transformers  # noqa: E402

SIDE, TOKENS = 32, 7
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = SIZES | {"vocab_size": len(WORDS), "max_position_embeddings": 12}
VISION = SIZES | {"image_size": SIDE, "patch_size": 8}
PAD = 5  # not 0, so that a mask by truth would be noticed


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*_):
        raise AssertionError("a frozen tower asks for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return build().eval()


def bert(folder, pooling=None, **more):
    """A sentence encoder as sentence-transformers saves it."""
    model = seeded(lambda: transformers.BertModel(transformers.BertConfig(**TEXT | {"pad_token_id": PAD} | more)))
    model.save_pretrained(folder)
    write_tokenizer(folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": f"w{PAD}", "sep_token": "w3"}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": TOKENS}))
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return model


def vit(folder, pooler=True, **more):
    config = transformers.ViTConfig(**VISION | more)
    model = seeded(lambda: transformers.ViTModel(config, add_pooling_layer=pooler))
    model.save_pretrained(folder)
    preprocessing = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return model


def task(count, seed=0):
    """Pictures of 8 patterns under noise, each called by one word of its own."""
    patterns = np.random.default_rng(99).integers(0, 200, (8, 4, 4, 3)).repeat(8, 1).repeat(8, 2)
    rng = np.random.default_rng(seed)
    word = rng.integers(8, 16, count)
    images = (patterns[word - 8] + rng.integers(0, 55, (count, SIDE, SIDE, 3))).astype(np.uint8)
    tokens = np.full((count, TOKENS), PAD, np.int64)
    tokens[:, 0] = word
    return images, tokens


def command(capsys, *arguments):
    try:
        status = cli.main([str(part) for part in arguments])
    except SystemExit as exit_:
        status = exit_.code
    out, err = capsys.readouterr()
    return status, out, err


FIT = ["reference", "fit", "--threads", 1, "--projection-width", 12, "--batch", 32, "--learning-rate", 0.01]


def fitted(capsys, place, *more, steps=3, count=80, side=SIDE):
    images, tokens = task(count)
    images = np.resize(images, (count, side, side, 3))
    arrays(place / "p.npz", count, images=images, tokens=tokens)
    flags = ["--pool", place / "p.npz", "--out", place / "reference", "--steps", steps, *more]
    status, _, err = command(capsys, *FIT, *flags)
    assert status == 0, err
    return place / "reference"


def assert_projection_of(features, embeddings):
    """Whether the embeddings are a linear map of the normed features: one that is found on a half of them must be true
    of the other half."""
    normed = torch.nn.functional.layer_norm(features.detach(), features.shape[1:]).double()
    normed = torch.cat([normed, torch.ones(len(normed), 1, dtype=torch.float64)], dim=1)
    half, wanted = len(normed) // 2, embeddings.double()
    found = torch.linalg.lstsq(normed[:half], wanted[:half], driver="gelsd").solution
    assert float(wanted.std(dim=0).max()) > 1e-2
    assert float((normed[half:] @ found - wanted[half:]).abs().max()) < 1e-3 * float(wanted.abs().max())


def samples(count=160, side=SIDE):
    rng = np.random.default_rng(4)
    tokens = rng.integers(6, len(WORDS), (count, TOKENS))
    for row, length in enumerate(rng.integers(1, TOKENS + 1, count)):
        tokens[row, length:] = PAD
    return rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8), tokens


def normalised(path, pixels):
    image = bundle.load(path, "reference").manifest.image
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (image.mean, image.std))
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std


@torch.no_grad()
def sentences(model, tokens, pooling):
    """Each text by itself and without its padding."""
    rows = []
    for row in tokens:
        kept = torch.from_numpy(row[row != PAD])[None]
        hidden = model(input_ids=kept).last_hidden_state[0]
        rows.append(hidden.mean(dim=0) if pooling == "mean" else hidden[0])
    return torch.stack(rows)


def timm_model(file, **more):
    model = seeded(lambda: timm.create_model("test_vit", pretrained=False, **more))
    torch.save({"state_dict": model.state_dict()}, file)
    return model


def test_a_checkpoint_of_timm_and_a_sentence_encoder_serve_as_the_libraries_compute_them(capsys, tmp_path):
    text, image = bert(tmp_path / "bert"), timm_model(tmp_path / "vit.pth")
    towers = ["--image-tower", tmp_path / "vit.pth", "--timm", "test_vit", "--text-tower", tmp_path / "bert"]
    path = fitted(capsys, tmp_path, *towers, side=image.pretrained_cfg["input_size"][1])
    manifest = bundle.load(path, "reference").manifest
    assert manifest.name == "test_vit+bert"
    assert manifest.width == 12
    assert (manifest.text.max_tokens, manifest.text.pad_token, manifest.text.end_token) == (TOKENS, PAD, 3)
    assert manifest.image.mean == tuple(image.pretrained_cfg["mean"])
    assert "frozen timm " in manifest.source
    assert "; its own weights; trained on " in manifest.source
    pixels, tokens = samples(side=manifest.image.height)
    found = served(path, None, pixels, tokens, role="reference")
    features = image.forward_head(image.forward_features(normalised(path, pixels)), pre_logits=True)
    assert_projection_of(features, found[0])
    assert_projection_of(sentences(text, tokens, "mean"), found[1])


@pytest.mark.parametrize("pooler", [True, False])
def test_folders_of_transformers_serve_as_the_library_computes_them(capsys, tmp_path, pooler):
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False} if pooler else {"pooling_mode": "cls"}
    deep = {"num_hidden_layers": 2}
    text, image = bert(tmp_path / "bert", pooling, **deep), vit(tmp_path / "vit", pooler, **deep)
    path = fitted(capsys, tmp_path, "--image-tower", tmp_path / "vit", "--text-tower", tmp_path / "bert")
    told = bundle.load(path, "reference").manifest.image
    assert (told.mean, told.std, told.interpolation) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "bilinear")
    pixels, tokens = samples()
    found = served(path, None, pixels, tokens, role="reference")
    out = image(pixel_values=normalised(path, pixels))
    assert_projection_of(out.pooler_output if pooler else out.last_hidden_state[:, 0], found[0])
    assert_projection_of(sentences(text, tokens, "cls"), found[1])


def test_a_folder_of_timm_names_its_architecture(capsys, tmp_path):
    bert(tmp_path / "bert")
    model = seeded(lambda: timm.create_model("test_vit", pretrained=False, img_size=SIDE, num_classes=3))
    timm.models.save_for_hf(model, tmp_path / "vit", model_args={"img_size": SIDE}, safe_serialization=True)
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    config["pretrained_cfg"]["mean"] = [0.3, 0.3, 0.3]
    (tmp_path / "vit" / "config.json").write_text(json.dumps(config))
    path = fitted(capsys, tmp_path, "--image-tower", tmp_path / "vit", "--text-tower", tmp_path / "bert")
    manifest = bundle.load(path, "reference").manifest
    assert (manifest.image.height, manifest.image.mean) == (SIDE, (0.3, 0.3, 0.3))
    assert manifest.name == "test_vit+bert"
    pixels, tokens = samples()
    features = model.forward_head(model.forward_features(normalised(path, pixels)), pre_logits=True)
    assert_projection_of(features, served(path, None, pixels, tokens, role="reference")[0])


def test_another_image_size_maps_the_positions(capsys, tmp_path):
    bert(tmp_path / "bert")
    image = vit(tmp_path / "vit")
    towers = ["--image-tower", tmp_path / "vit", "--text-tower", tmp_path / "bert", "--image-size", 16]
    path = fitted(capsys, tmp_path, *towers, side=16)
    pixels, tokens = samples(side=16)
    out = image(pixel_values=normalised(path, pixels), interpolate_pos_encoding=True)
    found = served(path, None, pixels, tokens, role="reference")[0]
    features = out.pooler_output.detach()
    # transformers interpolates without antialiasing, the mapping with it: nearly the same features, not the same.
    normed = torch.cat([torch.nn.functional.layer_norm(features, features.shape[1:]), torch.ones(len(features), 1)], 1)
    residual = normed @ torch.linalg.lstsq(normed, found, driver="gelsd").solution - found
    assert float(residual.std()) < 0.1 * float(found.std())


def test_projections_learn_without_running_the_towers_again(capsys, tmp_path, monkeypatch):
    from selector_tools.reference import fitting

    bert(tmp_path / "bert", hidden_dropout_prob=0.5)
    vit(tmp_path / "vit")
    fit = fitting.fit

    def refuse(*_):
        raise AssertionError("a tower runs in training")

    def fit_without_towers(model, *more):
        with monkeypatch.context() as patch:
            for tower in (model.module.image_tower, model.module.text_tower):
                patch.setattr(tower, "forward", refuse)
            return fit(model, *more)

    monkeypatch.setattr(fitting, "fit", fit_without_towers)
    flags = ["--image-tower", tmp_path / "vit", "--text-tower", tmp_path / "bert", "--validation", 0.25]
    path = fitted(capsys, tmp_path, *flags, steps=150, count=400)
    images, tokens = task(200, seed=5)
    arrays(tmp_path / "fresh.npz", 200, images=images, tokens=tokens)
    report = ["reference", "report", "--reference", path, "--pool", tmp_path / "fresh.npz", "--out", tmp_path / "r"]
    status, out, _ = command(capsys, *report, "--threads", 1)
    assert status == 0
    assert float(out.split()[1]) > 0.9


def test_texts_are_read_by_the_encoders_tokenizer(capsys, tmp_path):
    bert(tmp_path / "bert")
    vit(tmp_path / "vit")
    images, tokens = task(80)
    texts = np.array([WORDS[row[0]] for row in tokens])
    arrays(tmp_path / "texts.npz", 80, images=images, tokens=None, texts=texts)
    towers = ["--image-tower", tmp_path / "vit", "--text-tower", tmp_path / "bert", "--max-tokens", 4]
    flags = ["--pool", tmp_path / "texts.npz", "--out", tmp_path / "reference", "--steps", 2]
    assert command(capsys, *FIT, *flags, *towers)[0] == 0
    found = bundle.load(tmp_path / "reference", "reference")
    assert found.tokenizer is not None
    assert found.manifest.text.max_tokens == 4


def config_file(folder, **content):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(content))


def broken(place):
    """What is named wrongly below."""
    bert(place / "bert")
    vit(place / "vit")
    bert(place / "max", {"pooling_mode_max_tokens": True})
    bert(place / "no-pad", pad_token_id=None)
    (place / "no-pad" / "tokenizer_config.json").unlink()
    without(place / "bert", place / "lacking", "encoder.layer.0.output.dense.weight")
    timm_model(place / "vit.pth")
    config_file(place / "unknown", model_type="nothing")
    config_file(place / "custom", model_type="nothing", auto_map={"AutoConfig": "code.Config"})
    (place / "custom" / "code.py").write_text("raise SystemExit('ran')")
    (place / "empty").mkdir()
    (place / "words.txt").write_text("no weights")


def without(source, target, name):
    shutil.copytree(source, target)
    state = safetensors.torch.load_file(target / "model.safetensors")
    del state[name]
    safetensors.torch.save_file(state, target / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory):
    place = tmp_path_factory.mktemp("mistaken")
    broken(place)
    images, tokens = task(80)
    arrays(place / "p.npz", 80, images=images, tokens=tokens)
    return place


@pytest.mark.parametrize(
    ("more", "mistake"),
    [
        (["--image-tower", "facebook/dinov2-small"], "--image-tower is facebook/dinov2-small; must be a local folder"),
        (["--text-tower", "all-MiniLM-L6-v2"], "--text-tower is all-MiniLM-L6-v2; must be a local folder; nothing"),
        (["--text-tower", "words.txt"], "--text-tower is words.txt; must be a local folder"),
        (["--timm", "hf-hub:timm/resnet18.a1_in1k", "--image-tower", "vit.pth"], "is no architecture of timm"),
        (["--timm", "test_vitt", "--image-tower", "vit.pth"], "close names are test_vit"),
        (["--timm", "test_resnet", "--image-tower", "vit.pth"], "--image-tower is vit.pth; does not fit the model: "),
        (["--timm", "test_vit"], "--timm is test_vit; vit is a folder"),
        (["--image-tower", "vit.pth"], "--image-tower is vit.pth; is a file: name its architecture by --timm"),
        (["--image-tower", "words.txt", "--timm", "test_vit"], "--image-tower is words.txt; must be a torch file"),
        (["--image-tower", "empty"], "--image-tower is empty/config.json; cannot be read"),
        (["--image-tower", "bert"], "--image-tower is bert; is a model of type bert, which takes input_ids"),
        (["--text-tower", "vit"], "--text-tower is vit; is a model of type vit, which takes pixel_values"),
        (["--text-tower", "unknown"], "--text-tower is unknown; cannot be loaded"),
        (["--text-tower", "custom"], "--text-tower is custom; cannot be loaded"),
        (["--text-tower", "lacking"], "lacks weights: encoder.layer.0.output.dense.weight"),
        (["--text-tower", "max"], "1_Pooling/config.json; pools by max_tokens; must be one of mean, "),
        (["--text-tower", "no-pad"], "--text-tower is no-pad; names no padding token"),
        (["--max-tokens", "13"], "--text-tower is bert; of 13 tokens it raises RuntimeError"),
        (["--max-tokens", "0"], "--max-tokens is 0; must be 1 to"),
        (["--vocabulary", "64"], "--vocabulary is 64; only --module needs it"),
        (["--image-size", "20"], "image size is 20; must be a multiple of the patch size, 8"),
        (["--projection-width", "0"], "--projection-width is 0; must be 1 to 4096"),
        (["--checkpoint", "vit.pth"], "--checkpoint is vit.pth; the towers of"),
        (["--keep-patches", "0.5"], "--keep-patches is 0.5; the towers of"),
        (["--pad-token", "0"], "--pad-token is 0; the towers of"),
        (["--shift", "2"], "--shift is 2; frozen towers see each image once, before the training; leave it out"),
        (["--crop", "0.5"], "--crop is 0.5; frozen towers see"),
        (["--flip"], "--flip is True; frozen towers see"),
        (["--module", "x:y"], "--module"),
    ],
)
def test_mistakes_print_one_line_and_exit_2(capsys, mistaken, monkeypatch, more, mistake):
    monkeypatch.chdir(mistaken)
    towers = [] if "--image-tower" in more else ["--image-tower", "vit"]
    towers += [] if "--text-tower" in more else ["--text-tower", "bert"]
    flags = ["--pool", "p.npz", "--out", "reference", "--steps", 2, "--validation", 0]
    status, out, err = command(capsys, *FIT, *flags, *towers, *more)
    assert (status, out) == (2, "")
    *progress, line = err.splitlines()
    assert all(each.startswith("selector reference fit: ") for each in progress)
    assert mistake in line
    assert not (mistaken / "reference").exists()


def test_one_tower_alone_is_refused(capsys, mistaken, monkeypatch):
    monkeypatch.chdir(mistaken)
    status, _, err = command(capsys, *FIT, "--pool", "p.npz", "--out", "reference", "--image-tower", "vit")
    assert (status, err) == (2, "selector reference fit: --text-tower is missing; --image-tower needs it\n")
