"""Opens image towers and sentence encoders of transformers in local folders."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selector_server.encoding.bundle import ImageInput, TextInput
from selector_server.errors import SetupError
from selector_tools.export import model_folder
from selector_tools.export.building import pair
from selector_tools.export.torchvision import make_importable
from selector_tools.mistakes import in_one_line
from selector_tools.reference.frozen.towers import ImageTower, TextTower

_IMAGE, _TEXT = "--image-tower", "--text-tower"
_SIDE = 224  # of towers whose folder tells no image size: they take any
_POOLING_FILE = "1_Pooling/config.json"
_POOLINGS = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls"}


def image_opener(folder: Path) -> Callable[[int | None], ImageTower]:
    """Returns what builds the tower in `folder` at an image size, None for its own; then it has its weights. Raises
    SetupError."""
    model, missing = _loaded(_IMAGE, folder, "pixel_values", "an image tower, such as ViT, DINOv2 or SigLIP's vision")
    pooler = any(name.startswith("pooler.") for name in missing)
    if rest := [name for name in missing if not name.startswith("pooler.")]:
        raise SetupError(_IMAGE, folder, f"lacks weights: {', '.join(sorted(rest)[:5])}")

    def build(image_size: int | None) -> ImageTower:
        built = model
        if image_size is not None and hasattr(model.config, "image_size"):
            config = copy.deepcopy(model.config)
            config.image_size = image_size
            built = type(model)(config).eval()
        return _image_tower(folder, _ImageFeatures(built, pooled=not pooler), image_size)

    return build


class _ImageFeatures(nn.Module):
    """Gives what the model's pooler gives, or the first token where it has none, or the folder no weights for it."""

    def __init__(self, model: Any, pooled: bool) -> None:
        super().__init__()
        self.model, self._pooled = model, pooled

    def forward(self, images: Tensor) -> Tensor:
        out = self.model(pixel_values=images)
        pooled: Tensor | None = out.get("pooler_output") if self._pooled else None
        return out.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)


def _image_tower(folder: Path, module: _ImageFeatures, image_size: int | None) -> ImageTower:
    import transformers  # noqa: PLC0415

    config: Any = module.model.config
    told = model_folder.optional(_IMAGE, folder / "preprocessor_config.json")
    height, width = pair(image_size or getattr(config, "image_size", None) or _SIDE)
    image = ImageInput(
        height=height,
        width=width,
        channels=config.num_channels,
        mean=tuple(told.get("image_mean", (0.5,))),
        std=tuple(told.get("image_std", (0.5,))),
        fit="crop" if told.get("do_center_crop") else "squash",
        interpolation="bilinear" if told.get("resample") == model_folder.BILINEAR else "bicubic",
    )
    patch = getattr(config, "patch_size", None)
    name, origin = folder.resolve().name, f"transformers {transformers.__version__} {type(module.model).__name__}"
    return ImageTower(module, image, name, f"{origin} {name}", None if patch is None else pair(patch))


def text_tower(folder: Path, max_tokens: int | None) -> TextTower:
    """Returns the sentence encoder in `folder` for texts of `max_tokens`, None for as many as the folder says. It pools
    as the folder's 1_Pooling says, and by the mean without one. Raises SetupError."""
    import transformers  # noqa: PLC0415 - takes seconds

    model, missing = _loaded(_TEXT, folder, "input_ids", "a sentence encoder, such as BERT, MPNet or XLM-RoBERTa")
    config = model.config
    if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "vocab_size"):
        raise SetupError(_TEXT, folder, f"holds a {type(model).__name__}; must be an encoder of texts alone")
    if rest := [name for name in missing if not name.startswith("pooler.")]:
        raise SetupError(_TEXT, folder, f"lacks weights: {', '.join(sorted(rest)[:5])}")
    pad, end, separator = model_folder.token_ids(_TEXT, folder, ("pad_token", "eos_token", "sep_token"))
    if (pad := config.pad_token_id if pad is None else pad) is None:
        raise SetupError(_TEXT, folder, "names no padding token; its config.json needs pad_token_id")
    tokenizer, name = folder / "tokenizer.json", folder.resolve().name
    text = TextInput(
        max_tokens=max_tokens or _longest(folder, config),
        vocabulary=config.vocab_size,
        pad_token=pad,
        end_token=separator if end is None else end,
    )
    origin = f"transformers {transformers.__version__} {type(model).__name__} {name}"
    module = _Sentences(model, pad, _pooling(folder))
    return TextTower(module, text, name, origin, tokenizer if tokenizer.exists() else None)


class _Sentences(nn.Module):
    """Pools the tokens that are not padding. The first always counts, so that a text of padding alone is no NaN."""

    def __init__(self, model: Any, pad: int, pooling: str) -> None:
        super().__init__()
        self.model, self._pad, self._pooling = model, pad, pooling

    def forward(self, tokens: Tensor) -> Tensor:
        later = tokens[:, 1:] != self._pad
        mask = torch.cat([torch.ones_like(tokens[:, :1]), later.to(tokens.dtype)], dim=1)
        hidden: Tensor = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state
        if self._pooling == "cls":
            return hidden[:, 0]
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def _pooling(folder: Path) -> str:
    """Returns mean or cls. Older files of sentence-transformers have a switch for each pooling, newer ones its name."""
    if not (file := folder / _POOLING_FILE).exists():
        return "mean"
    told = model_folder.read(_TEXT, file)
    switched = [key.removeprefix("pooling_mode_") for key, value in told.items() if value is True]
    named = told.get("pooling_mode", [name for name in switched if f"pooling_mode_{name}" in told])
    names = [named] if isinstance(named, str) else named
    if len(names) != 1 or names[0] not in _POOLINGS:
        raise SetupError(_TEXT, file, f"pools by {', '.join(map(str, names))}; must be one of {', '.join(_POOLINGS)}")
    return _POOLINGS[names[0]]


def _longest(folder: Path, config: Any) -> int:
    """Returns the tokens of the longest text: what sentence-transformers' file says, else the tokenizer's, else as many
    as there are positions."""
    positions = getattr(config, "max_position_embeddings", 512)
    told = (
        model_folder.optional(_TEXT, folder / "sentence_bert_config.json").get("max_seq_length"),
        model_folder.optional(_TEXT, folder / "tokenizer_config.json").get("model_max_length"),
    )
    return next((count for count in told if isinstance(count, int) and 0 < count <= positions), positions)


def _loaded(flag: str, folder: Path, takes: str, what: str) -> tuple[Any, list[str]]:
    """Returns the model in a folder, and the names of weights that the folder lacks."""
    make_importable()
    import transformers  # noqa: PLC0415

    kind = model_folder.read(flag, folder / "config.json").get("model_type")
    logging.getLogger("transformers").setLevel(logging.ERROR)  # it warns of weights that are left out on purpose
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    how = {"local_files_only": True, "trust_remote_code": False, "dtype": torch.float32}
    try:
        model, told = transformers.AutoModel.from_pretrained(str(folder), output_loading_info=True, **how)
    except Exception as error:  # whatever the library raises
        raise SetupError(flag, folder, f"cannot be loaded: {in_one_line(error)}") from error
    if told["mismatched_keys"]:
        raise SetupError(flag, folder, f"has misshapen weights: {in_one_line(ValueError(told['mismatched_keys']))}")
    if model.main_input_name != takes:
        raise SetupError(
            flag, folder, f"is a model of type {kind}, which takes {model.main_input_name}; must be {what}"
        )
    return model.eval(), list(told["missing_keys"])
