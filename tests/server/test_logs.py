"""Logs: one JSON object a line or plain lines, with the id of the request that is worked for."""

import json
import re
import subprocess
import sys

import pytest

CODE = """
import asyncio, logging, sys, threading, warnings
from selector_server.telemetry import logs

logs.configure("info", sys.argv[1])
log = logging.getLogger("some.where")
log.debug("not shown")
log.info("two\\nlines of %s", "text")

async def main():
    logs.request_id.set("r-1")
    log.warning("of a request")
    await asyncio.to_thread(log.error, "beside the loop")

asyncio.run(main())
log.info("of none")
warnings.warn("beware")

def fail():
    raise ValueError("in a thread")

thread = threading.Thread(target=fail, name="worker")
thread.start()
thread.join()
raise KeyError("at last")
"""


def lines(form):
    done = subprocess.run([sys.executable, "-c", CODE, form], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    return done.stderr.splitlines()


def test_every_line_is_a_json_object_uncaught_exceptions_too():
    entries = [json.loads(line) for line in lines("json")]
    assert [(e["level"], e["message"].partition(" of ")[0], e.get("request_id")) for e in entries[:4]] == [
        ("info", "two\nlines", None),
        ("warning", "of a request", "r-1"),
        ("error", "beside the loop", "r-1"),
        ("info", "of none", None),
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["time"]) for entry in entries)
    assert entries[0]["logger"] == "some.where"
    assert "beware" in entries[4]["message"]
    thread, last = entries[5:]
    assert thread["message"] == "uncaught exception in thread worker"
    assert "ValueError: in a thread" in thread["exception"]
    assert (last["level"], last["message"]) == ("critical", "uncaught exception")
    assert "KeyError: 'at last'" in last["exception"]


def test_plain_lines_name_the_request():
    text = "\n".join(lines("plain"))
    assert "WARNING some.where: [r-1] of a request" in text
    assert "INFO some.where: of none" in text
    assert "KeyError: 'at last'" in text


@pytest.mark.parametrize("name", ["two\nlines", "x" * 129, "\x1b[31mred", ""])
def test_a_name_that_may_not_be_is_not_logged(plain_server, name):
    from support.wire import some_losses

    before = len(plain_server.text)
    if name:
        assert "request_id" in plain_server.refuse(some_losses(request_id=name)).details()
    else:
        plain_server.select(some_losses())
    assert name == "" or name not in plain_server.text[before:]
