"""The flags by which the verbs that ask a running sidecar are told how to reach it."""

import argparse
from typing import Any

from selector_client import Access

_FILES = {
    "ca_file": "who may sign the sidecar's certificate; turns TLS on",
    "certificate_file": "our certificate, where the sidecar wants one",
    "key_file": "its key, unless the certificate's file has it",
    "token_file": "file with the token to send",
}


def add_flags(parser: Any) -> None:
    group = parser.add_argument_group("access", "Each can also come from SELECTOR_<NAME>; see docs/security.md.")
    group.add_argument("--tls", action="store_const", const=True, help="use TLS, and trust the public authorities")
    for name, text in _FILES.items():
        group.add_argument(f"--{name.replace('_', '-')}", metavar="FILE", help=text)
    group.add_argument("--server-name", metavar="NAME", help="name in its certificate, if not the address's")
    group.add_argument(
        "--plaintext-token", action="store_const", const=True, help="send the token to another host without TLS"
    )


def access_flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what the flags say, as keyword arguments of Selector and Access.of."""
    names = (*_FILES, "tls", "server_name", "plaintext_token")
    return {name: getattr(arguments, name) for name in names}


def access_of(arguments: argparse.Namespace) -> Access:
    """Returns the access that the flags describe. Raises ValueError."""
    return Access.of(arguments.address, **access_flags(arguments))
