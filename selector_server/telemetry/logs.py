"""Logs on standard error: plain lines, or one JSON object a line. Lines about a request carry its id."""

import json
import logging
import sys
import threading
import time
from contextvars import ContextVar
from types import TracebackType
from typing import Literal

from selector_server.telemetry.tracing import trace_id

# The id of the request that is worked for. It is printable, for it comes from a client.
request_id: ContextVar[str] = ContextVar("request_id", default="")

log = logging.getLogger(__name__)


def configure(level: str, form: Literal["plain", "json"]) -> None:
    """Sets up the logs of the process, also those of uncaught exceptions."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if form == "json" else Plain())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread


class Plain(logging.Formatter):
    """A line has time, level, logger, the request's id if there is one, and the message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(request)s%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        record.request = f"[{name}] " if (name := request_id.get()) else ""
        return super().format(record)


class Json(logging.Formatter):
    """A line has `time` (RFC 3339, UTC), `level`, `logger`, `message`, and `request_id`, `trace_id` and `exception`
    where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_id.get(),
            "trace_id": trace_id(),
            "exception": self.formatException(record.exc_info) if record.exc_info else "",
        }
        return json.dumps({name: value for name, value in entry.items() if value or name == "message"})


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    log.critical("uncaught exception", exc_info=(kind, error, trace))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is SystemExit or args.exc_value is None:
        return
    name = args.thread.name if args.thread is not None else "unknown"
    log.critical("uncaught exception in thread %s", name, exc_info=(args.exc_type, args.exc_value, args.exc_traceback))
