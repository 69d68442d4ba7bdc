"""The flags of `selector export`, most of which `selector reference fit` has too, and the checks that need nothing but
their values."""

import argparse
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from selector_proto.resize import MAX_PATCH
from selector_proto.v1 import selector_pb2 as pb

from selector_tools.mistakes import Check, any_mistake

# The losses that a bundle may name, as the contract has them.
LOSSES = tuple(name.removeprefix("LOSS_").lower() for name, code in pb.Loss.items() if code)

# What these flags say cannot be read off a module of one's own; the models of the libraries tell it themselves.
_MODULE_ONLY = (
    "channels",
    "max_tokens",
    "vocabulary",
    "logit_scale",
    "logit_scale_is_log",
    "logit_bias",
    "loss",
    "tokens_at",
)
_OPEN_CLIP_ONLY = ("pretrained", "force_quick_gelu")
_MAX_SIDE = 4096
_MAX_PATCH_SIDE = math.isqrt(MAX_PATCH)


def add(parser: Any) -> None:
    """Adds all flags of `selector export` to an argparse parser."""
    add_model(parser)
    add_bundle(parser)
    choices = ("learner", "reference")
    parser.add_argument("--role", choices=choices, default="learner", help="(default %(default)s)")


def add_bundle(parser: Any) -> None:
    """Adds the flags of the bundle that is written."""
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="the bundle's folder; must not exist yet")
    add("--name", help="of the model, in the bundle (default: the architecture's)")
    add("--precision", choices=("fp32", "fp16", "bf16"), default="fp32", help="of the towers (default %(default)s)")
    add("--licence", default="", help="of the weights, noted in the bundle")


def add_model(parser: Any, *, required: bool = True) -> Any:
    """Adds the flags of the model. Returns the group of sources, one of which says which model, so that a command can
    add sources of its own; without `required` there may be none."""
    sources = _add_sources(parser, required)
    add = parser.add_argument
    add(
        "--checkpoint",
        type=Path,
        metavar="PATH",
        help="weights at full resolution: .safetensors, a torch file, or a folder",
    )
    add(
        "--strip-prefix",
        default="",
        metavar="TEXT",
        help="take only what the checkpoint calls so, and take this off its names",
    )
    add("--add-prefix", default="", metavar="TEXT", help="put this before the names in the checkpoint")
    add("--image-size", type=int, metavar="N", help="pixels of a side; smaller than the trainer's: low resolution")
    add("--patch-size", type=int, metavar="N", help="pixels of a patch's side")
    add("--keep-patches", type=float, metavar="SHARE", help="look at this share of the patches, at full resolution")
    add("--interpolation", choices=("bilinear", "bicubic"), help="of resized parameters (default: the library's)")
    add("--antialias", action=argparse.BooleanOptionalAction, help="of resized parameters (default: the library's)")
    add("--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json (default: the source's, if it has one)")
    add("--seed", type=int, default=0, help="of random weights, where there are no others (default %(default)s)")
    add("--mean", metavar="X[,X,X]", help="of pixels between 0 and 1 (default: the source's, 0.5 for --module)")
    add("--std", metavar="X[,X,X]", help="likewise")
    add("--fit", choices=("squash", "crop"), help="how files come to the image size (default: the source's)")
    add("--pad-token", type=int, metavar="ID", help="fills short texts (default: the source's, 0 for --module)")
    add("--end-token", type=int, metavar="ID", help="ends texts that were cut (default: the source's)")
    return sources


def _add_sources(parser: Any, required: bool) -> Any:
    sources = parser.add_mutually_exclusive_group(required=required)
    sources.add_argument(
        "--open-clip", metavar="NAME", help="an architecture of open_clip (ViT-B-16), hf-hub:NAME or local-dir:FOLDER"
    )
    sources.add_argument(
        "--transformers",
        metavar="PATH",
        help="a folder with config.json (and weights), a config.json, or a name on the Hugging Face hub",
    )
    sources.add_argument(
        "--module", metavar="MODULE:FACTORY", help="a function that returns a torch module; see docs/export.md"
    )
    add = parser.add_argument_group("for --open-clip").add_argument
    add("--pretrained", metavar="TAG", help="weights that open_clip knows for the architecture, such as openai")
    add("--force-quick-gelu", action="store_true", help="compute with QuickGELU, as the trainer of the same flag does")
    add = parser.add_argument_group("for --module").add_argument
    add("--channels", type=int, choices=(1, 3), help="of an image (default 3)")
    add("--max-tokens", type=int, metavar="N", help="tokens of a text (needed)")
    add("--vocabulary", type=int, metavar="N", help="number of token ids (needed)")
    add("--logit-scale", metavar="NAME", help="its entry in the state_dict (default logit_scale)")
    add("--logit-scale-is-log", action=argparse.BooleanOptionalAction, help="stored as its logarithm (default)")
    add("--logit-bias", metavar="NAME", help="its entry in the state_dict (default logit_bias, if it is there)")
    add("--loss", choices=LOSSES, help="(default: sigmoid with a bias, softmax without)")
    add("--tokens-at", metavar="SUBMODULE", help="whose output is [B, prefix + patches, W]; for --keep-patches")
    return sources


