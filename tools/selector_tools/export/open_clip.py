"""Builds models of open_clip: its own vision transformers and ResNets, and towers that it takes from timm."""

import copy
import difflib
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from selector_server.encoding.bundle import ImageInput, Logit, TextInput
from selector_server.errors import SetupError
from selector_tools.export import hub
from selector_tools.export.building import Architecture, pair
from selector_tools.export.clip_tokenizer import clip_tokenizer
from selector_tools.export.torch_model import TorchModel
from selector_tools.export.torchvision import make_importable
from selector_tools.mistakes import in_one_line

_CLIP_END = 49407
_CLIP_VOCABULARY = 49408
_RESNET_STRIDE = 32
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


def architecture(
    name: str,
    scratch: Path,
    pretrained: str | None = None,
    *,
    quick_gelu: bool = False,
    checkpoint: Path | None = None,
) -> Architecture:
    """Returns the architecture of that name, or that of hf-hub:NAME or local-dir:FOLDER, whose weights are loaded with
    it unless there is a `checkpoint` to be loaded later. `pretrained` is a tag of open_clip's own weights for it;
    `quick_gelu` forces that activation; `scratch` is a folder for its tokenizer. Raises SetupError."""
    make_importable()
    import open_clip  # noqa: PLC0415 - takes seconds

    config = _config(name)
    schema = name.partition(":")[0] if ":" in name else ""
    if quick_gelu:
        config["quick_gelu"] = True
    if checkpoint is not None:
        _check_params(checkpoint, config)
    if pretrained is not None:
        _fetch(name, pretrained, config)
    elif schema == "hf-hub" and checkpoint is None:
        hub.asked("--open-clip", name, lambda: open_clip.pretrained.download_pretrained_from_hf(name.partition(":")[2]))
    has_weights = pretrained is not None or (bool(schema) and checkpoint is None)
    tokenizer = _write_tokenizer(config["text_cfg"], scratch)

    def build(image_size: int | None, patch_size: int | None) -> TorchModel:
        load = has_weights and image_size is None and patch_size is None
        model = _built(name, copy.deepcopy(config), image_size, patch_size, pretrained, load)
        described = _described(name, model, config["text_cfg"], tokenizer)
        if patch_size is not None and described.patch != (patch_size, patch_size):
            raise SetupError("--patch-size", patch_size, f"{name} takes no other patch size than its own")
        return described

    notes = () if has_weights else _notes(name, open_clip)
    return Architecture(build, "bicubic", antialias=True, has_weights=has_weights, notes=notes)


def _config(name: str) -> dict[str, Any]:
    """Returns what open_clip builds a model of that name from. Raises SetupError."""
    import open_clip  # noqa: PLC0415

    schema, _, place = name.partition(":")
    if schema == "hf-hub":
        config = hub.asked("--open-clip", name, lambda: open_clip.get_model_config(name))
    elif schema == "local-dir":
        try:
            config = open_clip.get_model_config(name)
        except (OSError, ValueError) as error:
            raise SetupError("--open-clip", name, f"cannot be read: {in_one_line(error)}") from error
    else:
        config = open_clip.get_model_config(name) if not place else None
    if config is None:
        close = difflib.get_close_matches(name, open_clip.list_models(), n=5, cutoff=0.5)
        limit = f"close names are {', '.join(close)}" if close else "see open_clip.list_models()"
        raise SetupError("--open-clip", name, f"is no architecture of open_clip; {limit}")
    if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
        raise SetupError("--open-clip", name, "its open_clip_config.json must have embed_dim, vision_cfg and text_cfg")
    return config


def _check_params(checkpoint: Path, config: Mapping[str, Any]) -> None:
    """Raises SetupError if open_clip's training left a params.txt of another activation beside the checkpoint."""
    import open_clip  # noqa: PLC0415

    if not (file := checkpoint.parent.parent / "params.txt").is_file():
        return
    params = dict(line.partition(": ")[::2] for line in file.read_text(errors="replace").splitlines())
    named = open_clip.get_model_config(params["model"]) if ":" not in params.get("model", ":") else None
    if named is None or "force_quick_gelu" not in params:
        return
    trained = params["force_quick_gelu"] == "True" or bool(named.get("quick_gelu"))
    if trained and not config.get("quick_gelu"):
        raise SetupError("--checkpoint", checkpoint, f"was trained with QuickGELU, says {file}; add --force-quick-gelu")
    if config.get("quick_gelu") and not trained:
        raise SetupError("--checkpoint", checkpoint, f"was trained with GELU, says {file}; export it so")


