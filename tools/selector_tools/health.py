"""`selector health` tells whether a sidecar serves; the health check of an image or of a process manager calls it."""

import argparse
import os
import sys
from collections.abc import Mapping
from typing import Any

import grpc
from selector_client import Access, Untrusted
from selector_client.selecting.channel import open_channel
from selector_proto.contract import lacks_brackets

from selector_tools.access import access_flags, add_flags
from selector_tools.mistakes import any_mistake, seconds

READY = "selector.v1.SelectorService"
ADDRESS, ADDRESS_FORM = "localhost:50051", "must be host:port, an IPv6 address in brackets, or unix:/path"
# Whoever listens at all addresses is asked at either loopback: at [::] nobody answers where IPv6 is off.
EVERY = ("0.0.0.0", "[::]")  # noqa: S104 - nothing binds here
# These settings of `selector serve` say where health is answered, in the order in which they count.
SETTINGS = ("SELECTOR_HEALTH_LISTEN", "SELECTOR_LISTEN")


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "health",
        help="exit 0 if a running sidecar serves, 1 if not",
        description="Asks grpc.health.v1 once. Exits 0 if the answer is SERVING, else 1 with one line that says why.",
    )
    parser.add_argument(
        "address", nargs="?", help=f"host:port or unix:/path (default ${', $'.join(SETTINGS)}, {ADDRESS})"
    )
    parser.add_argument(
        "--service", default=READY, metavar="NAME", help=f"{READY} (default), weights, or '' for the process"
    )
    parser.add_argument("--timeout", type=seconds, default=5.0, metavar="SECONDS", help="how long to wait (default 5)")
    add_flags(parser)
    parser.set_defaults(handler=run, extra="server")


def run(arguments: argparse.Namespace) -> int:
    from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: PLC0415 - not installed on a trainer

    address = default_address(os.environ) if arguments.address is None else arguments.address
    if any_mistake("selector health", [(not _is_address(address), "ADDRESS", repr(address), ADDRESS_FORM)]):
        return 2
    request = health_pb2.HealthCheckRequest(service=arguments.service)
    try:
        with open_channel(address, Access.of(address, **access_flags(arguments))) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=arguments.timeout)
    except (Untrusted, ValueError) as error:
        reason = str(error)
    except grpc.RpcError as error:
        details = error.details() or f"it knows no {arguments.service!r}"
        reason = f"{error.code().name}: {' '.join(details.split())}"
    else:
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        if status == "SERVING":
            print(status)
            return 0
        reason = f"{arguments.service or 'the process'} is {status}"
    print(f"selector health: {address}: {reason}", file=sys.stderr)
    return 1


def default_address(environment: Mapping[str, str]) -> str:
    """Returns the address at which the sidecar that has this environment is reached."""
    listen = next((environment[name] for name in SETTINGS if environment.get(name)), ADDRESS)
    host, _, port = listen.rpartition(":")
    return f"localhost:{port}" if host in EVERY else listen


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    if text.startswith("unix:"):
        return len(text) > len("unix:")
    return bool(host) and not lacks_brackets(text) and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16
