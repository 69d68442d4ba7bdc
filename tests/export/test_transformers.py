"""Models of transformers against transformers itself, which resizes by its own functions."""

import json

import pytest
import safetensors.torch
import torch
from selector_tools.export.torchvision import make_importable
from support.exports import assert_close, export, inputs, kept_patches, randomise, served

make_importable()
import transformers  # noqa: E402
from transformers.models.siglip2 import image_processing_siglip2  # noqa: E402

TEXT = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 7,
}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZED = VISION | {"image_size": 64, "patch_size": 16}


def clip():
    text = TEXT | {"eos_token_id": 99, "bos_token_id": 98, "pad_token_id": 99}
    vision = SIZED | {"num_hidden_layers": 2}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))


def siglip(**vision):
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=TEXT, vision_config=SIZED | vision))


def siglip2(patch_size=8):
    vision = VISION | {"patch_size": patch_size, "num_patches": 16}
    return transformers.Siglip2Model(transformers.Siglip2Config(text_config=TEXT, vision_config=vision))


def saved(model, folder, weights=True):
    model.save_pretrained(folder) if weights else model.config.save_pretrained(folder)
    return folder


def pooled(features):
    return features if isinstance(features, torch.Tensor) else features.pooler_output


@torch.no_grad()
def encoded(model, images, tokens, **more):
    image = model.get_image_features(pixel_values=images, **more)
    return pooled(image), pooled(model.get_text_features(input_ids=torch.from_numpy(tokens)))


@pytest.mark.parametrize("build", [clip, siglip])
def test_a_smaller_image_and_weights_bound_later(build, tmp_path, capsys):
    source = saved(build(), tmp_path / "model", weights=False)
    assert export("--transformers", source / "config.json", "--image-size", 32, "--out", tmp_path / "B") == 0
    said = capsys.readouterr()
    kind = "softmax" if build is clip else "sigmoid"
    assert f"model: model, learner, width {24 if build is clip else 32}, fp32, {kind} loss" in said.out
    assert "(positions), 4 x 4 to 2 x 2, bicubic\n" in said.out
    assert ("pad token 99, end token 99" if build is clip else "pad token 1, end token 1") in said.out
    assert ("crop, bicubic, mean 0.481" if build is clip else "squash, bicubic, mean 0.5,") in said.out
    assert "random weights (seed 0)" in said.err
    full = randomise(build())
    pixels, tokens, images = inputs(tmp_path / "B")
    found = served(tmp_path / "B", full.state_dict(), pixels, tokens)
    assert_close(found, encoded(full, images, tokens, interpolate_pos_encoding=True))


def test_another_patch_size(tmp_path):
    import timm.layers

    source = saved(siglip(), tmp_path / "model", weights=False)
    assert export("--transformers", source, "--patch-size", 32, "--antialias", "--out", tmp_path / "B") == 0
    full, low = randomise(siglip()), siglip(patch_size=32).eval()
    state = dict(full.state_dict())
    kernel, table = (
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.embeddings.position_embedding.weight",
    )
    state[kernel] = timm.layers.resample_patch_embed(state[kernel], [32, 32])
    state[table] = timm.layers.resample_abs_pos_embed(state[table][None], [2, 2], num_prefix_tokens=0)[0]
    low.load_state_dict(state)
    pixels, tokens, images = inputs(tmp_path / "B")
    found = served(tmp_path / "B", full.state_dict(), pixels, tokens)
    assert_close(found, encoded(low, images, tokens))


