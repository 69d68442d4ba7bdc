"""`selector bench load`: the sidecar under more trainers than it can serve."""

import argparse
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from selector_tools.bench import harness

if TYPE_CHECKING:
    from selector_client.selecting.candidates import Candidates

PARAMETERS = 1e6  # in each of learner and reference
REQUESTS = 8  # different ones that each trainer sends


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "load",
        help="the sidecar at and past saturation",
        description="Drives a real sidecar to its peak and past it with concurrent trainers, each side on one core: "
        "goodput, how fast requests are refused, memory, wrong answers, and recovery after kill -9. By default the "
        "trainers send raw samples (16 px) for two models of a million parameters.",
    )
    parser.set_defaults(handler=run, extra="server,export,demo")
    parser.add_argument("--candidates", type=int, default=128, metavar="B", help="of a request (default %(default)s)")
    parser.add_argument("--dim", type=int, default=0, metavar="D", help="send embeddings of this width instead")
    parser.add_argument("--trainers", type=int, default=4, help="each with a channel of its own (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each step (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of peak and loads (default %(default)s)")
    parser.add_argument("--soak", type=float, default=40.0, help="seconds at twice the peak (default %(default)s)")
    harness.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    a = arguments
    mistakes = [
        (not 5 <= a.candidates <= 65536, "--candidates", a.candidates, "must be 5 to 65536"),
        (not 0 <= a.dim <= 8192, "--dim", a.dim, "must be 1 to 8192, or 0 for raw samples"),
        (not 1 <= a.trainers <= 64, "--trainers", a.trainers, "must be 1 to 64"),
        (not 0.1 <= a.seconds <= 600, "--seconds", a.seconds, "must be 0.1 to 600"),
        (not 1 <= a.repeats <= 100, "--repeats", a.repeats, "must be 1 to 100"),
        (not 1 <= a.soak <= 86400, "--soak", a.soak, "must be 1 to 86400"),
    ]
    return harness.run(a, mistakes, partial(_measure, a), _table)


def _measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from selector_tools.bench import learners, pinning  # noqa: PLC0415
    from selector_tools.bench import load_phases as phases  # noqa: PLC0415 - heavy, as are the others
    from selector_tools.bench.load_trainers import Request, Trainers  # noqa: PLC0415
    from selector_tools.bench.measuring import describe  # noqa: PLC0415
    from selector_tools.bench.sidecars import LoadedSidecar  # noqa: PLC0415
    from selector_tools.progress import bar  # noqa: PLC0415

    machine = describe("cpu")
    with bar("export", 5 + a.repeats) as advance:
        flags = learners.bundles(folder, PARAMETERS) if not a.dim else ()
        candidates = _candidates(a.candidates, a.dim, a.trainers * REQUESTS)
        requests = [Request.of(one, seed) for seed, one in enumerate(candidates)]
        shares = [requests[number :: a.trainers] for number in range(a.trainers)]
        with (
            pinning.apart() as cores,
            LoadedSidecar(folder, cores and cores[0], *flags) as sidecar,
            Trainers(sidecar.address, shares) as trainers,
        ):
            advance(1, "without load")
            trainers.learn()
            advance(1, "ramp")
            ramp = phases.ramp(trainers, sidecar, a.seconds)
            best = max(ramp, key=lambda n: ramp[n].goodput)
            peaks, rounds = [], []
            for _ in range(a.repeats):
                advance(1, "peak, and loads of 0.5 to 2 of it")
                peaks.append(phases.peak(trainers, sidecar, best, a.seconds))
                rounds.append(phases.loads(trainers, sidecar, peaks[-1].goodput, a.seconds))
            peaks.append(phases.peak(trainers, sidecar, best, a.seconds))
            peak = median(window.goodput for window in peaks)
            advance(1, "soak")
            soaked, growth = phases.soak(trainers, sidecar, 2 * peak, a.soak)
            advance(1, "kill -9")
            killed, recovery_seconds = phases.recovery(trainers, sidecar, 2 * peak)
            advance(1)
    loads = {str(factor): list(windows) for factor, *windows in zip(phases.FACTORS, *rounds, strict=True)}
    twices = [windows[-1] for windows in rounds]
    twice = phases.figures([*twices, soaked])
    windows = [*ramp.values(), *peaks, *chain(*rounds), soaked]
    outcomes = [*killed, *(outcome for window in windows for outcome in window.outcomes)]
    return {
        "goodput_ratio": phases.goodput_ratio(peaks, twices),
        "reject_p99_ms": twice["reject_p99_ms"],
        "reject_client_p99_ms": twice["reject_client_p99_ms"],
        **growth,
        "wrong_answers": sum(outcome.wrong for outcome in outcomes),
        "recovery_seconds": recovery_seconds,
        "peak": {"selections_per_second": peak, "candidates_per_second": peak * a.candidates, "in_flight": best},
        "ramp": {str(n): window.goodput for n, window in ramp.items()},
        "loads": {factor: phases.figures(windows) for factor, windows in loads.items()},
        "rounds": {
            "peak": [window.goodput for window in peaks],
            **{factor: [window.goodput for window in windows] for factor, windows in loads.items()},
        },
        "soak": phases.figures([soaked]) | {"seconds": a.soak},
        "recovery_status": phases.statuses(killed),
        "checked_answers": sum(outcome.code == "OK" for outcome in outcomes),
        "setting": {
            "candidates": a.candidates,
            "sent": f"embeddings of width {a.dim}" if a.dim else "raw samples, 16 px, 16 tokens",
            "models": "none" if a.dim else f"learner and reference of {PARAMETERS:g} parameters",
            "payload_bytes": sum(map(len, requests[0].messages)),
            "trainers": a.trainers,
            "different_requests": len(requests),
            "seconds": a.seconds,
            "cores": "not pinned" if cores is None else {"sidecar": cores[0], "trainers": cores[1]},
        },
        **machine,
    }


