"""Runs the page on a thread of its own, so that no browser delays a trainer's call."""

import asyncio
import ssl
from threading import Thread

from selector_server.addresses import listen_at
from selector_server.inspection.source import Source
from selector_server.inspection.web.http import HttpServer
from selector_server.inspection.web.page import Authorise, Page

CLOSE_SECONDS = 5.0


class PageServer:
    """Serves from now on. Raises what `listen_at` raises. `names` is as in Page."""

    def __init__(
        self,
        source: Source,
        address: str,
        authorise: Authorise,
        *,
        names: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._page, self._tls = Page(source, authorise, names), tls
        self._listening = listen_at(address)
        self.port: int = self._listening.getsockname()[1]
        self.url = f"http{'s' if tls else ''}://{address.rpartition(':')[0]}:{self.port}/"
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = Thread(target=self._run, name="page", daemon=True)
        self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        http = HttpServer(self._page.handle)
        server = await http.start(self._listening, self._tls)
        await self._stop.wait()
        server.close()
        http.cut_all()
        self._page.close()