def test_weights_of_the_folder_and_kept_patches(tmp_path, capsys):
    """The weights that the bundle was exported with, not bound later; its preprocessor's numbers."""
    full = randomise(clip())
    source = saved(full, tmp_path / "model")
    preprocessing = {
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "resample": 2,
        "do_center_crop": False,
    }
    (source / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    flags = ("--role", "reference", "--keep-patches", 0.25)
    assert export("--transformers", source, *flags, "--out", tmp_path / "B") == 0
    said = capsys.readouterr()
    assert "squash, bilinear, mean 0.1,0.2,0.3, std 0.4,0.5,0.6" in said.out
    assert "random" not in said.err
    kept = torch.tensor([0, *(1 + index for index in kept_patches(4, 4, 0.25))])
    full.vision_model.embeddings.register_forward_hook(lambda _module, _inputs, tokens: tokens[:, kept])
    pixels, tokens, images = inputs(tmp_path / "B", role="reference")
    found = served(tmp_path / "B", None, pixels, tokens, role="reference")
    assert_close(found, encoded(full, images, tokens))


def patchified(images, side):
    """What the library's own image processor makes of images that fill the grid, and the shapes and mask it gives."""
    patches = torch.stack([image_processing_siglip2.convert_image_to_patches(image, side) for image in images])
    grid = torch.tensor([[image.shape[1] // side, image.shape[2] // side] for image in images])
    return patches, {"spatial_shapes": grid, "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.int64)}


@pytest.mark.parametrize("size", [32, 16])
def test_siglip_2_of_any_aspect_equals_the_librarys_own_forward_with_a_full_mask(size, tmp_path, capsys):
    source = saved(siglip2(), tmp_path / "model", weights=False)
    assert export("--transformers", source, "--image-size", size, "--out", tmp_path / "B") == 0
    assert ("resize: " in capsys.readouterr().out) == (size == 16)
    full = randomise(siglip2())
    pixels, tokens, images = inputs(tmp_path / "B")
    patches, more = patchified(images, 8)
    found = served(tmp_path / "B", full.state_dict(), pixels, tokens)
    assert_close(found, encoded(full, patches, tokens, **more))


def test_siglip_2_of_any_aspect_with_another_patch_size(tmp_path):
    import timm.layers

    source = saved(siglip2(), tmp_path / "model", weights=False)
    assert export("--transformers", source, "--image-size", 64, "--patch-size", 16, "--out", tmp_path / "B") == 0
    full, low = randomise(siglip2()), siglip2(patch_size=16).eval()
    state = dict(full.state_dict())
    kernel = "vision_model.embeddings.patch_embedding.weight"
    square = state[kernel].unflatten(1, (8, 8, 3)).permute(0, 3, 1, 2)
    square = timm.layers.resample_patch_embed(square, [16, 16], interpolation="bilinear")
    low.load_state_dict(state | {kernel: square.permute(0, 2, 3, 1).flatten(1)})
    pixels, tokens, images = inputs(tmp_path / "B")
    patches, more = patchified(images, 16)
    found = served(tmp_path / "B", full.state_dict(), pixels, tokens)
    assert_close(found, encoded(low, patches, tokens, **more))


def test_siglip_2_of_any_aspect_with_kept_patches(tmp_path):
    source = saved(siglip2(), tmp_path / "model", weights=False)
    assert export("--transformers", source, "--keep-patches", 0.5, "--out", tmp_path / "B") == 0
    full = randomise(siglip2())
    pixels, tokens, images = inputs(tmp_path / "B")
    patches, more = patchified(images, 8)
    kept = torch.tensor(kept_patches(4, 4, 0.5))
    embed = full.vision_model.embeddings.forward
    full.vision_model.embeddings.forward = lambda *arguments: embed(*arguments)[:, kept]
    more["pixel_attention_mask"] = more["pixel_attention_mask"][:, kept]
    found = served(tmp_path / "B", full.state_dict(), pixels, tokens)
    assert_close(found, encoded(full, patches, tokens, **more))


@pytest.mark.parametrize(
    ("content", "limit"),
    [
        ('{"model_type": "bert"}', "its model_type is 'bert'; must be one of clip, siglip, siglip2"),
        ("[]", "must be a JSON object"),
        ("{", "cannot be read"),
        ('{"model_type": "siglip", "vision_config": {"hidden_size": "wide"}}', "cannot be read"),
        ('{"model_type": "siglip2", "vision_config": {"num_patches": 15}}', "must be a square number"),
    ],
)
def test_a_bad_config_is_refused_in_one_line(content, limit, tmp_path, capsys):
    (tmp_path / "config.json").write_text(content)
    assert export("--transformers", tmp_path, "--out", tmp_path / "B") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("selector export: --transformers is ")
    assert limit in last


def test_a_folder_whose_weights_are_another_models(tmp_path, capsys):
    """transformers only warns of these, and leaves random weights where some are missing."""
    folder = tmp_path / "siglip"
    siglip().save_pretrained(folder)
    state = safetensors.torch.load_file(folder / "model.safetensors")
    renamed = {name.replace("vision_model.encoder", "vision_model.other"): value for name, value in state.items()}
    safetensors.torch.save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    assert export("--transformers", folder, "--out", tmp_path / "B") == 2
    assert "missing keys is " in capsys.readouterr().err
    assert not (tmp_path / "B").exists()
