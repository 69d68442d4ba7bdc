"""A web server of files that gives ranges of them, and fails when it is told to."""

import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# What happens to one request for content: a status instead of it, a connection that breaks in the middle, silence for
# so many seconds, or (None) nothing.
Fault = int | str | float | None


class RangeServer(ThreadingHTTPServer):
    """Serves `folder`. `faults` are taken one by one by the requests for content that `spoils` names, until there are
    none left; `asked` are the paths and ranges of all of them."""

    daemon_threads = True

    def __init__(self, folder: Path, *, ranges: bool = True) -> None:
        self.folder, self.ranges = folder, ranges
        self.faults: list[Fault] = []
        self.asked: list[tuple[str, str | None]] = []
        self.spoils: Callable[[str], bool] = lambda _: True
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_) -> None:
        """A client that hangs up is no news."""

    def __enter__(self) -> "RangeServer":
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        file = self.server.folder / self.path.lstrip("/")
        self.send_response(200 if file.is_file() else 404)
        self.send_header("Content-Length", str(file.stat().st_size if file.is_file() else 0))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def do_GET(self) -> None:
        file, asked = self.server.folder / self.path.lstrip("/"), self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        spoilt = self.server.faults and self.server.spoils(self.path)
        fault = self.server.faults.pop(0) if spoilt else None
        if isinstance(fault, float):
            time.sleep(fault)
        if isinstance(fault, int) or not file.is_file():
            self.send_response(fault if isinstance(fault, int) else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = file.read_bytes()
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked or "") if self.server.ranges else None
        part = content if found is None else content[int(found[1]) : int(found[2]) + 1]
        self.send_response(200 if found is None else 206)
        if found is not None:
            self.send_header("Content-Range", f"bytes {found[1]}-{found[2]}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part[: len(part) // 2] if fault == "break" else part)
        if fault == "break":
            self.close_connection = True
