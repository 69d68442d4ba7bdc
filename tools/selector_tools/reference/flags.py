"""Flags, and checks of their values, that the commands share which run or train a reference."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selector_server.device_kinds import DEVICE_NAMES, is_device
from selector_tools.mistakes import Check

if TYPE_CHECKING:
    from selector_tools.pools.reading import Skipped

MAX_BATCH = 1 << 16
MIN_CACHE_BYTES = 1 << 20


def add_pool(parser: Any) -> None:
    """Adds --pool."""
    parser.add_argument(
        "--pool", required=True, metavar="PATH", help="an .npz file, a .tar shard, a folder of shards or a pattern"
    )


def add_encoding(parser: Any) -> None:
    """Adds --reference, --pool, and where and how the reference runs."""
    add = parser.add_argument
    add("--reference", type=Path, required=True, metavar="BUNDLE", help="the reference's bundle")
    add_pool(parser)
    add_device(parser)
    add("--batch", type=int, default=256, metavar="N", help="pairs read at once (default %(default)s)")


def add_device(parser: Any) -> None:
    """Adds --device and --threads."""
    add = parser.add_argument
    add("--device", default="cpu", help=f"{DEVICE_NAMES}; never falls back (default %(default)s)")
    add("--threads", type=int, default=0, metavar="N", help="CPU threads (default: all)")


def add_cache_bytes(parser: Any) -> None:
    """Adds --cache-bytes."""
    help_ = "largest cache (default %(default)s)"
    parser.add_argument("--cache-bytes", type=int, default=32 << 30, metavar="N", help=help_)


def encoding_checks(flags: argparse.Namespace) -> list[Check]:
    """Checks the values of add_encoding's flags."""
    return [
        *device_checks(flags),
        (not 1 <= flags.batch <= MAX_BATCH, "--batch", flags.batch, f"must be 1 to {MAX_BATCH}"),
    ]


def device_checks(flags: argparse.Namespace) -> list[Check]:
    """Checks the values of add_device's flags."""
    threads = (not 0 <= flags.threads <= 4096, "--threads", flags.threads, "must be 0 to 4096")
    return [device_check(flags.device), threads]


def device_check(device: str) -> Check:
    """Checks the value of --device."""
    return not is_device(device), "--device", device, f"must be {DEVICE_NAMES}"


def cache_bytes_check(flags: argparse.Namespace) -> Check:
    """Checks --cache-bytes."""
    size = flags.cache_bytes
    return not MIN_CACHE_BYTES <= size <= 1 << 46, "--cache-bytes", size, f"must be {MIN_CACHE_BYTES} to {1 << 46}"


def out_check(flags: argparse.Namespace) -> Check:
    """Checks that --out is not there yet."""
    return flags.out.exists(), "--out", flags.out, "must not exist yet"


def tell(command: str, what: str) -> None:
    """Prints one line that is no error to stderr."""
    print(f"{command}: {what}", file=sys.stderr)


def tell_skipped(command: str, skipped: "Skipped") -> None:
    """Prints what could not be read, if anything."""
    for line in skipped.lines():
        tell(command, line)
