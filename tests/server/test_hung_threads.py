"""Work of requests that hangs for ever holds requests alone: health, rotation and the process's end go on."""

import signal
import time

import pytest
from support.plugins import with_policies
from support.processes import eventually, listens
from support.wire import some_losses

# Of the event loop's own pool, whatever the machine.
MOST_THREADS = 32
PREPARE_FOR_EVER = """
import ctypes
from selector_server.engine.candidates.scalar_losses import ScalarLosses
from selector_server.sampling import Policy

ScalarLosses.prepare = lambda self, task, preparation, request: ctypes.CDLL(None).sleep(600)

class Unused(Policy):
    name = "unused"
    def pick(self, scores, plan):
        raise NotImplementedError
"""


@pytest.fixture
def hung(sidecar, tmp_path):
    """A sidecar all of whose threads for requests hang, and its file of admin tokens."""
    (tokens := tmp_path / "tokens").write_text("a" * 40)
    flags = {"max_pending_requests": MOST_THREADS, "drain_seconds": 1.0, "admin_token_file": tokens}
    environment = with_policies(tmp_path, PREPARE_FOR_EVER, unused="Unused")
    server = sidecar(flags, env=environment, new=True)
    server.calls = [server.stub.Select.future(iter(some_losses().messages()), timeout=300) for _ in range(MOST_THREADS)]
    server.wait_pending(MOST_THREADS)
    time.sleep(0.5)  # until all of them are with a thread, or wait for one
    return server, tokens


def test_secrets_rotate_and_both_signals_count(hung):
    server, tokens = hung
    tokens.write_text("b" * 40)
    eventually(
        lambda: server.metrics()("selector_secret_reloads_total", file="admin_token_file", result="taken") == 1, 5
    )
    assert server.health() == "SERVING"
    server.signal(signal.SIGTERM)
    eventually(lambda: "draining" in server.text, 5)
    server.signal(signal.SIGTERM)
    assert server.process.wait(30) == 0  # its threads hang for 600 s
    assert "second signal: running requests are cut off" in server.text


def test_a_second_signal_counts_after_the_drain_too(hung):
    server, _ = hung
    server.signal(signal.SIGTERM)
    eventually(lambda: not listens(server.port), 10)
    time.sleep(1.0)  # the parts end, or would
    server.signal(signal.SIGTERM)
    assert server.process.wait(30) == 0  # its threads hang for 600 s
    assert "second signal" in server.text
