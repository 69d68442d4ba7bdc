"""A real headless Chromium, driven by its own protocol over a pipe: no driver and no library stand between."""

import base64
import fcntl
import itertools
import json
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from selector_tools.processes import ends_with_parent

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
KEYS = {"Tab": 9, "Enter": 13, " ": 32, "ArrowRight": 39, "ArrowLeft": 37}


def needs_chromium() -> None:
    if PROGRAM is None:
        pytest.skip("needs Chromium on the PATH: apt-get install chromium")


@contextmanager
def chromium():
    """Yields a browser with `page(url, …)`; it ends with the block."""
    needs_chromium()
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(Path(profile))
        try:
            yield browser
        finally:
            browser.close()


class Browser:
    def __init__(self, profile: Path) -> None:
        theirs, self._to = map(_high, os.pipe())
        self._from, answers = map(_high, os.pipe())
        # The browser reads commands from descriptor 3 and writes answers to 4; a shell puts them there.
        command = f'exec 3<&{theirs} 4>&{answers} {theirs}<&- {answers}>&-; exec "$@"'
        arguments = [PROGRAM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            [*ends_with_parent(signal.SIGKILL), shutil.which("bash"), "-c", command, "chromium", *map(str, arguments)],
            pass_fds=(theirs, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs)
        os.close(answers)
        self._numbers, self._waiting, self.listeners = itertools.count(1), {}, {}
        threading.Thread(target=self._listen, daemon=True).start()

    def call(self, method, session=None, seconds=60, **parameters) -> dict:
        number, answer = next(self._numbers), queue.SimpleQueue()
        self._waiting[number] = answer
        message = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        told = answer.get(timeout=seconds)
        assert "error" not in told, f"{method}: {told['error']}"
        return told["result"]

    def page(self, url, *, width=1280, height=900, dark=False) -> "Tab":
        return Tab(self, url, width, height, dark)

    def close(self) -> None:
        with suppress(AssertionError, queue.Empty, OSError):
            self.call("Browser.close", seconds=5)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
        os.close(self._to)

    def _listen(self) -> None:
        rest = b""
        while data := os.read(self._from, 1 << 20):
            *messages, rest = (rest + data).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    self._waiting.pop(message["id"]).put(message)
                elif listener := self.listeners.get(message.get("sessionId")):
                    listener(message["method"], message["params"])
        os.close(self._from)


def _high(descriptor) -> int:
    """The same under a number that is none of those that the browser expects."""
    other = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 20)
    os.close(descriptor)
    return other


class Tab:
    """One tab in a context of its own. `errors` are what its console said and what it threw; `requests` all URLs that
    it asked for."""

    def __init__(self, browser, url, width, height, dark) -> None:
        self._browser = browser
        self.errors, self.requests, self.downloads = [], [], []
        self._context = browser.call("Target.createBrowserContext")["browserContextId"]
        target = browser.call("Target.createTarget", url="about:blank", browserContextId=self._context)["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        browser.listeners[self._session] = self._hear
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        self.scheme(dark)
        self.open(url)

    def call(self, method, **parameters) -> dict:
        return self._browser.call(method, self._session, **parameters)

    def open(self, url) -> None:
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def resize(self, width, height) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def scheme(self, dark) -> None:
        value = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def hide(self, hidden=True) -> None:
        """As if another tab stood before it."""
        state = "hidden" if hidden else "visible"
        self.js(
            f"Object.defineProperty(document, 'hidden', {{value: {str(hidden).lower()}, configurable: true}});"
            f"Object.defineProperty(document, 'visibilityState', {{value: '{state}', configurable: true}});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )

    def js(self, expression):
        """The value of an expression, which may be a promise."""
        told = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def until(self, expression, seconds=20) -> None:
        """Waits until an expression is true."""
        deadline = time.monotonic() + seconds
        while not self.js(f"!!({expression})"):
            assert time.monotonic() < deadline, f"not within {seconds} s: {expression}\n{self.text}\n{self.errors}"
            time.sleep(0.05)

    def until_text(self, words) -> None:
        self.until(f"document.body.innerText.includes({json.dumps(words)})")

    @property
    def text(self) -> str:
        return self.js("document.body.innerText")

    def press(self, key, times=1, shift=False) -> None:
        for _ in range(times):
            told = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS.get(key, 0), "modifiers": 8 * shift}
            text = {"Enter": "\r", " ": " "}.get(key)
            self.call(
                "Input.dispatchKeyEvent",
                type="keyDown" if text else "rawKeyDown",
                **told,
                **({"text": text} if text else {}),
            )
            self.call("Input.dispatchKeyEvent", type="keyUp", **told)

    def type(self, words) -> None:
        self.call("Input.insertText", text=words)

    def click(self, selector) -> None:
        self.until(f"document.querySelector({json.dumps(selector)})")
        x, y = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        self.click_at(x, y)

    def click_at(self, x, y) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, file, whole=True) -> None:
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(file).write_bytes(base64.b64decode(picture["data"]))

    def close(self) -> None:
        self._browser.listeners.pop(self._session, None)
        self._browser.call("Target.disposeBrowserContext", browserContextId=self._context)

    def _hear(self, method, told) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(told["exceptionDetails"]["exception"].get("description", "an exception"))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.errors.append(str([one.get("value", one.get("description")) for one in told["args"]]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
