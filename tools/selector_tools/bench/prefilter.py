"""`selector bench prefilter`: what a selection costs when known reference losses leave out most candidates first."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selector_tools.bench import harness

if TYPE_CHECKING:
    from selector_client import Selection

    from selector_server.encoding.bundle import ImageInput, TextInput
    from selector_tools.bench.serve_loops import Bundles
    from selector_tools.bench.sidecars import Ask, TimedSidecar

FILTER_RATIO = 0.9


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "prefilter",
        help="cost of a selection that leaves out most candidates by their known reference losses",
        description="Sends JPEG files and texts whose reference embeddings are cached, with a prefilter and without, "
        f"in turns; a share of {FILTER_RATIO} is not picked. Learner and reference have different random weights.",
    )
    parser.set_defaults(handler=run, extra="server,export,demo")
    parser.add_argument("--prefilter", type=float, default=2.5, help="candidates a pick (default %(default)s)")
    harness.add_model(parser, repeats="interleaved requests of each")
    parser.set_defaults(candidates=160)


def run(arguments: argparse.Namespace) -> int:
    a = arguments
    mistakes = [
        *harness.model_mistakes(a),
        (a.candidates < 10, "--candidates", a.candidates, "must be at least 10"),
        (not 1 <= a.prefilter <= 10, "--prefilter", a.prefilter, "must be 1 to 10"),
    ]
    return harness.run(a, mistakes, partial(_measure, a), _table)


def _measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from selector_tools.bench.measuring import describe, in_turns, paired_ratio  # noqa: PLC0415 - heavy, as are others
    from selector_tools.bench.sidecars import TimedSidecar  # noqa: PLC0415
    from selector_tools.progress import bar  # noqa: PLC0415

    machine = describe("cpu")
    with bar("export", 2 + 3 * a.repeats) as advance:
        bundles = _bundles(a, folder)
        manifest = bundles.learner.manifest
        batches = _batches(a.candidates, a.repeats, manifest.image, manifest.text)
        advance(1, "fill the cache")
        with TimedSidecar(bundles, folder / "sidecar.log", "--cache", str(folder / "cache")) as sidecar:
            fill = sidecar.asking(filter_ratio=FILTER_RATIO, criterion="easy-reference")
            for batch in batches:
                fill(batch)
                advance(1, "fill the cache")
            sidecar.wait_until_cached(a.candidates * a.repeats)
            asks = (
                sidecar.asking(filter_ratio=FILTER_RATIO, prefilter=a.prefilter),
                sidecar.asking(filter_ratio=FILTER_RATIO),
            )
            for ask in asks:
                ask(batches[0])  # the first of each pays for pages and pools
            advance(1, "measure")
            some, every = (_Requests(sidecar, ask, iter(batches)) for ask in asks)
            in_turns({"with": some.one, "without": every.one}, a.repeats, on_run=lambda *_: advance(1, "measure"))
    return {
        "encoded_ratio": sum(some.encoded) / sum(every.encoded),
        "decoded_ratio": sum(some.decoded) / sum(every.decoded),
        "seconds_ratio": paired_ratio(some.seconds, every.seconds),
        "picks_in_common": _in_common(some.replies, every.replies),
        "with_prefilter": some.summary(),
        "without": every.summary(),
        "setting": {
            "model": f"{a.open_clip} at {a.image_size} px, learner and fp32 reference of different random weights",
            "candidates": a.candidates,
            "filter_ratio": FILTER_RATIO,
            "prefilter": a.prefilter,
            "requests": a.repeats,
            "file": "JPEG, 224 px, quality 90",
            "encoded": "images and texts, by the sidecar's metrics",
            "decoded": "candidates less those that nobody looked at, by the replies",
        },
        **machine,
    }


def _bundles(a: argparse.Namespace, folder: Path) -> "Bundles":
    """Exports two models that disagree, so that their losses tell candidates apart."""
    import torch  # noqa: PLC0415

    from selector_tools.bench.serve_loops import exported  # noqa: PLC0415
    from selector_tools.export.open_clip import architecture  # noqa: PLC0415

    source = architecture(a.open_clip, folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        learner, reference = (source.build(a.image_size, None) for _ in range(2))
    return exported(learner, folder, reference)


def _batches(candidates: int, count: int, image: "ImageInput", text: "TextInput") -> list[dict[str, Any]]:
    """Returns super-batches of files and texts as `Selector.select` takes them. No id is in two of them."""
    import numpy as np  # noqa: PLC0415

    from selector_tools.bench.synthetic import Samples, sentences  # noqa: PLC0415

    rng = np.random.default_rng(0)
    return [
        Samples.random(candidates, image, text, rng).files
        | {"texts": sentences(candidates, rng), "ids": np.arange(candidates) + number * candidates}
        for number in range(count)
    ]


@dataclass
class _Requests:
    """The requests of one contender: their seconds, the images and texts that the sidecar encoded for each, the
    candidates that it decoded, and the replies."""

    sidecar: "TimedSidecar"
    ask: "Ask"
    batches: Iterator[dict[str, Any]]
    seconds: list[float] = field(default_factory=list)
    encoded: list[int] = field(default_factory=list)
    decoded: list[int] = field(default_factory=list)
    replies: "list[Selection]" = field(default_factory=list)

    def one(self) -> float:
        """Returns the seconds of the next request."""
        batch, before = next(self.batches), self.sidecar.encoded()
        seconds, reply = self.ask(batch)
        self.seconds.append(seconds)
        self.encoded.append(self.sidecar.encoded() - before)
        self.decoded.append(len(batch["ids"]) - reply.not_examined)
        self.replies.append(reply)
        return seconds

    def summary(self) -> dict[str, Any]:
        """Returns what its requests cost."""
        from selector_tools.bench.sidecars import median_stages  # noqa: PLC0415

        return {
            "seconds": self.seconds,
            "encoded": self.encoded,
            "decoded": self.decoded,
            "stage_seconds": median_stages(self.replies),
        }


def _in_common(some: "list[Selection]", every: "list[Selection]") -> float:
    """Returns the share of picks that are the same; both drew from the same super-batches with the same noise."""
    import numpy as np  # noqa: PLC0415

    return float(np.mean([np.isin(a.indices, b.indices).mean() for a, b in zip(some, every, strict=True)]))


def _table(result: dict[str, Any]) -> str:
    lines = [f"{name:>24} {result[name]:.3f}" for name in ("encoded_ratio", "decoded_ratio", "seconds_ratio")]
    lines.append(f"{'picks_in_common':>24} {result['picks_in_common']:.2f}")
    for name in ("with_prefilter", "without"):
        stages = ", ".join(f"{stage} {seconds:.4f}" for stage, seconds in result[name]["stage_seconds"].items())
        lines.append(f"{name:>24}: {sum(result[name]['seconds']):.2f} s; stages of a request: {stages}")
    lines.append(f"{result['device']}, {result['threads']} threads, load {result['load_average'][0]}")
    return "\n".join(lines)
