"""The transports, by the scheme of the URL that names where weights travel. To add one, write a file with a `Store` and
a function that opens it, and add its line to TRANSPORTS."""

from collections.abc import Callable
from dataclasses import dataclass

from selector_proto.weights import folder_store, redis_store, redis_url
from selector_proto.weights.link import HIDDEN, LinkError, LinkOptions, masked, split
from selector_proto.weights.store import Store


@dataclass(frozen=True)
class Transport:
    """A way that weights travel.

    `forms` tells people what its URLs look like. `open` takes a URL, the options, and whether the store will be written
    to. It connects to nothing yet, tells nothing secret, and raises LinkError for what cannot be.
    """

    forms: str
    open: Callable[[str, LinkOptions, bool], Store]


TRANSPORTS: dict[str, Transport] = {
    **dict.fromkeys(redis_url.SCHEMES, Transport(redis_url.FORMS, redis_store.open_redis)),
    "file": Transport(folder_store.FORMS, folder_store.open_folder),
}


def open_store(url: str, options: LinkOptions | None = None, *, write: bool = False) -> Store:
    """The store at `url`; a folder must exist, and be writable if `write`. Connects to nothing yet. Raises LinkError, a
    ValueError, for what cannot be."""
    options = options or LinkOptions()
    transport = _transport(url)
    if not 0 < options.timeout_seconds <= 3600:
        raise LinkError(options.timeout_seconds, "must be above 0 and at most 3600", "timeout_seconds")
    return transport.open(url, options, write)


def check_link(url: str, options: LinkOptions | None = None) -> None:
    """Raises LinkError for what cannot be, as `open_store` does for a reader."""
    open_store(url, options).close()


def _transport(url: str) -> Transport:
    parts, shown = split(url), masked(url)
    forms = "must be " + " or ".join(dict.fromkeys(transport.forms for transport in TRANSPORTS.values()))
    if not url.isprintable():
        raise LinkError(shown, f"{forms}; it has a line break, or another character that cannot be printed")
    if parts is None:
        raise LinkError(shown, forms)
    if (transport := TRANSPORTS.get(parts.scheme)) is None:
        raise LinkError(shown, f"{forms}; its scheme is unknown")
    if shown == HIDDEN or parts.fragment:
        written = "an IPv6 address stands in brackets; in a password / is %2F, ? %3F, # %23, [ %5B and ] %5D"
        raise LinkError(shown, f"{forms}; {written}")
    return transport
