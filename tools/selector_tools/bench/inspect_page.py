"""The requests of a browser that shows the inspector's pictures, without the browser."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from threading import Event, Thread
from types import TracebackType
from typing import Self

from selector_proto.v1 import inspection_pb2 as pb

# As web/static/app.js and gallery.js ask: how it goes every second, and every fourth time for pictures.
POLL_SECONDS, POLLS_A_GALLERY = 1.0, 4
FILES = ("/", "/app.js", "/style.css", "/schema.json")


class OpenPage:
    """Asks a page at this port of loopback, at its pace, while it is looked at. Time in which it is not does not count,
    so that a page can be looked at in turns."""

    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self._connection = HTTPConnection(self.address, timeout=60.0)
        self._wait, self._polls, self._after = 0.0, 0, 0
        self._pictures, self._super_batches = 0, set[int]()

    def __enter__(self) -> Self:
        for file in FILES:
            self._ask("GET", file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    @contextmanager
    def looked_at(self) -> Iterator[None]:
        """Asks meanwhile, on a thread of its own; the last answer has come when it ends."""
        stop = Event()
        thread = Thread(target=self._poll_until, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    @property
    def shown(self) -> dict[str, int]:
        """How often it asked, and of how many super-batches it showed how many pictures."""
        return {
            "overviews": self._polls,
            "galleries": -(-self._polls // POLLS_A_GALLERY),
            "super_batches_with_pictures": len(self._super_batches),
            "pictures": self._pictures,
        }

    def _poll_until(self, stop: Event) -> None:
        while True:
            began = time.monotonic()
            stopped = stop.wait(self._wait)
            self._wait -= time.monotonic() - began
            if stopped:
                return
            self._poll()
            self._wait = POLL_SECONDS

    def _poll(self) -> None:
        overview = pb.GetOverviewResponse.FromString(self._call("GetOverview", {"after": self._after}))
        if overview.points:
            self._after = overview.points[-1].super_batch
        if self._polls % POLLS_A_GALLERY == 0 and self._after:
            shown = pb.ListPicturesResponse.FromString(self._call("ListPictures", {"superBatch": 0}))
            pictures = sum(bool(one.picture.pixels) for gallery in shown.galleries for one in gallery.candidates)
            self._pictures += pictures
            if pictures:
                self._super_batches.add(shown.point.super_batch)
        self._polls += 1

    def _call(self, method: str, request: dict[str, int]) -> bytes:
        return self._ask("POST", f"/api/{method}", json.dumps(request))

    def _ask(self, verb: str, path: str, body: str | None = None) -> bytes:
        def ask() -> HTTPResponse:
            self._connection.request(verb, path, body, {"content-type": "application/json"} if body else {})
            return self._connection.getresponse()

        try:
            answer = ask()
        except ConnectionError:  # The server closed a connection that was silent for long; a browser opens another one.
            self._connection.close()
            answer = ask()
        data = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"the page answered {verb} {path} with status {answer.status}: {data[:200]!r}")
        return data
