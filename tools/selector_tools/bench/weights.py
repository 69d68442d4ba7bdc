"""`selector bench weights`: how long a version takes from the trainer to being served, and what that costs others."""

import argparse
from pathlib import Path
from typing import Any

from selector_tools.bench import harness


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "weights",
        help="how fast and how cheaply new weights are served",
        description="Publishes weights through a real Redis-protocol server to a real sidecar: time until they are "
        "served, time the trainer is held up, latency of requests during swaps, memory after many, many readers.",
    )
    parser.set_defaults(handler=run, extra="server,export,demo")
    parser.add_argument("--params", type=float, default=90e6, metavar="N", help="of the learner (default %(default)g)")
    parser.add_argument(
        "--swap-params",
        type=float,
        default=5e6,
        metavar="N",
        help="of the learner that is swapped under load (default %(default)g)",
    )
    parser.add_argument("--repeats", type=int, default=7, metavar="R", help="timed versions (default %(default)s)")
    parser.add_argument(
        "--requests", type=int, default=1000, help="with swaps, and as many without (default %(default)s)"
    )
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="swaps of a soak test (default %(default)s)")
    parser.add_argument("--readers", default="1,2,4,8", metavar="N,N", help="that fetch at once (default %(default)s)")
    harness.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    a = arguments
    counts = [int(text) if text.isdecimal() else 0 for text in a.readers.split(",")]
    between = "must be 1e4 to 2e9"
    mistakes = [
        (not 1e4 <= a.params <= 2e9, "--params", a.params, between),
        (not 1e4 <= a.swap_params <= 2e9, "--swap-params", a.swap_params, between),
        (a.repeats < 1, "--repeats", a.repeats, "must be at least 1"),
        (a.requests < 1, "--requests", a.requests, "must be at least 1"),
        (a.soak < 0 or a.soak == 1, "--soak", a.soak, "must be 0 or at least 2"),
        (not all(1 <= n <= 64 for n in counts), "--readers", a.readers, "must be numbers from 1 to 64, with commas"),
    ]
    return harness.run(a, mistakes, lambda folder: _measure(a, counts, folder), _table)


def _measure(a: argparse.Namespace, counts: list[int], folder: Path) -> dict[str, Any]:
    import redis  # noqa: PLC0415 - heavy, as are the others

    from selector_tools.bench import sidecars, weights_phases, weights_readers, weights_swaps  # noqa: PLC0415
    from selector_tools.bench.learners import bundles, learner  # noqa: PLC0415
    from selector_tools.bench.measuring import describe  # noqa: PLC0415
    from selector_tools.export.bundle_writer import export_learner  # noqa: PLC0415
    from selector_tools.processes import redis_server  # noqa: PLC0415
    from selector_tools.progress import bar  # noqa: PLC0415

    machine = describe("cpu")
    with bar("export", 5 + bool(a.soak)) as advance, redis_server() as url:
        module, source = learner(a.params)
        bundle = export_learner(source, folder / "large").bundle.path
        flags = bundles(folder, a.swap_params)
        advance(1, "trainer")
        blocked = weights_phases.trainer_blocked(module, url)
        advance(1, "publish to serving")
        phases = weights_phases.publish_to_serving(module, bundle, url, folder, a.repeats)
        advance(1, "readers")
        readers = weights_readers.measured(module, url, counts, a.repeats)
        advance(1, "requests during swaps")
        swaps = weights_swaps.during_swaps(flags, url, folder, a.swap_params, a.requests)
        soak = {}
        if a.soak:
            advance(1, "soak")
            soak = weights_swaps.soak(flags, url, folder, a.swap_params, a.soak)
        with redis.Redis.from_url(url) as client:
            server = client.info("server")
        advance(1)
    machine["versions"] |= {"redis-py": redis.__version__, server.get("server_name", "redis"): _version(server)}
    return {
        **{name: phases[name] for name in ("publish_to_serving_seconds", "over_raw")},
        **{name: blocked[name] for name in ("trainer_blocked_over_memcpy", "trainer_blocked_over_torch_copy")},
        "p99_during_swap_ratio": swaps["p99_during_swap_ratio"],
        "rss_growth": soak.get("rss_growth"),
        "publish": phases,
        "trainer_seconds": blocked["trainer_seconds"],
        "readers": readers,
        "during_swaps": swaps,
        "soak": soak or None,
        "setting": {
            "parameters": sum(value.numel() for value in module.state_dict().values()),
            "tensors": len(module.state_dict()),
            "swap_parameters": a.swap_params,
            "candidates": weights_swaps.CANDIDATES,
            "canary_samples": weights_phases.CANARY_SAMPLES,
            "poll_seconds": sidecars.POLL_SECONDS,
        },
        **machine,
    }


def _version(server: dict[str, Any]) -> str:
    return str(server.get("valkey_version") or server.get("redis_version"))


def _table(result: dict[str, Any]) -> str:
    lines = [f"{name:>32} {value:.3f}" for name, value in result.items() if isinstance(value, float)]
    lines += [f"{phase:>32} {seconds:.4f} s" for phase, seconds in result["publish"]["phase_seconds"].items()]
    for one in result["readers"]:
        rate = f"{one['gigabytes_per_second']:.2f} GB/s, Redis {one['redis_cpu_seconds']:.2f} CPU s"
        lines.append(f"{one['readers']:>24} readers {one['seconds']:.3f} s, {rate}")
    return "\n".join(lines)
