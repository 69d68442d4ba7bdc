"""`selector info` tells what a running sidecar is, and which weights it serves."""

import argparse
import sys
from typing import Any

from google.protobuf import json_format
from selector_client import Selector, SelectorClientError

from selector_tools.access import access_flags, add_flags


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("info", help="ask a running sidecar what it is and which weights it serves")
    parser.add_argument("address", help="host:port or unix:/path")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS", help="how long to wait (default 5)")
    add_flags(parser)
    parser.set_defaults(handler=run, extra="server")


def run(arguments: argparse.Namespace) -> int:
    try:
        with Selector(arguments.address, timeout=arguments.timeout, **access_flags(arguments)) as selector:
            for message in (selector.connect(arguments.timeout), selector.weights_status()):
                print(json_format.MessageToJson(message, preserving_proto_field_name=True))
    except (SelectorClientError, ValueError) as error:
        print(f"selector info: {error}", file=sys.stderr)
        return 1
    return 0