def any_wrong(flags: argparse.Namespace, command: str, also: Collection[str] = ()) -> bool:
    """Prints the first value of the model's or the bundle's flags that is wrong, and returns whether there is one;
    needs no torch. `also` names flags of --module that the command's own source takes too."""
    checks: list[Check] = [
        (flags.out.exists(), "--out", flags.out, "must not exist yet"),
        *model_checks(flags, also),
        _length("--name", flags.name, 1),
        _length("--licence", flags.licence, 0),
    ]
    return any_mistake(command, checks)


def model_checks(flags: argparse.Namespace, also: Collection[str] = ()) -> list[Check]:
    """Checks the values of the flags of `add_model`; `also` as in `any_wrong`."""
    own = flags.module is not None
    checks: list[Check] = [
        _within("--image-size", flags.image_size, 1, _MAX_SIDE),
        _within("--patch-size", flags.patch_size, 1, _MAX_PATCH_SIDE),
        _within("--seed", flags.seed, 0, 2**63 - 1),
        _within("--pad-token", flags.pad_token, 0, 2**24 - 1),
        _within("--end-token", flags.end_token, 0, 2**24 - 1),
        (not 0 < (share := flags.keep_patches or 1) <= 1, "--keep-patches", share, "must be above 0 and at most 1"),
        (flags.keep_patches == 0, "--keep-patches", flags.keep_patches, "must be above 0 and at most 1"),
    ]
    for size in ("image_size", "patch_size"):
        limit = "looks at the full resolution; leave --keep-patches or this out"
        both = not own and flags.keep_patches is not None and getattr(flags, size) is not None
        checks.append((both, f"--{size.replace('_', '-')}", getattr(flags, size), f"--keep-patches {limit}"))
    checkpoint, tokenizer = flags.checkpoint, flags.tokenizer
    checks += [
        (checkpoint is not None and not checkpoint.exists(), "--checkpoint", checkpoint, "must be a file or a folder"),
        (tokenizer is not None and not tokenizer.is_file(), "--tokenizer", tokenizer, "must be a file"),
        (
            flags.pretrained is not None and checkpoint is not None,
            "--pretrained",
            flags.pretrained,
            "there is a --checkpoint; leave one of the two out",
        ),
    ]
    for name in ("strip_prefix", "add_prefix") if checkpoint is None else ():
        value, flag = getattr(flags, name), f"--{name.replace('_', '-')}"
        checks.append((value != "", flag, value, "there is no --checkpoint with names to change"))
    for name in _OPEN_CLIP_ONLY if flags.open_clip is None else ():
        value, flag = getattr(flags, name), f"--{name.replace('_', '-')}"
        checks.append((bool(value), flag, value, "only --open-clip takes it"))
    checks += _channel_values("--mean", flags.mean, -math.inf) + _channel_values("--std", flags.std, 0.0)
    for name in set(_MODULE_ONLY).difference(also):
        value, flag = getattr(flags, name), f"--{name.replace('_', '-')}"
        checks.append((not own and value is not None, flag, value, "only --module needs it"))
    for name in ("max_tokens", "vocabulary"):
        value, flag = getattr(flags, name), f"--{name.replace('_', '-')}"
        checks.append((own and value is None, flag, "missing", "--module needs it"))
        checks.append(_within(flag, value, 1, 2**24))
    return checks


def numbers(text: str | None) -> tuple[float, ...] | None:
    """Reads numbers such as "0.5,0.5,0.5". Raises ValueError."""
    return None if text is None else tuple(float(part) for part in text.split(","))


def _within(flag: str, value: int | None, low: int, high: int) -> Check:
    return value is not None and not low <= value <= high, flag, value, f"must be {low} to {high}"


def _length(flag: str, value: str | None, least: int) -> Check:
    wrong = value is not None and not least <= len(value) <= 128
    return wrong, flag, repr(value), f"must have {least} to 128 characters"


def _channel_values(flag: str, text: str | None, above: float) -> list[Check]:
    try:
        values = numbers(text) or (1.0,)
    except ValueError:
        values = ()
    fine = len(values) in (1, 3) and all(math.isfinite(value) and value > above for value in values)
    more = " above 0" if above == 0 else ""
    return [(not fine, flag, text, f"must be one number{more}, or three separated by commas")]
