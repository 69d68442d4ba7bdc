"""`selector reference fit` trains a reference on a curated pool and writes its bundle."""

import argparse
from typing import Any

from selector_tools.export import command as export
from selector_tools.export import flags as model_flags
from selector_tools.mistakes import any_mistake, exit_status
from selector_tools.reference import flags as shared
from selector_tools.reference.frozen import flags as frozen

COMMAND = "selector reference fit"


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "fit",
        help="train a reference on a curated pool",
        description="Trains a model from random weights, or from --checkpoint, or projections on frozen pretrained "
        "towers, on a small curated pool that fits into memory, and writes the reference's bundle. Larger ones are "
        "trained elsewhere and written by selector export.",
    )
    parser.set_defaults(handler=run, extra="server,export,reference")
    sources = model_flags.add_model(parser)
    model_flags.add_bundle(parser)
    frozen.add(parser, sources)
    shared.add_pool(parser)
    add = parser.add_argument_group("training").add_argument
    add("--steps", type=int, default=2000, metavar="N", help="(default %(default)s)")
    add("--batch", type=int, default=256, metavar="N", help="pairs of a step (default %(default)s)")
    add("--learning-rate", type=float, default=1e-3, metavar="X", help="at its peak (default %(default)s)")
    add("--weight-decay", type=float, default=1e-4, metavar="X", help="of matrices (default %(default)s)")
    shared.add_device(parser)
    shared.add_exclusions(parser)
    add("--memory-bytes", type=int, default=8 << 30, metavar="N", help="largest pool, decoded (default %(default)s)")
    add = parser.add_argument_group("augmentation of training images, by the seed").add_argument
    add("--shift", type=int, default=0, metavar="N", help="move by up to so many pixels (default %(default)s)")
    crop = "crop to between this share of the area and all of it (default %(default)s: no crop)"
    add("--crop", type=float, default=1.0, metavar="SHARE", help=crop)
    add("--flip", action="store_true", help="mirror every other image: left becomes right, as do letters")
    add = parser.add_argument_group("validation").add_argument
    share = "share of the pool to hold out, drawn by id and seed; 0 for none (default 0.05, if these are enough pairs)"
    add("--validation", type=float, metavar="SHARE", help=share)
    add("--validate-every", type=int, metavar="N", help="look at them every N steps (default: a 40th of --steps)")
    patience = "stop after so many looks without a better rank of the own caption; 0 for never (default %(default)s)"
    add("--patience", type=int, default=20, metavar="N", help=patience)


def run(flags: argparse.Namespace) -> int:
    every = flags.validate_every
    checks = [
        (flags.steps < 1, "--steps", flags.steps, "must be at least 1"),
        (not 2 <= flags.batch <= shared.MAX_BATCH, "--batch", flags.batch, f"must be 2 to {shared.MAX_BATCH}"),
        (not 0 < flags.learning_rate <= 10, "--learning-rate", flags.learning_rate, "must be above 0 and at most 10"),
        (not 0 <= flags.weight_decay <= 10, "--weight-decay", flags.weight_decay, "must be 0 to 10"),
        (flags.memory_bytes < 1, "--memory-bytes", flags.memory_bytes, "must be at least 1"),
        (flags.shift < 0, "--shift", flags.shift, "must be 0 or more"),
        (not 0 < flags.crop <= 1, "--crop", flags.crop, "must be above 0 and at most 1"),
        (not 0 <= (flags.validation or 0) <= 0.5, "--validation", flags.validation, "must be 0 to 0.5"),
        (every is not None and every < 1, "--validate-every", every, "must be at least 1"),
        (flags.patience < 0, "--patience", flags.patience, "must be 0 or more"),
        *shared.device_checks(flags),
        shared.exclusions_check(flags),
        *frozen.checks(flags),
    ]
    also = () if flags.image_tower is None else ("max_tokens",)
    if any_mistake(COMMAND, checks) or model_flags.any_wrong(flags, COMMAND, also):
        return 2
    return exit_status(COMMAND, lambda: _run(flags))


def _run(flags: argparse.Namespace) -> None:
    from selector_tools.reference.fitting import fit_and_export  # noqa: PLC0415 - heavy
    from selector_tools.reference.frozen.architecture import architecture  # noqa: PLC0415

    opened = None if flags.image_tower is None else architecture
    with export.built(flags, COMMAND, opened) as (_, model):
        fit_and_export(flags, export.named(model, flags), COMMAND)
