"""`selector reference fit` trains a reference on a curated pool and writes its bundle."""

import argparse
import json
import warnings
from collections import deque
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from selector_tools.export import command as export
from selector_tools.export import flags as model_flags
from selector_tools.mistakes import any_mistake, exit_status
from selector_tools.reference import flags as shared

if TYPE_CHECKING:
    from selector_tools.export.torch_model import TorchModel

COMMAND = "selector reference fit"
_LAST = 50  # the mean loss of so many last steps is told


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
    shared.add_device(parser)
    shared.add_exclusions(parser)
    add("--memory-bytes", type=int, default=8 << 30, metavar="N", help="largest pool, decoded (default %(default)s)")


def run(flags: argparse.Namespace) -> int:
    checks = [
        (flags.steps < 1, "--steps", flags.steps, "must be at least 1"),
        (not 2 <= flags.batch <= shared.MAX_BATCH, "--batch", flags.batch, f"must be 2 to {shared.MAX_BATCH}"),
        (not 0 < flags.learning_rate <= 10, "--learning-rate", flags.learning_rate, "must be above 0 and at most 10"),
        (not 0 <= flags.weight_decay <= 10, "--weight-decay", flags.weight_decay, "must be 0 to 10"),
        (flags.memory_bytes < 1, "--memory-bytes", flags.memory_bytes, "must be at least 1"),
        *shared.device_checks(flags),
        shared.exclusions_check(flags),
    ]
    if any_mistake(COMMAND, checks) or model_flags.any_wrong(flags, COMMAND):
        return 2
    return exit_status(COMMAND, lambda: _run(flags))


def _run(flags: argparse.Namespace) -> None:
    with export.built(flags, COMMAND) as (_, model):
        _fit(flags, model)


def _fit(flags: argparse.Namespace, model: "TorchModel") -> None:
    import torch  # noqa: PLC0415 - heavy, as are the others

    from selector_server.encoding.decoder import Decoder  # noqa: PLC0415
    from selector_server.encoding.device import Device  # noqa: PLC0415
    from selector_server.encoding.preprocess import Preprocessor, load_tokenizer  # noqa: PLC0415
    from selector_server.machine import usable_cpus  # noqa: PLC0415
    from selector_tools.export.bundle_writer import export_reference  # noqa: PLC0415
    from selector_tools.pools import reading  # noqa: PLC0415
    from selector_tools.pools.opening import open_pool  # noqa: PLC0415
    from selector_tools.progress import bar, pace  # noqa: PLC0415
    from selector_tools.reference.training import Recipe, fit  # noqa: PLC0415

    threads = flags.threads or usable_cpus()
    torch.set_num_threads(threads)
    Device(flags.device, threads)  # fails now if it is not there
    pool, excluded = open_pool(flags.pool), shared.exclusions(flags)
    with Decoder(threads) as decoder:
        tokenizer = load_tokenizer(model.tokenizer)
        preprocessor = Preprocessor(model.image, model.text, tokenizer, "", reading.LIMITS, decoder)
        pixels, tokens = reading.read_pool(preprocessor, pool, flags.pool, excluded, flags.memory_bytes)
    shared.tell_excluded(COMMAND, excluded)
    rates = flags.learning_rate, flags.weight_decay
    recipe, began = Recipe(flags.steps, flags.batch, *rates, flags.seed, flags.device), perf_counter()
    last: deque[float] = deque(maxlen=_LAST)
    with bar("train", flags.steps) as advance:

        def on_step(loss: float) -> None:
            last.append(loss)
            advance(1, f"train, loss {sum(last) / len(last):.3f}")

        fit(model, pixels, tokens, recipe, on_step)
    seconds = perf_counter() - began
    # A model at a resolution of its own keeps the state that it came from; the reference is what was trained.
    trained = replace(model, state=model.module.state_dict(), resizes={})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = export_reference(trained, flags.out, precision=flags.precision)
    took, mean = pace(flags.steps * flags.batch, seconds), sum(last) / len(last)
    if flags.json:
        figures = {"pairs": len(pixels), "steps": flags.steps, "seconds": seconds, "loss": mean}
        written = {"bundle": str(exported.bundle.path), "fingerprint": exported.bundle.fingerprint}
        print(json.dumps(figures | written | {"exclusions": excluded.as_json()}))
        return
    print(f"trained on {len(pixels):,} pairs, {flags.steps:,} steps {took}")
    print(f"loss {mean:.3f} over the last {len(last)} steps")
    print(f"bundle: {exported.bundle.path}, fingerprint {exported.bundle.fingerprint[:16]}")
