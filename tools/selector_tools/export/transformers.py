"""Builds models of transformers (CLIP, SigLIP, SigLIP 2) from a local folder, a config.json or a name on the hub."""

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selector_server.encoding.bundle import ImageInput, Logit, TextInput
from selector_server.errors import SetupError
from selector_tools.export import hub, model_folder
from selector_tools.export.building import Architecture, pair
from selector_tools.export.checkpoint_files import WEIGHT_FILES
from selector_tools.export.naflex import as_fixed_grid, encode_fixed_grid, set_size, size_of
from selector_tools.export.torch_model import TorchModel
from selector_tools.export.torchvision import make_importable
from selector_tools.mistakes import in_one_line

_CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_CLIP_END, _OLD_CLIP_END = 49407, 2
_GEMMA_VOCABULARY = 256_000
_FLAG = "--transformers"


def architecture(path: str) -> Architecture:
    """Returns the model in the folder `path`, that of the config.json at `path` with random weights, or that of the
    name `path` on the Hugging Face hub. Raises SetupError."""
    place = Path(path) if Path(path).exists() else hub.folder(_FLAG, path)
    file = place / "config.json" if place.is_dir() else place
    settings = model_folder.read(_FLAG, file)
    kind = settings.get("model_type")
    if kind not in _CLASSES:
        limit = f"its model_type is {kind!r}; must be one of {', '.join(_CLASSES)}"
        raise SetupError(_FLAG, place, limit)
    make_importable()
    import transformers  # noqa: PLC0415 - takes seconds

    # It warns of ids that SigLIP's configs inherit from CLIP's.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model_class = getattr(transformers, _CLASSES[kind])
    try:
        config = model_class.config_class.from_dict(settings)
    except Exception as error:  # its validation raises classes of its own
        raise SetupError(_FLAG, file, f"cannot be read: {in_one_line(error)}") from error
    folder = file.parent
    has_weights = place.is_dir() and any((folder / name).exists() for name in WEIGHT_FILES)

    def build(image_size: int | None, patch_size: int | None) -> TorchModel:
        sized = _resized(copy.deepcopy(config), kind, image_size, patch_size)
        loaded: dict[str, Any] = {}
        try:
            if has_weights and image_size is None and patch_size is None:
                how = {"local_files_only": True, "dtype": torch.float32, "output_loading_info": True}
                model, loaded = model_class.from_pretrained(str(folder), **how)
            else:
                model = model_class(sized)
        except Exception as error:
            raise SetupError(_FLAG, place, f"cannot be built: {in_one_line(error)}") from error
        for what, names in loaded.items():  # it only warns, and leaves random weights where some are missing
            if names and what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
                shown = ", ".join(sorted(map(str, names))[:5])
                raise SetupError(f"{_FLAG} {place}: {what.replace('_', ' ')}", len(names), f"must be none: {shown}")
        called = path if not Path(path).exists() else settings.get("_name_or_path") or folder.resolve().name
        name = str(called or kind)[:128]
        return _described(name, kind, model.eval(), sized, folder)

    naflex = kind == "siglip2"
    return Architecture(build, "bilinear" if naflex else "bicubic", antialias=naflex, has_weights=has_weights)


def _resized(config: Any, kind: str, image_size: int | None, patch_size: int | None) -> Any:
    vision = config.vision_config
    if kind == "siglip2":
        set_size(vision, image_size, patch_size)
        return config
    vision.image_size = image_size or vision.image_size
    vision.patch_size = patch_size or vision.patch_size
    return config


def _described(name: str, kind: str, model: nn.Module, config: Any, folder: Path) -> TorchModel:
    import transformers  # noqa: PLC0415

    vision, naflex = config.vision_config, kind == "siglip2"
    (height, width), patch = size_of(vision) if naflex else (pair(vision.image_size), pair(vision.patch_size))
    if naflex:
        as_fixed_grid(model, (height // patch[0], width // patch[1]))
    bias = hasattr(model, "logit_bias")
    tokenizer = folder / "tokenizer.json"
    return TorchModel(
        name=name,
        module=model,
        image=_image(
            kind, height, width, vision.num_channels, model_folder.optional(_FLAG, folder / "preprocessor_config.json")
        ),
        text=_text(kind, config.text_config, folder),
        logit=Logit(scale_parameter="logit_scale", scale_is_log=True, bias_parameter="logit_bias" if bias else None),
        loss="sigmoid" if bias else "softmax",
        encode_image=encode_fixed_grid if naflex else _encode_image,
        encode_text=_encode_text,
        tokenizer=tokenizer if tokenizer.exists() else None,
        origin=f"transformers {transformers.__version__} {type(model).__name__} {name}",
        patch=patch,
        tokens_at="vision_model.embeddings",
    )


def _image(kind: str, height: int, width: int, channels: int, file: Mapping[str, Any]) -> ImageInput:
    clip = kind == "clip"
    bilinear = file.get("resample") == model_folder.BILINEAR if "resample" in file else kind == "siglip2"
    return ImageInput(
        height=height,
        width=width,
        channels=3 if channels == 3 else 1,
        mean=tuple(file.get("image_mean", _CLIP_MEAN if clip else (0.5,))),
        std=tuple(file.get("image_std", _CLIP_STD if clip else (0.5,))),
        fit="crop" if file.get("do_center_crop", clip) else "squash",
        interpolation="bilinear" if bilinear else "bicubic",
    )


def _text(kind: str, config: Any, folder: Path) -> TextInput:
    """Describes the text tower. Special tokens are the tokenizer's if there is one, else the config's."""
    pad, end = config.pad_token_id, config.eos_token_id
    if kind != "clip" and end == _CLIP_END:  # a default that SigLIP's configs inherit; its tokenizers differ
        pad, end = 0 if config.vocab_size >= _GEMMA_VOCABULARY else 1, 1
    if kind == "clip" and end == _OLD_CLIP_END:  # the first configs of CLIP, whose towers look for the largest id
        end = config.vocab_size - 1
    told_pad, told_end = model_folder.token_ids(_FLAG, folder, ("pad_token", "eos_token"))
    pad = told_pad if told_pad is not None else pad
    end = told_end if told_end is not None else end
    return TextInput(
        max_tokens=config.max_position_embeddings,
        vocabulary=config.vocab_size,
        pad_token=pad if isinstance(pad, int) and pad < config.vocab_size else 0,
        end_token=end if isinstance(end, int) and end < config.vocab_size else None,
    )


def _encode_image(model: Any, images: Tensor) -> Tensor:
    return _pooled(model.get_image_features(pixel_values=images))


def _encode_text(model: Any, tokens: Tensor) -> Tensor:
    return _pooled(model.get_text_features(input_ids=tokens))


def _pooled(features: Any) -> Tensor:
    """Returns the embedding: transformers 4 returns it as it is, 5 inside an output."""
    return features if isinstance(features, Tensor) else features.pooler_output
