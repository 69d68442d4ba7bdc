"""`selector bench serve`: raw samples through the whole sidecar against a bare ONNX Runtime loop."""

import argparse
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from selector_server.device_kinds import DEVICE_NAMES
from selector_tools.bench import harness
from selector_tools.bench.neighbours import Neighbours, add_busy, busy_mistake
from selector_tools.reference.flags import device_check

if TYPE_CHECKING:
    from selector_client import Selection

    from selector_tools.bench.serve_loops import Bundles, Loop

TRIFLES = 4096  # candidates of a request to towers that do nearly no work
DRAWN, WIDTH = 16384, 256  # candidates of a draw from embeddings, and how wide those are


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "serve",
        help="the whole sidecar against a bare ONNX Runtime loop",
        description="Sends raw samples through client, socket, server, both encoders and sampler, and runs the same "
        "bundles in a bare ONNX Runtime loop in turn with it. With --busy, it also tells how much longer both "
        "these samples and a draw from embeddings take beside busy processes.",
    )
    parser.set_defaults(handler=run, extra="server,export,demo")
    parser.add_argument("--device", default="cpu", help=f"{DEVICE_NAMES} (default %(default)s)")
    parser.add_argument("--compiled", action="store_true", help="also measure torch.compile of the same model")
    add_busy(parser)
    harness.add_model(parser, repeats="interleaved runs of each")


def run(arguments: argparse.Namespace) -> int:
    a = arguments
    return harness.run(
        a, [*harness.model_mistakes(a), device_check(a.device), busy_mistake(a.busy)], partial(_measure, a), _table
    )


def _measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import numpy as np  # noqa: PLC0415 - heavy, as are the others
    import torch  # noqa: PLC0415

    from selector_server.encoding.device import Device  # noqa: PLC0415
    from selector_tools.bench import serve_loops, sidecars  # noqa: PLC0415
    from selector_tools.bench.measuring import describe, in_turns, paired_ratio  # noqa: PLC0415
    from selector_tools.bench.synthetic import Samples, embeddings  # noqa: PLC0415
    from selector_tools.export.open_clip import architecture  # noqa: PLC0415
    from selector_tools.progress import bar  # noqa: PLC0415

    machine, device = describe(a.device), Device(a.device)
    replies: list[Selection] = []
    with bar("export, warm up", None) as advance:
        source = architecture(a.open_clip, folder).build(a.image_size, None)
        bundles = serve_loops.exported(source, folder)
        samples = Samples.random(a.candidates, source.image, source.text, np.random.default_rng(0))
        micro_batch = device.kind.micro_batch
        loops = {
            "bare": (serve_loops.bare(device, bundles.learner, bundles.reference), micro_batch),
            "constants": _at_its_best(serve_loops.bare(device, bundles.reference, bundles.reference), samples.inputs),
        }
        if a.compiled:
            loops["compiled"] = _at_its_best(serve_loops.compiled(device, source, torch.float32, 2), samples.inputs)
        drawn = embeddings(DRAWN, WIDTH, seed=0) if a.busy else None
        with (
            sidecars.TimedSidecar(bundles, folder / "sidecar.log", "--device", a.device) as sidecar,
            Neighbours(a.busy) as neighbours,
        ):
            for request in (samples.arrays, samples.files, drawn):  # the first of each kind pays for pages and pools
                if request is not None:
                    sidecar.select(request)

            def whole() -> float:
                took, reply = sidecar.select(samples.arrays)
                replies.append(reply)
                return took

            contenders = {"sidecar": whole, "files": lambda: sidecar.select(samples.files)[0]} | {
                name: partial(loop.seconds, samples.inputs, size) for name, (loop, size) in loops.items()
            }
            if drawn is not None:
                contenders["draw"] = lambda: sidecar.select(drawn)[0]
                beside = {f"{name}, busy": partial(neighbours.beside, contenders[name]) for name in ("sidecar", "draw")}
                contenders |= beside
            seconds = in_turns(contenders, a.repeats, on_run=lambda name, *_: advance(1, f"measure {name}"))
        advance(0, "towers of nearly no work")
        trifle = serve_loops.exported(serve_loops.trifle(source.image, source.text.max_tokens), folder / "trifle")
        overhead, overhead_stages = _overhead(trifle, folder, a.device, a.repeats)
    compiled = {"ratio_to_compiled": paired_ratio(seconds["compiled"], seconds["sidecar"])} if a.compiled else {}
    busy = {
        f"slowdown{of}": paired_ratio(seconds[f"{name}, busy"], seconds[name])
        for of, name in (("", "sidecar"), ("_draw", "draw"))
        if a.busy
    }
    return {
        # Each is the share of the floor's throughput that the sidecar reaches.
        "throughput_ratio": paired_ratio(seconds["bare"], seconds["sidecar"]),
        "throughput_ratio_jpeg": paired_ratio(seconds["bare"], seconds["files"]),
        "ratio_to_constants": paired_ratio(seconds["constants"], seconds["sidecar"]),
        **compiled,
        # How many times as long it takes beside busy processes, for samples and for a draw from embeddings.
        "busy": a.busy,
        **busy,
        "overhead_us_per_sample": overhead,
        "samples_per_second": a.candidates / median(seconds["sidecar"]),
        "stage_seconds": sidecars.median_stages(replies),
        "overhead_stage_seconds": overhead_stages,
        "seconds": seconds,
        "setting": {
            "model": f"{a.open_clip} at {a.image_size} px, learner and reference",
            "candidates": a.candidates,
            "micro_batches": {name: size for name, (_, size) in loops.items()},
            "file": "JPEG, 224 px, quality 90",
            "overhead_candidates": TRIFLES,
        },
        **machine,
    }


