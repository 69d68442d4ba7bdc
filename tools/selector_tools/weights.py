"""`selector weights`: which weights a running sidecar serves, what became of the others, and staying at one of them."""

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from selector_client import Untrusted
from selector_client.selecting.call_errors import error_of
from selector_client.selecting.channel import open_channel
from selector_proto.v1 import admin_pb2, admin_pb2_grpc, selector_pb2, selector_pb2_grpc

from selector_tools.access import access_of, add_flags
from selector_tools.mistakes import seconds

MAX_VERSION = 2**64 - 1
# Asks with a channel, and with a call's timeout and metadata.
Ask = Callable[[grpc.Channel, dict[str, Any]], Message]


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("weights", help="show a running sidecar's weights, pin a version, unpin it")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _action(actions, "status", "which version is served, and why not a newer one", run_status)
    _action(actions, "history", "what became of the last 32 versions", run_history)
    pin = _action(actions, "pin", "serve VERSION and no other until unpin (or until the sidecar restarts)", run_pin)
    pin.add_argument("version", type=_version, help="0 (the bundle's), the one served, or the one before it")
    unpin = _action(actions, "unpin", "take the newest version again", run_unpin)
    for one in (pin, unpin, actions.choices["history"]):
        one.epilog = "The address is that of --admin-listen if the sidecar has one."
    for one in actions.choices.values():
        one.add_argument("address", help="host:port or unix:/path")
        add_flags(one)


def _action(actions: Any, name: str, text: str, handler: Callable[[argparse.Namespace], int]) -> Any:
    parser = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("--timeout", type=seconds, default=5.0, metavar="SECONDS", help="how long to wait (default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(handler=handler, extra="server")
    return parser


def run_status(arguments: argparse.Namespace) -> int:
    request = selector_pb2.GetWeightsStatusRequest()
    return _run(arguments, lambda channel, how: _selector(channel).GetWeightsStatus(request, **how))


def run_history(arguments: argparse.Namespace) -> int:
    request = admin_pb2.ListWeightsHistoryRequest()
    return _run(arguments, lambda channel, how: _admin(channel).ListWeightsHistory(request, **how))


def run_pin(arguments: argparse.Namespace) -> int:
    request = admin_pb2.PinWeightsRequest(version=arguments.version)
    return _run(arguments, lambda channel, how: _admin(channel).PinWeights(request, **how))


def run_unpin(arguments: argparse.Namespace) -> int:
    request = admin_pb2.UnpinWeightsRequest()
    return _run(arguments, lambda channel, how: _admin(channel).UnpinWeights(request, **how))


def _run(arguments: argparse.Namespace, ask: Ask) -> int:
    """Prints the answer and returns 0; without an answer, prints one line that says why and returns 1."""
    where = f"selector weights {arguments.action}: "
    try:
        access = access_of(arguments)
        with open_channel(arguments.address, access) as channel:
            answer = ask(channel, {"timeout": arguments.timeout, "metadata": access.metadata()})
    except (ValueError, Untrusted) as error:
        print(f"{where}{error}", file=sys.stderr)
        return 1
    except grpc.RpcError as error:
        said = " ".join(str(error_of(error, arguments.address, access)).split())
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            said = (
                f"{arguments.address}: UNIMPLEMENTED: not served at this address; the admin service may have its own "
            )
            said += "(--admin-listen)"
        print(f"{where}{said}", file=sys.stderr)
        return 1
    if arguments.json:
        # Zeros are shown too: version 0 is one.
        print(
            json_format.MessageToJson(
                answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
        )
    else:
        print(_SHOWN[type(answer)](answer))
    return 0


def _status(answer: Any) -> str:
    serving = answer.serving
    shown = f"version {serving.version} of step {serving.trainer_step}, {serving.age_seconds:.1f} s old"
    rows = [
        ("serving", shown if answer.HasField("serving") else "none"),
        ("newest", str(answer.newest_version)),
        ("state", selector_pb2.SyncState.Name(answer.state).removeprefix("SYNC_STATE_").lower()),
        ("reason", _line(answer.last_error) or "-"),
        ("swaps", str(answer.swaps)),
        ("rejections", str(answer.rejections)),
        ("source", answer.source or "none"),
    ]
    return _table(rows)


def _history(answer: Any) -> str:
    rows = [("TIME", "VERSION", "STEP", "OUTCOME", "TIMES", "REASON")]
    for event in answer.events:
        at = datetime.fromtimestamp(event.at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        step = str(event.trainer_step) if event.HasField("trainer_step") else "-"
        outcome = admin_pb2.WeightsOutcome.Name(event.outcome).removeprefix("WEIGHTS_OUTCOME_").lower()
        rows.append((at, str(event.version), step, outcome, str(event.times), _line(event.reason) or "-"))
    pinned = str(answer.pinned_version) if answer.HasField("pinned_version") else "none"
    can = ", ".join(map(str, answer.pinnable_versions))
    return f"{_table(rows)}\npinned: {pinned}; can be pinned: {can}"


def _served(answer: Any) -> str:
    return f"serving version {answer.version} of step {answer.trainer_step}"


def _line(text: str) -> str:
    return " ".join(text.split())


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


_SHOWN: dict[type[Message], Callable[[Any], str]] = {
    selector_pb2.GetWeightsStatusResponse: _status,
    admin_pb2.ListWeightsHistoryResponse: _history,
    admin_pb2.PinWeightsResponse: lambda answer: f"pinned; {_served(answer)}",
    admin_pb2.UnpinWeightsResponse: lambda answer: f"not pinned; {_served(answer)}",
}


def _selector(channel: grpc.Channel) -> Any:
    return selector_pb2_grpc.SelectorServiceStub(channel)  # type: ignore[no-untyped-call]


def _admin(channel: grpc.Channel) -> Any:
    return admin_pb2_grpc.AdminServiceStub(channel)  # type: ignore[no-untyped-call]


def _version(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > MAX_VERSION:
        raise argparse.ArgumentTypeError(f"{text!r} is not a version; must be 0 or more")
    return int(text)
