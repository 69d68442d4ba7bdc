"""What trainer and sidecar must agree on beside the messages: how many are picked, how long ids and words are,
what is local."""

import math
import re
from ipaddress import AddressValueError, IPv6Address

DEFAULT_FILTER_RATIO = 0.8
# The longest sample id that is a string, in bytes: a key of the reference cache holds it beside the reference's
# fingerprint.
MAX_ID_BYTES = 240
MAX_TAG_BYTES = 64
# The most characters of the words about the first candidate that is excluded for a reason.
MAX_WORDS = 300

# The longest path of a unix socket, in bytes: Linux keeps 108 with the zero at its end.
MAX_SOCKET_PATH_BYTES = 107
BRACKETS = "an IPv6 address must stand in brackets, as in [::1]:50051"

_LOCAL = re.compile(r"(unix:.*|((dns|ipv4):(///)?)?(localhost|127\.\d+\.\d+\.\d+)(:\d+)?|(ipv6:)?\[::1\](:\d+)?)")


def sub_batch_size(candidates: int, filter_ratio: float) -> int:
    """The number of picks, b = floor(B (1 - f) + 1e-6), of B candidates at the filter ratio f.

    The guard keeps B (1 - f) from falling just below a whole number: computed naively, as in the paper's
    pseudo-code, f = 0.8 gives 2047 instead of 2048 picks a chunk.
    """
    return math.floor(candidates * (1 - filter_ratio) + 1e-6)


def caption_id(sample: object, number: int | None) -> str:
    """The id of a sample with the caption of this number, of those that it has; None if it has one only. The reference
    cache knows the pair by it, so that a trainer and whoever fills the cache must say it alike, for ever."""
    return str(sample) if number is None else f"{sample}#{number}"


def is_local(address: str) -> bool:
    """Whether only this host's processes reach a gRPC address: it is loopback or a unix socket."""
    return _LOCAL.fullmatch(address) is not None


def lacks_brackets(address: str) -> bool:
    """Whether it is an IPv6 address, with a port or without, that lacks its brackets: gRPC would take all of it for the
    host, and add port 443."""
    bare = address.removeprefix("ipv6:")
    return _is_ipv6(bare) or _is_ipv6(bare.rpartition(":")[0])


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except AddressValueError:
        return False
    return True


def socket_path(address: str) -> str | None:
    """The path of a unix socket's address, unix:path or unix:///path; None if the address is another."""
    return address.removeprefix("unix:").removeprefix("//") if address.startswith("unix:") else None


def printable(words: str) -> str:
    """The words about an excluded candidate as one line of at most MAX_WORDS characters, which harms no terminal, no
    log and no message."""
    plain = "".join(c if c.isprintable() else " " for c in words[:MAX_WORDS])
    return plain if len(words) <= MAX_WORDS else plain[: MAX_WORDS - 1] + "…"
