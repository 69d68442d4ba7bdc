"""`selector reference quantise` writes an int8 variant, and tells what it costs and saves."""

import argparse
import statistics
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from selector_tools.mistakes import any_mistake, exit_status
from selector_tools.reference import flags as shared

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from selector_server.encoding.bundle import Bundle

COMMAND = "selector reference quantise"
_MOST_BYTES = 4 << 30
_TIMED, _RUNS = 256, 7


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "quantise",
        help="an int8 variant for CPUs",
        description="Writes a bundle with int8 matrices, unless it ranks the pool's pairs otherwise than the original "
        "does (rank correlation below 0.99).",
    )
    parser.set_defaults(handler=run, extra="server,reference")
    add = parser.add_argument
    add("--reference", type=Path, required=True, metavar="BUNDLE", help="the reference's bundle, in fp32")
    shared.add_pool(parser)
    add("--out", type=Path, required=True, metavar="DIR", help="the new bundle's folder; must not exist yet")
    add("--samples", type=int, default=2000, metavar="N", help="compare on the first N pairs (default %(default)s)")


def run(flags: argparse.Namespace) -> int:
    checks = [
        shared.out_check(flags),
        (flags.samples < 100, "--samples", flags.samples, "must be at least 100"),
    ]
    if any_mistake(COMMAND, checks):
        return 2
    return exit_status(COMMAND, lambda: _quantise(flags))


def _quantise(flags: argparse.Namespace) -> None:
    from selector_tools.embedding import embedder  # noqa: PLC0415
    from selector_tools.pools.exclusions import Exclusions  # noqa: PLC0415
    from selector_tools.pools.opening import open_pool  # noqa: PLC0415
    from selector_tools.pools.reading import read_pool  # noqa: PLC0415
    from selector_tools.reference.int8 import quantise_reference  # noqa: PLC0415 - heavy, as are the others

    with embedder(flags.reference, "cpu", 0) as reference:
        pool, excluded = open_pool(flags.pool), Exclusions()
        most = flags.samples
        _, pixels, tokens = read_pool(reference.preprocessor, pool, flags.pool, excluded, _MOST_BYTES, most)
        bundle = reference.model.bundle
    small, correlation = quantise_reference(bundle, flags.out, pixels, tokens)
    shared.tell_excluded(COMMAND, excluded)
    (auc, seconds), (small_auc, small_seconds) = _compared(bundle, small, pixels, tokens)
    sizes = [sum(file.stat().st_size for file in each.path.glob("*.onnx*")) / 2**20 for each in (bundle, small)]
    print(f"rank correlation with {bundle.manifest.precision}: {correlation:.4f} on {len(pixels):,} pairs")
    print(f"AUC {small_auc:.3f} (before {auc:.3f}), {sizes[1]:.1f} MiB (before {sizes[0]:.1f})")
    print(f"{seconds / small_seconds:.2f} times as fast (median of {_RUNS} runs in turns)")
    print(f"bundle: {small.path}")


def _compared(
    first: "Bundle", second: "Bundle", pixels: "NDArray[np.uint8]", tokens: "NDArray[np.int64]"
) -> list[tuple[float, float]]:
    """Returns for each bundle its AUC and the median seconds of an encoding."""
    from selector_tools.reference.int8 import on_cpu  # noqa: PLC0415
    from selector_tools.reference.separation import separate  # noqa: PLC0415

    models = [on_cpu(each) for each in (first, second)]
    texts = [row.tobytes() for row in tokens]
    aucs = [separate(model.encode(pixels, tokens, model.constant_weights()), texts, 0).auc for model in models]
    seconds: list[list[float]] = [[], []]
    for _ in range(_RUNS):
        for model, runs in zip(models, seconds, strict=True):
            began = perf_counter()
            model.raw(pixels[:_TIMED], tokens[:_TIMED], model.constant_weights())
            runs.append(perf_counter() - began)
    return [(auc, statistics.median(runs)) for auc, runs in zip(aucs, seconds, strict=True)]