def _at_its_best(loop: "Loop", inputs: dict[str, Any]) -> "tuple[Loop, int]":
    """Returns the loop with the micro-batch at which it is fastest."""
    from selector_server.encoding.bundle import PIXELS  # noqa: PLC0415
    from selector_tools.bench.serve_loops import MICRO_BATCHES  # noqa: PLC0415

    count = len(inputs[PIXELS])
    times = {}
    for size in [size for size in MICRO_BATCHES if size <= count] or [count]:
        loop.seconds(inputs, size)  # the first time pays for pages, and for compiling
        times[size] = loop.seconds(inputs, size)
    return loop, min(times, key=lambda size: times[size])


def _overhead(bundles: "Bundles", folder: Path, device: str, repeats: int) -> tuple[float, dict[str, float]]:
    """Returns the microseconds that a sample costs beside its encoding, and the seconds of a request's stages."""
    import numpy as np  # noqa: PLC0415

    from selector_tools.bench import sidecars  # noqa: PLC0415
    from selector_tools.bench.synthetic import Samples  # noqa: PLC0415

    manifest = bundles.learner.manifest
    samples = Samples.random(TRIFLES, manifest.image, manifest.text, np.random.default_rng(0), files=False)
    with sidecars.TimedSidecar(bundles, folder / "trifle.log", "--device", device) as sidecar:
        sidecar.select(samples.arrays)
        seconds, replies = zip(*(sidecar.select(samples.arrays) for _ in range(max(3, repeats))), strict=True)
    return 1e6 * median(seconds) / TRIFLES, sidecars.median_stages(replies)


def _table(result: dict[str, Any]) -> str:
    ratios = [name for name in result if "ratio" in name or "slowdown" in name]
    lines = [f"{name:>24} {result[name]:.3f}" for name in (*ratios, "overhead_us_per_sample", "samples_per_second")]
    lines += [f"{stage:>24} {seconds:.4f} s" for stage, seconds in result["stage_seconds"].items()]
    return "\n".join(lines)