def _fetch(name: str, tag: str, config: Mapping[str, Any]) -> None:
    """Makes sure that the weights of that tag are here, and that they are of the activation that the model has: they
    would fit another one without any error. Raises SetupError."""
    import open_clip  # noqa: PLC0415

    if ":" in name:
        raise SetupError("--pretrained", tag, f"{name} has its own weights; leave it out")
    if not (published := open_clip.get_pretrained_cfg(name, tag)):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name))
        raise SetupError("--pretrained", tag, f"open_clip has for {name} {tags or 'no weights'}")
    trained, ours = (bool(settings.get("quick_gelu")) for settings in (published, config))
    if trained and not ours:
        raise SetupError("--pretrained", tag, "was trained with QuickGELU; add --force-quick-gelu")
    if ours and not trained:
        limit = "was trained with GELU; leave --force-quick-gelu out, and name the architecture without -quickgelu"
        raise SetupError("--pretrained", tag, limit)
    hub.asked("--pretrained", tag, lambda: open_clip.download_pretrained(published))


def _notes(name: str, open_clip: Any) -> tuple[str, ...]:
    """Tells which preprocessing the published weights of this architecture were trained with, where it is not that of
    a new model."""
    default = open_clip.transform.PreprocessCfg()
    for tag in open_clip.list_pretrained_tags_by_model(name):
        published = open_clip.get_pretrained_cfg(name, tag) or {}
        odd = {
            key: published[key]
            for key in _PREPROCESSING
            if published.get(key) is not None and published[key] != getattr(default, key)
        }
        if odd:
            shown = ", ".join(f"{key} {value}" for key, value in odd.items())
            return (f"open_clip's weights {tag!r} need {shown}; if yours do too, say so by --mean, --std and --fit",)
    return ()


def _built(
    name: str,
    config: dict[str, Any],
    image_size: int | None,
    patch_size: int | None,
    pretrained: str | None = None,
    load_weights: bool = False,
) -> Any:
    import open_clip  # noqa: PLC0415

    vision = config["vision_cfg"]
    timm = vision.get("timm_model_name") is not None
    if patch_size is not None and not timm and isinstance(vision.get("layers"), int):
        vision["patch_size"] = patch_size
    if image_size is not None:
        vision["image_size"] = image_size
    if timm:
        vision["timm_model_pretrained"] = False
    how = {"pretrained": pretrained, "pretrained_hf": False, "load_weights": load_weights, "vision_cfg": vision}
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.CRITICAL)  # it tells of random weights and of errors; the command does, too
    try:
        quick = bool(config.get("quick_gelu"))
        model = open_clip.create_model(name, force_quick_gelu=quick, require_pretrained=load_weights, **how)
        if timm and (image_size is not None or patch_size is not None):
            _resize_timm(model.visual, image_size, patch_size)
    except (RuntimeError, OSError, ValueError, AssertionError, TypeError, KeyError, pickle.UnpicklingError) as error:
        raise SetupError("--open-clip", name, f"cannot be built: {in_one_line(error)}") from error
    finally:
        logging.getLogger().setLevel(level)
    return model.eval()


def _resize_timm(visual: Any, image_size: int | None, patch_size: int | None) -> None:
    """Tells a tower its sizes, if it asks for them; others take any image, or will say so when they run."""
    trunk, size = visual.trunk, image_size or visual.image_size[0]
    if hasattr(trunk, "set_input_size"):
        patch = {} if patch_size is None else {"patch_size": (patch_size, patch_size)}
        trunk.set_input_size(img_size=(size, size), **patch)


