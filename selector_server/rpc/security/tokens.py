"""Bearer tokens: which there are, and which calls each of them opens."""

import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import grpc
from selector_proto.certificates import read_file

from selector_server.errors import PermissionDenied, SelectorError, SetupError, Unauthenticated
from selector_server.rpc.security.reloaded_files import ReloadedFiles
from selector_server.rpc.status import INSPECTION_SERVICE, OPERATORS, SERVICE

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

# 32 characters of base64 hold 192 bits: nobody guesses them, however often.
MIN_TOKEN, MAX_TOKEN = 32, 4096
MAX_TOKENS = 16
_TOKEN = re.compile(rb"[A-Za-z0-9._~+/-]+=*")  # RFC 6750
_SEND = "send the metadata 'authorization: Bearer TOKEN'"


class Tokens:
    """The tokens of a file, one a line. Only their digests are kept."""

    def __init__(self, digests: Iterable[bytes]) -> None:
        self._digests = tuple(digests)

    @classmethod
    def read(cls, setting: str, file: Path) -> "Tokens":
        """Empty lines and those that begin with # do not count. Raises SetupError."""
        try:
            data = read_file(file, MAX_TOKENS * (MAX_TOKEN + 2))
        except (OSError, ValueError) as error:
            raise SetupError(setting, file, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
        lines = [(number, line.strip()) for number, line in enumerate(data.split(b"\n"), 1)]
        tokens = [(number, line) for number, line in lines if line and not line.startswith(b"#")]
        if not 1 <= len(tokens) <= MAX_TOKENS:
            raise SetupError(setting, file, f"has {len(tokens)} tokens; must have 1 to {MAX_TOKENS}")
        for number, token in tokens:
            if not MIN_TOKEN <= len(token) <= MAX_TOKEN:
                limit = f"must have {MIN_TOKEN} to {MAX_TOKEN} characters (openssl rand -hex 32)"
                raise SetupError(setting, file, f"line {number} has {len(token)} characters; {limit}")
            if not _TOKEN.fullmatch(token):
                raise SetupError(setting, file, f"line {number} must be letters, digits and -._~+/ with = at its end")
        return cls(_digest(token) for _, token in tokens)

    def __contains__(self, digest: bytes) -> bool:
        """Takes the same time for every digest."""
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(known, digest)
        return found


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg] # generic in the stubs only
    """Lets calls of our services through whose token opens them; health and reflection need none.

    A data call needs one of `data` or `admin`, if there are `data`. An admin call needs one of `admin`, or of `data` if
    there are no `admin`; but no trainer's token opens what an inspection shows.
    """

    def __init__(self, data: ReloadedFiles[Tokens] | None, admin: ReloadedFiles[Tokens] | None) -> None:
        self._data, self._admin = data, admin

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        service = handler_call_details.method.lstrip("/").rpartition("/")[0]
        if handler is None or service not in (SERVICE, *OPERATORS):
            return handler
        try:
            self.check(service, handler_call_details.invocation_metadata)
        except SelectorError as error:
            return _refusing(handler, error)
        return handler

    def check(self, service: str, metadata: Any) -> None:
        """Raises Unauthenticated or PermissionDenied for a call of that service that its token does not open."""
        needed = self._data if service == SERVICE else self._admin or self._data
        if needed is None:
            return
        digest = _presented(metadata)
        admin = self._admin is not None and digest in self._admin.value
        data = self._data is not None and digest in self._data.value
        if admin or (data and needed is self._data and service != INSPECTION_SERVICE):
            return
        if data:
            raise PermissionDenied("authorization", "a token for data calls", "admin calls need one of their own")
        raise Unauthenticated("authorization", "a token that is not known here", _SEND)


def _presented(metadata: Any) -> bytes:
    """The digest of the token that a call carries."""
    values = [value for key, value in metadata or () if key == "authorization"]
    if len(values) != 1:
        raise Unauthenticated("authorization", "missing" if not values else f"sent {len(values)} times", _SEND)
    value = values[0] if isinstance(values[0], bytes) else values[0].encode()
    scheme, _, token = value.partition(b" ")
    if scheme.lower() != b"bearer":
        raise Unauthenticated("authorization", "of another scheme", _SEND)
    return _digest(token.strip())


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _refusing(handler: Handler, error: SelectorError) -> Handler:
    async def refuse(*_: Any) -> Any:
        raise error

    async def refuse_stream(*_: Any) -> Any:
        raise error
        yield

    codec = handler.request_deserializer, handler.response_serializer
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(refuse_stream, *codec)
    make = grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
    return make(refuse, *codec)