def _candidates(size: int, dim: int, count: int) -> "list[Candidates]":
    """Returns `count` super-batches of embeddings [size, dim], or of raw samples where `dim` is 0."""
    import numpy as np  # noqa: PLC0415 - heavy, as are the others
    from selector_client.selecting.candidates import Candidates, ModelEmbeddings  # noqa: PLC0415

    from selector_tools.bench import synthetic  # noqa: PLC0415
    from selector_tools.bench.learners import IMAGE, TEXT  # noqa: PLC0415

    if not dim:
        rng = np.random.default_rng(0)
        samples = (synthetic.Samples.random(size, IMAGE, TEXT, rng, files=False) for _ in range(count))
        return [Candidates.samples(one.pixels, one.tokens) for one in samples]
    found = []
    for seed in range(count):
        scores = synthetic.candidates(size, dim, seed)
        assert scores.learner is not None
        assert scores.reference is not None
        pair = zip((scores.learner, scores.reference), (synthetic.LEARNER, synthetic.REFERENCE), strict=True)
        learner, reference = (ModelEmbeddings(m.image.numpy(), m.text.numpy(), *logit) for m, logit in pair)
        found.append(Candidates.embeddings(learner, reference))
    return found


def _table(result: dict[str, Any]) -> str:
    headline = ("goodput_ratio", "reject_p99_ms", "reject_client_p99_ms", "rss_growth", "recovery_seconds")
    lines = [f"{name:>22} {_shown(result[name])}" for name in headline]
    lines.append(f"{'wrong_answers':>22} {result['wrong_answers']} of {result['checked_answers']}")
    selections, candidates = (result["peak"][f"{name}_per_second"] for name in ("selections", "candidates"))
    lines.append(f"{'peak':>22} {selections:.1f} selections/s, {candidates:.0f} candidates/s")
    columns = ("selections_per_second", "accepted_p50_ms", "accepted_p99_ms", "reject_p99_ms", "reject_client_p99_ms")
    lines.append("  ".join(["load", *columns, "status"]))
    for factor, load in result["loads"].items():
        cells = [f"{_shown(load[name]):>{len(name)}}" for name in columns]
        status = ", ".join(f"{code} {count}" for code, count in sorted(load["status"].items()))
        lines.append("  ".join([f"{factor:>4}", *cells, status]))
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