def _described(name: str, model: Any, text_config: Mapping[str, Any], tokenizer: Path | None) -> TorchModel:
    import open_clip  # noqa: PLC0415

    preprocessing = model.visual.preprocess_cfg
    height, width = pair(model.visual.image_size)
    pad, end = _special_tokens(text_config)
    vocabulary = getattr(model, "vocab_size", text_config.get("vocab_size", _CLIP_VOCABULARY))  # CoCa does not tell
    patch, tokens_at = _patches(model.visual)
    bias = getattr(model, "logit_bias", None) is not None
    return TorchModel(
        name=name.removeprefix("hf-hub:").rstrip("/").removeprefix("local-dir:")[-128:],
        module=model,
        image=ImageInput(
            height=height,
            width=width,
            channels=3,
            mean=tuple(preprocessing["mean"]),
            std=tuple(preprocessing["std"]),
            fit="squash" if preprocessing["resize_mode"] == "squash" else "crop",
            interpolation="bilinear" if preprocessing["interpolation"] == "bilinear" else "bicubic",
        ),
        text=TextInput(max_tokens=model.context_length, vocabulary=vocabulary, pad_token=pad, end_token=end),
        logit=Logit(scale_parameter="logit_scale", scale_is_log=True, bias_parameter="logit_bias" if bias else None),
        loss="sigmoid" if bias else "softmax",
        tokenizer=tokenizer,
        origin=f"open_clip {open_clip.__version__} {name}",
        patch=patch,
        stride=_stride(model.visual) if patch is None else None,
        tokens_at=tokens_at,
    )


def _patches(visual: nn.Module) -> tuple[tuple[int, int] | None, str]:
    """Returns the side of a patch, and the submodule whose output is all tokens; None and "" where there are none."""
    if isinstance(conv := getattr(visual, "conv1", None), nn.Conv2d) and conv.kernel_size == conv.stride:
        return pair(conv.kernel_size), "visual.patch_dropout"
    trunk: Any = getattr(visual, "trunk", None)
    embed = getattr(trunk, "patch_embed", None)
    conv = getattr(embed, "proj", None)
    if isinstance(conv, nn.Conv2d) and conv.kernel_size == conv.stride and not hasattr(embed, "backbone"):
        droppable = isinstance(getattr(trunk, "patch_drop", None), nn.Identity) and hasattr(trunk, "pos_embed")
        return pair(conv.kernel_size), "visual.trunk.patch_drop" if droppable else ""
    return None, ""


def _stride(visual: Any) -> tuple[int, int] | None:
    """Returns how many pixels a cell of a convolving tower's last grid stands for: that of its position table, if it
    has one; None where the tower does not tell."""
    if isinstance(getattr(visual, "attnpool", None), nn.Module):  # CLIP's own ResNets
        return pair(_RESNET_STRIDE)
    trunk: Any = getattr(visual, "trunk", None)
    embed: Any = getattr(trunk, "patch_embed", None)
    if hasattr(embed, "backbone"):  # a convolving stem before a transformer
        return pair(embed.feat_ratio(as_scalar=False))
    stages = getattr(trunk, "feature_info", None)
    return pair(stages[-1]["reduction"]) if isinstance(stages, list) and stages else None


def _special_tokens(text_config: Mapping[str, Any]) -> tuple[int, int | None]:
    """Returns the ids of padding and, where a cut text needs it, of the end."""
    tokenizer = text_config.get("hf_tokenizer_name") or ""
    if not tokenizer:
        cut = text_config.get("vocab_size", _CLIP_VOCABULARY) >= _CLIP_VOCABULARY
        return 0, _CLIP_END if cut else None
    if "SigLIP" in tokenizer:  # the first used T5's tokenizer, which pads with its end, the second Gemma's
        return (0 if "SigLIP2" in tokenizer else 1), 1
    return text_config.get("pad_id", 0), None


def _write_tokenizer(text_config: Mapping[str, Any], scratch: Path) -> Path | None:
    """Writes CLIP's tokenizer, if this model uses it as it is."""
    import open_clip  # noqa: PLC0415

    named = any(text_config.get(key) for key in ("hf_tokenizer_name", "hf_model_name", "tokenizer_kwargs"))
    if named or text_config.get("vocab_size", _CLIP_VOCABULARY) < _CLIP_VOCABULARY:
        return None
    file = scratch / "tokenizer.json"
    clip_tokenizer(Path(open_clip.tokenizer.default_bpe())).save(str(file))
    return file
