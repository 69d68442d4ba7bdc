"""Opens image towers of timm: a checkpoint file and the architecture's name, or a folder that says both."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from selector_server.encoding.bundle import ImageInput
from selector_server.errors import SetupError
from selector_tools.export import checkpoint
from selector_tools.export.building import pair
from selector_tools.export.torchvision import make_importable
from selector_tools.mistakes import in_one_line
from selector_tools.reference.frozen.towers import ImageTower


def opener(place: Path, name: str | None) -> Callable[[int | None], ImageTower]:
    """Returns what builds the tower at an image size, None for its own; then it has its weights. `place` is a
    checkpoint of the architecture `name`, or without a name a folder whose config.json names it. Raises SetupError."""
    make_importable()
    import timm  # noqa: PLC0415 - takes seconds

    if name is None:
        source = f"local-dir:{place}"
    elif timm.is_model(name):
        source = name
    else:
        close = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
        limit = f"close names are {', '.join(close)}" if close else "see timm.list_models()"
        raise SetupError("--timm", name, f"is no architecture of timm; {limit}")

    def build(image_size: int | None) -> ImageTower:
        try:
            model: Any = timm.create_model(source, pretrained=False, num_classes=0).eval()
            if image_size is None:
                _load(model, place)
            elif hasattr(model, "set_input_size"):  # others take any size, or will say so when they run
                model.set_input_size(img_size=(image_size, image_size))
        except SetupError:
            raise
        except Exception as error:  # whatever timm raises
            raise SetupError("--image-tower", place, f"timm cannot build it: {in_one_line(error)}") from error
        return _described(model, name or model.pretrained_cfg["architecture"], place, image_size)

    return build


def _load(model: Any, place: Path) -> None:
    """Loads the weights strictly, but for the classifier's, which are of no use."""
    wanted, classifiers = model.state_dict().keys(), model.pretrained_cfg.get("classifier") or ()
    names = (classifiers,) if isinstance(classifiers, str) else classifiers
    try:
        found = checkpoint.read(place)
        kept = {
            name: value
            for name, value in found.items()
            if name in wanted or not any(f".{classifier}." in f".{name}" for classifier in names)
        }
        checkpoint.fill(model, kept, place)
    except SetupError as error:
        raise SetupError("--image-tower", error.value, error.limit) from error


def _described(model: Any, name: str, place: Path, image_size: int | None) -> ImageTower:
    import timm  # noqa: PLC0415

    told, patches = model.pretrained_cfg, getattr(model, "patch_embed", None)
    height, width = pair(image_size or getattr(patches, "img_size", None) or told["input_size"][1:])
    image = ImageInput(
        height=height,
        width=width,
        channels=told["input_size"][0],
        mean=tuple(told["mean"]),
        std=tuple(told["std"]),
        fit="squash" if told.get("crop_mode") == "squash" else "crop",
        interpolation="bilinear" if told.get("interpolation") == "bilinear" else "bicubic",
    )
    return ImageTower(model, image, name, f"timm {timm.__version__} {name} of {place.name}", _patch(model))


def _patch(model: nn.Module) -> tuple[int, int] | None:
    convolution = getattr(getattr(model, "patch_embed", None), "proj", None)
    if isinstance(convolution, nn.Conv2d) and convolution.kernel_size == convolution.stride:
        return pair(convolution.kernel_size)
    return None
