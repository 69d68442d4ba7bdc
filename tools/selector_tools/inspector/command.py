"""`selector inspect` serves the inspector's page on this machine, of a sidecar elsewhere or of what one recorded."""

import argparse
import hashlib
import hmac
import secrets
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selector_client import Untrusted
from selector_proto.contract import is_local

from selector_tools.access import access_of, add_flags
from selector_tools.mistakes import any_mistake

if TYPE_CHECKING:
    from selector_server.inspection.source import Source


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "inspect",
        help="show what a running sidecar selects, or what one recorded, as a page in a browser",
        description="Serves a page on this machine, prints its address, and goes on until Ctrl-C. The page is of a "
        "running sidecar that was started with --inspect true, or of a folder that one wrote with --record.",
        epilog="The address is that of --admin-listen if the sidecar has one. The page's address holds a token made "
        "for it, so that nobody else of this machine can open it.",
    )
    parser.add_argument("address", metavar="ADDRESS|FOLDER", help="host:port or unix:/path of a sidecar, or a folder")
    parser.add_argument(
        "--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="of the page; loopback (default 127.0.0.1:0)"
    )
    add_flags(parser)
    parser.set_defaults(handler=run, extra="server,inspect")


def run(arguments: argparse.Namespace) -> int:
    from selector_server.errors import SelectorError  # noqa: PLC0415 - not installed on a trainer
    from selector_server.inspection.web.server import PageServer  # noqa: PLC0415

    local = is_local(arguments.listen) and ":" in arguments.listen and not arguments.listen.startswith("unix:")
    if any_mistake(
        "selector inspect",
        [
            (
                not local,
                "--listen",
                arguments.listen,
                "must be loopback with a port, as 127.0.0.1:0 is; reach it by ssh -L",
            )
        ],
    ):
        return 2
    try:
        source = _source(arguments)
    except (SelectorError, Untrusted, ValueError) as error:
        print(f"selector inspect: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    token = secrets.token_urlsafe(32)
    try:
        server = PageServer(source, arguments.listen, _Only(token))
    except (OSError, ValueError) as error:
        print(f"selector inspect: --listen is {arguments.listen}; must be a free host:port: {error}", file=sys.stderr)
        return 2
    print(f"{server.url}#token={token}", flush=True)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()
    server.close()
    return 0


def _source(arguments: argparse.Namespace) -> "Source":
    """Raises SelectorError, Untrusted and ValueError."""
    from selector_tools.inspector.remote_source import RemoteSource  # noqa: PLC0415 - as above

    if (folder := Path(arguments.address)).is_dir():
        from selector_tools.inspector.recorded_source import RecordedSource  # noqa: PLC0415 - as above

        return RecordedSource(folder)
    return RemoteSource(arguments.address, access_of(arguments))


class _Only:
    """Lets one token through."""

    def __init__(self, token: str) -> None:
        self._digest = hashlib.sha256(token.encode()).digest()

    def __call__(self, header: str | None) -> None:
        from selector_server.errors import Unauthenticated  # noqa: PLC0415 - as above

        scheme, _, token = (header or "").partition(" ")
        given = hashlib.sha256(token.strip().encode()).digest()
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, self._digest):
            raise Unauthenticated("authorization", "not the page's token", "open the address that was printed")
