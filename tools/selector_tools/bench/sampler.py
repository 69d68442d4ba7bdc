"""`selector bench sampler`: joint selection against the paper's pseudo-code, and against its own matrix products."""

import argparse
import sys
from pathlib import Path
from typing import Any

from selector_proto.contract import sub_batch_size

from selector_server.device_kinds import DEVICE_NAMES, is_device
from selector_server.machine import usable_cpus
from selector_tools.bench import harness
from selector_tools.bench.neighbours import add_busy, busy_mistake
from selector_tools.reference.flags import device_check

PAIR_CRITERIA = ("easy-reference", "hard-learner", "none", "learnability")


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "sampler",
        help="time, memory and picks of joint selection against the paper's pseudo-code",
        description="Picks from made-up candidates with the sampler, with the paper's pseudo-code and, for what could "
        "be won at all, with the sampler's matrix products alone; in turns. Another contender is the sampler with "
        "pairs that count by another criterion. Prints medians.",
    )
    parser.set_defaults(handler=run, extra="server")
    parser.add_argument("--super-batch", type=int, default=16384, help="candidates (default %(default)s)")
    parser.add_argument("--filter-ratio", type=float, default=0.8, help="share not picked (default %(default)s)")
    parser.add_argument("--dim", type=int, default=256, help="width of the embeddings (default %(default)s)")
    parser.add_argument("--chunks", type=int, default=16, help="rounds of a draw (default %(default)s)")
    parser.add_argument("--gain", type=float, default=100.0, help="multiplier on scores (default %(default)s)")
    parser.add_argument(
        "--pair-criterion",
        choices=PAIR_CRITERIA,
        default=PAIR_CRITERIA[0],
        help="by which pairs count in the draw that is compared (default %(default)s)",
    )
    parser.add_argument("--repeats", type=int, default=9, help="runs of the sampler (default %(default)s)")
    parser.add_argument("--literal-repeats", type=int, default=3, help="of the pseudo-code (default %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU (default: all that may be used)")
    parser.add_argument("--device", default="cpu", help=f"{DEVICE_NAMES} (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of candidates and noise (default %(default)s)")
    add_busy(parser)
    harness.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    a = arguments
    picks = sub_batch_size(a.super_batch, a.filter_ratio)
    mistakes = [
        (not 0 < a.filter_ratio < 1, "--filter-ratio", a.filter_ratio, "must lie between 0 and 1"),
        (a.super_batch < 2, "--super-batch", a.super_batch, "must be at least 2"),
        (a.dim < 1, "--dim", a.dim, "must be at least 1"),
        (not 1 <= a.chunks <= picks, "--chunks", a.chunks, f"must be from 1 to the number of picks, {picks}"),
        (not a.gain > 0, "--gain", a.gain, "must be positive"),
        (a.repeats < 1, "--repeats", a.repeats, "must be at least 1"),
        (
            not 1 <= a.literal_repeats <= a.repeats,
            "--literal-repeats",
            a.literal_repeats,
            f"must be from 1 to --repeats, {a.repeats}",
        ),
        (a.threads < 0, "--threads", a.threads, "must be 0 or more"),
        (a.seed < 0, "--seed", a.seed, "must be 0 or more"),
        busy_mistake(a.busy),
        device_check(a.device),
        (is_device(a.device) and not _seen(a.device), "--device", a.device, "torch sees none"),
    ]

    def measure(_: Path) -> dict[str, Any]:
        from selector_tools.bench.sampler_race import Race  # noqa: PLC0415 - heavy

        threads = a.threads or usable_cpus()
        race = Race(a.super_batch, picks, a.dim, a.chunks, a.gain, a.seed, a.device, threads, a.pair_criterion)
        return race.run(a.repeats, a.literal_repeats, a.busy, lambda text: print(text, file=sys.stderr, flush=True))

    return harness.run(a, mistakes, measure, _table)


def _seen(device: str) -> bool:
    """Whether torch sees devices of this kind."""
    import torch  # noqa: PLC0415 - heavy

    return bool(torch.get_device_module(device).is_available())


def _table(result: dict[str, Any]) -> str:
    r = result
    rows = [
        ("", "seconds", "peak MiB"),
        ("sampler", f"{r['seconds']:.3f}", f"{r['peak_mib']:.1f}"),
        ("its matrix products alone", f"{r['matmul_seconds']:.3f}", ""),
        (f"pairs by {r['setting']['pair_criterion']}", f"{r['other_pairs_seconds']:.3f}", ""),
        ("pseudo-code", f"{r['literal_seconds']:.3f}", f"{r['literal_peak_mib']:.1f}"),
    ]
    lines = [f"{name:<27}{seconds:>10}{memory:>10}" for name, seconds, memory in rows]
    same = "the same picks" if r["same_picks"] else "OTHER PICKS"
    lines.append(f"{r['speedup']:.1f} times as fast, {r['over_matmul']:.2f} times its matrix products; {same}")
    lines.append(f"pairs by {r['setting']['pair_criterion']} take {r['other_pairs_ratio']:.2f} of the sampler's time")
    if r["busy"]:
        lines.append(f"beside {r['busy']} busy processes it takes {r['slowdown']:.2f} times as long")
    lines.append(f"{r['device']}, {r['threads']} threads, load {r['load_average'][0]}")
    return "\n".join(lines)
