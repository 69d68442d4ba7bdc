"""What the page's addresses answer: the static files to everybody, and a Source's answers to whom they are for.

A browser asks by POST to /api/METHOD of InspectionService, with a line of JSON, and gets the message's bytes.
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from ipaddress import ip_address
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message
from selector_proto.v1 import inspection_pb2 as pb

from selector_server.errors import (
    InvalidRequest,
    LimitExceeded,
    NotPossible,
    PermissionDenied,
    SelectorError,
    TooLate,
    Unauthenticated,
    Unavailable,
)
from selector_server.inspection.source import Source
from selector_server.inspection.web.http import Request, Response
from selector_server.inspection.web.schema import schema_of
from selector_server.inspection.web.shared import Pace, Shared

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)

# Raises Unauthenticated or PermissionDenied for what the header `authorization` says; None if it is missing.
Authorise = Callable[[str | None], None]

SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
# HTTP statuses of errors; the first that fits counts.
_STATUSES: tuple[tuple[type[SelectorError], int], ...] = (
    (Unauthenticated, 401),
    (PermissionDenied, 403),
    (InvalidRequest, 400),
    (LimitExceeded, 429),
    (NotPossible, 409),
    (TooLate, 504),
    (Unavailable, 503),
    (SelectorError, 500),
)
SERVICE = pb.DESCRIPTOR.services_by_name["InspectionService"]
# Calls that wait for a source at once; the others wait for their turn.
THREADS = 2


class Page:
    """Answers requests; `names` says whether any host name may stand in a browser's address, or only IP addresses and
    localhost."""

    def __init__(self, source: Source, authorise: Authorise, names: bool) -> None:
        self._authorise, self._names = authorise, names
        self._files = _static_files()
        self._threads = ThreadPoolExecutor(THREADS, "page-source")
        self._shared, self._pace = Shared(), Pace()
        self._download = source.download_super_batches
        self._calls: dict[str, tuple[type[Message], Callable[[Any], Message]]] = {
            "GetOverview": (pb.GetOverviewRequest, source.get_overview),
            "GetSuperBatch": (pb.GetSuperBatchRequest, source.get_super_batch),
            "ListPictures": (pb.ListPicturesRequest, source.list_pictures),
            "GetSample": (pb.GetSampleRequest, source.get_sample),
            "ListSlices": (pb.ListSlicesRequest, source.list_slices),
        }

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def handle(self, request: Request) -> Response:
        """Never raises."""
        await self._pace.wait()
        try:
            self._check_host(request)
            path = request.target.partition("?")[0]
            if path.startswith("/api/"):
                return await self._answer(path.removeprefix("/api/"), request)
            return self._file(path, request)
        except SelectorError as error:
            return _refusal(error)
        except Exception:
            log.exception("the page could not answer")
            return _refusal(SelectorError("page", "failed", "see the log of its server"))

    def _check_host(self, request: Request) -> None:
        """A site elsewhere can make its own name mean this address, and then read what needs no token: it is refused by
        its name, which stands in the header `host`."""
        host = request.headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if not self._names and name != "localhost" and not _is_address(name.strip("[]")):
            raise PermissionDenied("host", host, "without a token and TLS it must be an IP address or localhost")

    def _file(self, path: str, request: Request) -> Response:
        if request.method != "GET":
            return Response(405, b"", _headers({"allow": "GET"}))
        found = self._files.get("/index.html" if path == "/" else path)
        if found is None:
            return Response(404, b"There is no such page.\n", _headers({"content-type": "text/plain; charset=utf-8"}))
        kind, tag, data = found
        headers = _headers({"content-type": f"{kind}; charset=utf-8", "etag": tag, "cache-control": "no-cache"})
        return (
            Response(304, b"", headers) if request.headers.get("if-none-match") == tag else Response(200, data, headers)
        )

    async def _answer(self, method: str, request: Request) -> Response:
        if request.method != "POST":
            return Response(405, b"", _headers({"allow": "POST"}))
        self._authorise(request.headers.get("authorization"))
        if method == "DownloadSuperBatches":
            return await self._file_of(self._download(_parse(pb.DownloadSuperBatchesRequest, request.body)))
        if method not in self._calls:
            raise InvalidRequest("method", method, f"must be one of {', '.join(self._calls)}")
        kind, call = self._calls[method]
        asked = _parse(kind, request.body)

        async def ask() -> bytes:
            answer = await self._in_thread(lambda: call(asked).SerializeToString())
            assert isinstance(answer, bytes)
            return answer

        body = await self._shared.get((method, asked.SerializeToString(deterministic=True)), ask)
        return Response(200, body, _headers({"content-type": "application/x-protobuf"}))

    async def _file_of(self, parts: Iterator[pb.DownloadSuperBatchesResponse]) -> Response:
        """The first part is waited for, so that an error still is an answer."""
        first = await self._in_thread(lambda: next(parts, None))

        async def body() -> AsyncIterator[bytes]:
            part = first
            while part is not None:
                yield part.data
                part = await self._in_thread(lambda: next(parts, None))

        return Response(200, body(), _headers({"content-type": "application/vnd.apache.parquet"}))

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _headers(more: dict[str, str]) -> dict[str, str]:
    return SECURITY_HEADERS | {"cache-control": "no-store"} | more


def _refusal(error: SelectorError) -> Response:
    status = next(status for kind, status in _STATUSES if isinstance(error, kind))
    told = {"message": str(error), "field": error.field, "value": error.value, "limit": error.limit}
    return Response(status, json.dumps(told).encode(), _headers({"content-type": "application/json"}))


def _parse(kind: type[M], body: bytes) -> M:
    try:
        return json_format.Parse(body or b"{}", kind())
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest("request", body[:100], f"must be JSON of {kind.DESCRIPTOR.name}: {error}") from None


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _static_files() -> dict[str, tuple[str, str, bytes]]:
    """By path: type, entity tag and bytes of all that is in static/, and of the contract's schema."""
    files = {"/schema.json": ("application/json", json.dumps(schema_of(SERVICE)).encode())}
    todo = [("", resources.files("selector_server.inspection.web") / "static")]
    while todo:
        place, folder = todo.pop()
        for one in folder.iterdir():
            path = f"{place}/{one.name}"
            if one.is_dir():
                todo.append((path, one))
            elif (ending := one.name.rpartition(".")[2]) in _TYPES:
                files[path] = (_TYPES[ending], one.read_bytes())
    return {path: (kind, f'"{hashlib.sha256(data).hexdigest()[:16]}"', data) for path, (kind, data) in files.items()}
