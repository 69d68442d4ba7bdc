"""`selector reference fit`: trains a reference on a curated pool and writes its bundle."""

import argparse
import warnings
from collections import deque
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from selector_server.device_kinds import DEVICE_NAMES
from selector_tools.export import command as export
from selector_tools.export import flags as model_flags
from selector_tools.mistakes import any_mistake, exit_status
from selector_tools.reference import flags as shared

if TYPE_CHECKING:
    from selector_server.encoding.source import Source

COMMAND = "selector reference fit"
_LAST = 50  # steps whose mean loss is told


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "fit",
        help="train a reference on a curated pool",
        description="Trains a model from random weights, or from --checkpoint, on a small curated pool that fits into "
        "memory, and writes the reference's bundle. Larger ones are trained elsewhere and written by selector export.",
    )
    parser.set_defaults(handler=run, extra="server,export,reference")
    model_flags.add_model(parser)
    shared.add_pool(parser)
    add = parser.add_argument_group("training").add_argument
    add("--steps", type=int, default=2000, metavar="N", help="(default %(default)s)")
    add("--batch", type=int, default=256, metavar="N", help="pairs of a step (default %(default)s)")
    add("--learning-rate", type=float, default=1e-3, metavar="X", help="at its peak (default %(default)s)")
    add("--weight-decay", type=float, default=1e-4, metavar="X", help="of matrices (default %(default)s)")
    add("--device", default="cpu", help=f"{DEVICE_NAMES} (default %(default)s)")
    add("--threads", type=int, default=0, metavar="N", help="CPU threads (default: all)")
    add("--memory-bytes", type=int, default=8 << 30, metavar="N", help="largest pool, decoded (default %(default)s)")


def run(flags: argparse.Namespace) -> int:
    checks = [
        (flags.steps < 1, "--steps", flags.steps, "must be at least 1"),
        (not 2 <= flags.batch <= shared.MAX_BATCH, "--batch", flags.batch, f"must be 2 to {shared.MAX_BATCH}"),
        (not 0 < flags.learning_rate <= 10, "--learning-rate", flags.learning_rate, "must be above 0 and at most 10"),
        (not 0 <= flags.weight_decay <= 10, "--weight-decay", flags.weight_decay, "must be 0 to 10"),
        (not 0 <= flags.threads <= 4096, "--threads", flags.threads, "must be 0 to 4096"),
        (flags.memory_bytes < 1, "--memory-bytes", flags.memory_bytes, "must be at least 1"),
        shared.device_check(flags.device),
    ]
    if any_mistake(COMMAND, checks) or model_flags.any_wrong(flags, COMMAND):
        return 2
    return exit_status(COMMAND, lambda: _run(flags))


def _run(flags: argparse.Namespace) -> None:
    with export.built(flags, COMMAND) as (_, source):
        _fit(flags, source)


def _fit(flags: argparse.Namespace, source: "Source") -> None:
    import torch  # noqa: PLC0415 - heavy, as are the others

    from selector_server.encoding.decoder import Decoder  # noqa: PLC0415
    from selector_server.encoding.device import Device  # noqa: PLC0415
    from selector_server.encoding.export import export_reference  # noqa: PLC0415
    from selector_server.encoding.preprocess import Limits, Preprocessor, load_tokenizer  # noqa: PLC0415
    from selector_server.machine import usable_cpus  # noqa: PLC0415
    from selector_tools.pools import reading  # noqa: PLC0415
    from selector_tools.pools.opening import open_pool  # noqa: PLC0415
    from selector_tools.progress import bar  # noqa: PLC0415
    from selector_tools.reference.training import Recipe, fit  # noqa: PLC0415

    threads = flags.threads or usable_cpus()
    torch.set_num_threads(threads)
    Device(flags.device, threads)  # fails now if it is not there
    pool, limits = open_pool(flags.pool), Limits(reading.MAX_IMAGE_PIXELS, reading.MAX_DECODED_BYTES)
    with Decoder(threads) as decoder:
        tokenizer = load_tokenizer(source.tokenizer)
        preprocessor = Preprocessor(source.image, source.text, tokenizer, "", limits, decoder)
        pixels, tokens, skipped = reading.read_pool(preprocessor, pool, flags.pool, flags.memory_bytes)
    shared.tell_skipped(COMMAND, skipped)
    rates = flags.learning_rate, flags.weight_decay
    recipe, began = Recipe(flags.steps, flags.batch, *rates, flags.seed, flags.device), perf_counter()
    last: deque[float] = deque(maxlen=_LAST)
    with bar("train", flags.steps) as advance:

        def on_step(loss: float) -> None:
            last.append(loss)
            advance(1, f"train, loss {sum(last) / len(last):.3f}")

        fit(source, pixels, tokens, recipe, on_step)
    seconds = perf_counter() - began
    # A source at a resolution of its own keeps the state that it came from; the reference is what was trained.
    trained = replace(source, state=source.module.state_dict(), resizes={})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = export_reference(trained, flags.out, precision=flags.precision)
    rate = flags.steps * flags.batch / seconds
    print(f"trained on {len(pixels):,} pairs, {flags.steps:,} steps in {seconds:.1f} s ({rate:,.0f} samples/s)")
    print(f"loss {sum(last) / len(last):.3f} over the last {len(last)} steps")
    print(f"bundle: {exported.bundle.path}, fingerprint {exported.bundle.fingerprint[:16]}")
