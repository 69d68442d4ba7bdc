"""Opens what --image-tower and --text-tower name."""

import argparse

from selector_server.errors import SetupError
from selector_tools.export import model_folder
from selector_tools.export.building import Architecture
from selector_tools.export.torch_model import TorchModel
from selector_tools.reference.frozen import timm_tower, transformers_towers
from selector_tools.reference.frozen.towers import joined

_IMAGE = "--image-tower"


def architecture(flags: argparse.Namespace) -> Architecture:
    """Returns the model of both frozen towers, whose projections are random. Raises SetupError."""
    place, name = flags.image_tower, flags.timm
    if place.is_dir():
        of_timm = "architecture" in model_folder.read(_IMAGE, place / "config.json")
        if name is not None:
            raise SetupError("--timm", name, f"{place} is a folder, which says it itself; leave it out")
    elif name is None:
        raise SetupError(_IMAGE, place, "is a file: name its architecture by --timm, such as vit_small_patch16_224")
    else:
        of_timm = True
    image = timm_tower.opener(place, name) if of_timm else transformers_towers.image_opener(place)
    text = transformers_towers.text_tower(flags.text_tower, flags.max_tokens)

    def build(image_size: int | None, _patch_size: int | None) -> TorchModel:
        return joined(image(image_size), text, flags.projection_width, flags.batch)

    return Architecture(build, "bicubic", antialias=True, has_weights=True)
