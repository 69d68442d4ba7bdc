"""`selector bench transport`: payloads to another process by shared memory, by a chunked stream, by one message."""

import argparse
from pathlib import Path
from typing import Any

from selector_tools.bench import harness

MIB = 1 << 20


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "transport",
        help="shared memory against gRPC",
        description="Sends payloads to a server process that sums every byte (as 64-bit words), and counts until the "
        "sum is back.",
    )
    parser.set_defaults(handler=run, extra="server")
    parser.add_argument("--mib", type=int, nargs="+", default=[64, 256], help="payload sizes (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="of each way, interleaved (default %(default)s)")
    harness.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    a = arguments
    mistakes = [
        (not all(1 <= mib <= 1024 for mib in a.mib), "--mib", a.mib, "each must be 1 to 1024"),
        (a.repeats < 1, "--repeats", a.repeats, "must be at least 1"),
    ]
    return harness.run(a, mistakes, lambda _: _measure(a.mib, a.repeats), _table)


def _measure(sizes: list[int], repeats: int) -> dict[str, Any]:
    import tempfile  # noqa: PLC0415

    from selector_tools.bench.measuring import describe  # noqa: PLC0415
    from selector_tools.bench.transport_ends import Trial, serving  # noqa: PLC0415

    memory = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it
    machine, by_size = describe("cpu"), {}
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder, serving(folder) as address:
        for mib in sizes:
            with Trial(address, folder, mib * MIB) as trial:
                by_size[str(mib)] = _summary(trial.run(repeats), mib * MIB)
    return {
        "shm_over_memcpy": max(size["shm_over_memcpy"] for size in by_size.values()),
        "shm_over_unary": min(size["shm_over_unary"] for size in by_size.values()),
        "mib": by_size,
        "setting": {
            "repeats": repeats,
            "sum": "uint64 words by numpy, two threads, every byte, in the clock of all three ways, not of memcpy",
            "memcpy": "one np.copyto between warm buffers, on one thread, in the client's process",
            "folder": "in memory" if memory.is_dir() else "on disk: there is no /dev/shm",
        },
        **machine,
    }


def _summary(seconds: dict[str, list[float]], size: int) -> dict[str, Any]:
    from selector_tools.bench.measuring import medians  # noqa: PLC0415 - heavy

    middle = medians(seconds)
    return {
        "gb_per_second": {way: size / value / 1e9 for way, value in middle.items()},
        "seconds": seconds,
        "shm_over_memcpy": middle["shared_memory"] / middle["memcpy"],
        "shm_over_unary": middle["unary"] / middle["shared_memory"],
    }


def _table(result: dict[str, Any]) -> str:
    lines = [f"shm_over_memcpy {result['shm_over_memcpy']:.2f}, shm_over_unary {result['shm_over_unary']:.1f}"]
    for mib, size in result["mib"].items():
        speeds = ", ".join(f"{way} {speed:.2f}" for way, speed in size["gb_per_second"].items())
        lines.append(f"{mib:>5} MiB, GB/s: {speeds}")
    return "\n".join(lines)
