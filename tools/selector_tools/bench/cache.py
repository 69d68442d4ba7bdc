"""`selector bench cache`: what a second epoch costs when the reference's embeddings are cached."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selector_tools.bench import harness

if TYPE_CHECKING:
    from selector_client import Selection

    from selector_tools.bench.sidecars import TimedSidecar


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "cache",
        help="cost of a second epoch with cached references",
        description="Sends each super-batch with sample ids twice: the first time the reference embeds it, the second "
        "time it need not. The second epoch runs one request behind the first, so that both meet the same machine. "
        "What it sends is in the cache by then: the wait for that is not measured.",
    )
    parser.set_defaults(handler=run, extra="server,export,demo")
    harness.add_model(parser, repeats="requests of an epoch")


def run(arguments: argparse.Namespace) -> int:
    return harness.run(arguments, harness.model_mistakes(arguments), partial(_measure, arguments), _table)


def _measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import numpy as np  # noqa: PLC0415 - heavy, as are the others

    from selector_tools.bench import serve_loops, sidecars  # noqa: PLC0415
    from selector_tools.bench.measuring import describe, paired_ratio  # noqa: PLC0415
    from selector_tools.bench.synthetic import Samples  # noqa: PLC0415
    from selector_tools.export.open_clip import architecture  # noqa: PLC0415
    from selector_tools.progress import bar  # noqa: PLC0415

    machine, rng = describe("cpu"), np.random.default_rng(0)
    with bar("export", 1 + a.repeats) as advance:
        source = architecture(a.open_clip, folder).build(a.image_size, None)
        bundles = serve_loops.exported(source, folder)
        batches = [
            Samples.random(a.candidates, source.image, source.text, rng, files=False).arrays
            | {"ids": np.arange(a.candidates) + number * a.candidates}
            for number in range(a.repeats)
        ]
        warm = Samples.random(a.candidates, source.image, source.text, rng, files=False).arrays
        store = folder / "cache"
        with sidecars.TimedSidecar(bundles, folder / "sidecar.log", "--cache", str(store)) as sidecar:
            sidecar.select(warm)
            first, second = two_epochs(sidecar, batches, lambda: advance(1, "both epochs"))
    return {
        "second_epoch_ratio": paired_ratio(second.seconds, first.seconds),
        "write_seconds": _write_seconds(folder, a.candidates, bundles.reference),
        "first_epoch": first.summary(),
        "second_epoch": second.summary(),
        "setting": {
            "model": f"{a.open_clip} at {a.image_size} px, learner and fp32 reference",
            "candidates": a.candidates,
            "requests": a.repeats,
            "write_seconds": "of one request, on a thread of its own while the next request is under way",
        },
        **machine,
    }


def two_epochs(
    sidecar: "TimedSidecar", batches: Sequence[dict[str, Any]], advance: Callable[[], None]
) -> "tuple[Epoch, Epoch]":
    """Sends each super-batch twice, the second time one request behind the first, once its samples are in the cache:
    the sidecar writes them on a thread of its own while it answers the next request."""
    first, second, written = Epoch(), Epoch(), 0
    for new, old in zip([*batches, None], [None, *batches], strict=True):
        if new is not None:
            first.add(sidecar.select(new))
        if old is not None:
            written += len(old["ids"])
            sidecar.wait_until_cached(written)
            second.add(sidecar.select(old))
        advance()
    return first, second


@dataclass
class Epoch:
    """The requests of one epoch: their seconds, and the replies."""

    seconds: list[float] = field(default_factory=list)
    replies: "list[Selection]" = field(default_factory=list)

    def add(self, timed: "tuple[float, Selection]") -> None:
        self.seconds.append(timed[0])
        self.replies.append(timed[1])

    def summary(self) -> dict[str, Any]:
        from selector_tools.bench.sidecars import median_stages  # noqa: PLC0415

        cached = sum(reply.cached_references for reply in self.replies)
        return {"seconds": self.seconds, "cached": cached, "stage_seconds": median_stages(self.replies)}


def _write_seconds(folder: Path, candidates: int, reference: Any) -> float:
    """Returns the time that writing the embeddings of one request takes."""
    import numpy as np  # noqa: PLC0415

    from selector_server.encoding.reference_cache import ReferenceCache  # noqa: PLC0415
    from selector_tools.bench.measuring import seconds_of  # noqa: PLC0415

    width, rng = reference.manifest.width, np.random.default_rng(0)
    image, text = (rng.standard_normal((candidates, width)).astype(np.float16) for _ in range(2))
    store = ReferenceCache(folder / "written", "bench", reference.fingerprint, width, 1 << 30)
    seconds = seconds_of(lambda: store.put([b"s%d" % n for n in range(candidates)], image, text))
    store.close()
    return seconds


def _table(result: dict[str, Any]) -> str:
    lines = [f"second_epoch_ratio {result['second_epoch_ratio']:.3f}, write_seconds {result['write_seconds']:.4f}"]
    for name in ("first_epoch", "second_epoch"):
        epoch = result[name]
        stages = ", ".join(f"{stage} {seconds:.4f}" for stage, seconds in epoch["stage_seconds"].items())
        lines.append(f"{name}: {sum(epoch['seconds']):.2f} s, {epoch['cached']} cached; stages of a request: {stages}")
    return "\n".join(lines)
