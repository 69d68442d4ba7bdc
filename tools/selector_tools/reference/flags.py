"""Flags, and checks of their values, that the commands share which run or train a reference."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selector_server.device_kinds import DEVICE_NAMES, is_device
from selector_tools.mistakes import Check

if TYPE_CHECKING:
    from selector_tools.pools.captions import Captions
    from selector_tools.pools.exclusions import Exclusions

MAX_BATCH = 1 << 16
MIN_CACHE_BYTES = 1 << 20


def add_pool(parser: Any, *, required: bool = True) -> None:
    """Adds --pool."""
    parser.add_argument(
        "--pool",
        required=required,
        metavar="PATH",
        help="an .npz file, a .tar, .tar.gz, .parquet or .arrow shard, a folder of shards, or a quoted pattern, braces "
        "too; a path, or a URL such as s3://bucket/shards/",
    )


def add_samples(parser: Any) -> None:
    """Adds --ids and --captions, which say how the samples of shards are called and where their captions are."""
    kinds = "what a trainer sends as ids of WebDataset samples: __key__, or the shard's name before it (the default)"
    parser.add_argument("--ids", choices=("shard/key", "key"), default="shard/key", help=kinds)
    places = (
        "where the captions of WebDataset samples are: txt, one in the .txt (the default); txt-lines, one in each of "
        "its lines; json:ENTRY, a text or a list of texts in the .json, or in this column of a table. A "
        "trainer that sends lists draws one of each"
    )
    parser.add_argument("--captions", type=_captions, metavar="PLACE", help=places)


def _captions(place: str) -> "Captions":
    from selector_tools.pools.captions import Captions  # noqa: PLC0415 - not on a trainer

    try:
        return Captions.at(place)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_exclusions(parser: Any) -> None:
    """Adds what happens to pairs that cannot be used, and --json, which tells about them."""
    add = parser.add_argument
    add("--strict", action="store_true", help="stop at the first pair that cannot be used")
    share = "stop if a larger share of the pairs cannot be used (default %(default)s)"
    add("--max-excluded-share", type=float, default=0.5, metavar="X", help=share)
    add("--json", action="store_true", help="print one JSON object")


def add_encoding(parser: Any) -> None:
    """Adds --reference, --pool, and where and how the reference runs."""
    add = parser.add_argument
    add("--reference", type=Path, required=True, metavar="BUNDLE", help="the reference's bundle")
    add_pool(parser)
    add_device(parser)
    add_exclusions(parser)
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
        exclusions_check(flags),
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


def exclusions_check(flags: argparse.Namespace) -> Check:
    """Checks --max-excluded-share."""
    share = flags.max_excluded_share
    return not 0 < share <= 1, "--max-excluded-share", share, "must be above 0 and at most 1"


def exclusions(flags: argparse.Namespace) -> "Exclusions":
    """Returns what counts pairs that cannot be used, as the flags say."""
    from selector_tools.pools.exclusions import Exclusions  # noqa: PLC0415 - not on a trainer

    return Exclusions(flags.strict, flags.max_excluded_share)


def out_check(flags: argparse.Namespace) -> Check:
    """Checks that --out is not there yet."""
    return flags.out.exists(), "--out", flags.out, "must not exist yet"


def tell(command: str, what: str) -> None:
    """Prints one line that is no error to stderr."""
    print(f"{command}: {what}", file=sys.stderr)


def tell_excluded(command: str, excluded: "Exclusions") -> None:
    """Prints what cannot be used, if anything."""
    for line in excluded.lines():
        tell(command, line)
