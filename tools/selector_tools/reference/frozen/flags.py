"""The flags of `selector reference fit` for frozen towers, and checks of their values; needs no torch."""

import argparse
from pathlib import Path
from typing import Any

from selector_tools.mistakes import Check

_MAX_WIDTH = 4096
_FETCH = "nothing is downloaded here; fetch it first, for example by `hf download NAME --local-dir FOLDER`"
# What the towers bring themselves, or cannot have.
_REFUSED = ("checkpoint", "patch_size", "keep_patches", "pad_token")


def add(parser: Any, sources: Any) -> None:
    """Adds --image-tower to the sources of models, and what it needs to the parser."""
    image = "a pretrained tower to freeze: a folder of transformers or timm, or a checkpoint file of timm (--timm)"
    sources.add_argument("--image-tower", type=Path, metavar="PATH", help=image)
    group = parser.add_argument_group(
        "for --image-tower; both towers stay as they are, a projection of each is trained"
    )
    text = "a folder of transformers with a sentence encoder, to freeze (needed)"
    group.add_argument("--text-tower", type=Path, metavar="PATH", help=text)
    group.add_argument("--timm", metavar="NAME", help="timm's name of the architecture, if the image tower is a file")
    width = "of the embeddings (default %(default)s)"
    group.add_argument("--projection-width", type=int, default=256, metavar="N", help=width)


def checks(flags: argparse.Namespace) -> list[Check]:
    """Checks the values of `add`'s flags, and of those that do not go with them."""
    image, text, width = flags.image_tower, flags.text_tower, flags.projection_width
    if image is None:
        alone = (("--text-tower", text), ("--timm", flags.timm))
        return [(value is not None, flag, value, "only --image-tower needs it") for flag, value in alone]
    found: list[Check] = [
        (not image.exists(), "--image-tower", image, f"must be a local folder or file; {_FETCH}"),
        (text is None, "--text-tower", "missing", "--image-tower needs it"),
        (text is not None and not text.is_dir(), "--text-tower", text, f"must be a local folder; {_FETCH}"),
        (not 1 <= width <= _MAX_WIDTH, "--projection-width", width, f"must be 1 to {_MAX_WIDTH}"),
    ]
    for name in _REFUSED:
        value = getattr(flags, name)
        limit = "the towers of --image-tower and --text-tower bring their own; leave it out"
        found.append((value is not None, f"--{name.replace('_', '-')}", value, limit))
    once = "frozen towers see each image once, before the training; leave it out"
    augmented = ((flags.shift > 0, "shift"), (flags.crop < 1, "crop"), (flags.flip, "flip"))
    return [*found, *((on, f"--{name}", getattr(flags, name), once) for on, name in augmented)]
