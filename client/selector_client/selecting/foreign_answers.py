"""Knows what answered in the sidecar's place: proxies, login pages and web servers, by what gRPC says of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import grpc

_HTTP_2 = re.compile(r"Received http2 header with status: (\d{3})")
_HTTP_1 = re.compile(r"Trying to connect an http1.x server(?: \(HTTP status (\d{3})\))?")
# A body without a gRPC status at its end, which no sidecar sends. Now and then gRPC says this of another HTTP status
# too, which it has lost, so that the request is worth another try.
_BODY = "Stream removed (Data frame with END_STREAM flag received)"
# With these HTTP statuses the same request may succeed later.
_FOR_NOW = (408, 425, 429, 502, 503, 504)
_LOGIN = "it wants a login of its own, which the sidecar's token is not"
_ROUTE = (
    "it does not know the way: it must pass /selector.v1.SelectorService and /grpc.health.v1.Health to a sidecar "
    "(nginx: grpc_pass)"
)
_LARGE = "it takes no request of this size (nginx: client_max_body_size 0)"
_PROTOCOL = "it expects something else than gRPC at this port, or TLS (nginx: listen … http2, grpc_pass; here: ca_file)"
_CAUSES: Mapping[int, str] = {
    400: _PROTOCOL,
    401: _LOGIN,
    403: _LOGIN,
    404: _ROUTE,
    405: _ROUTE,
    407: _LOGIN,
    411: _LARGE,
    413: _LARGE,
    415: _ROUTE,
    421: _ROUTE,
    426: _PROTOCOL,
    505: _PROTOCOL,
}
_REDIRECT = "it redirects, as login pages do: give the sidecar's own address, or exempt its path"
_PAGE = "it sent something that is not gRPC, such as a web page: give the sidecar's own address"
_OTHER = "its own log may say why"


@dataclass(frozen=True)
class ForeignAnswer:
    """What something on the way `said`, with which HTTP `status` (None: not known), and what is the likely `cause`."""

    said: str
    status: int | None
    cause: str

    @property
    def passes(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in _FOR_NOW


def foreign_answer(error: grpc.RpcError) -> ForeignAnswer | None:
    """Returns what answered in the sidecar's place; None means that nothing did, as far as can be seen."""
    details = error.details() or ""
    if (found := _HTTP_2.search(details)) is not None:
        status = int(found[1])
        cause = _REDIRECT if 300 <= status < 400 else _CAUSES.get(status, _OTHER)
        return ForeignAnswer(f"HTTP status {status}", status, cause)
    if (found := _HTTP_1.search(details)) is not None:
        return ForeignAnswer(f"HTTP/1.1, status {found[1] or 'unknown'}", int(found[1] or 0), _PROTOCOL)
    return ForeignAnswer("a body without a gRPC status", None, _PAGE) if details.startswith(_BODY) else None
