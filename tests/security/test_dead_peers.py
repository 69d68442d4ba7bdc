"""Peers that are gone, frozen or silent do not hold the sidecar, and who is turned away for them is told so."""

import os
import shutil
import signal
import subprocess
import sys
import time

import grpc
import pytest
from security.test_limits import PREFACE, dial
from selector_client import Selector, Unreachable
from selector_proto.v1 import selector_pb2 as pb
from selector_proto.v1 import selector_pb2_grpc as rpc
from support.processes import SlowClient, eventually, free_port, spawn
from support.proxy import Proxy
from support.selectors import independent, losses

# Sends the beginning of a selection to an address, says so, and then how each of its own selections ends.
TRAINS = """
import sys, threading, time
import grpc, numpy
from selector_client import Selector
from selector_proto.v1 import selector_pb2 as pb, selector_pb2_grpc as rpc

def messages():
    yield pb.SelectRequest(selection=pb.Selection(policy="independent", payload_bytes=1 << 20))
    print("begun", flush=True)
    time.sleep(600)

call = rpc.SelectorServiceStub(grpc.insecure_channel(sys.argv[1])).Select.future(messages())
with Selector(sys.argv[1], policy="independent", timeout=0.5) as selector:
    while True:
        print(selector.select_losses(*numpy.random.random((2, 20)).astype("f4")).fallback or "picked", flush=True)
        time.sleep(0.05)
"""


@pytest.fixture
def far():
    """An address of this host in a network of its own, the words that run a program at its other end, and a way to set
    the link between them up or down."""
    if os.getuid() or not shutil.which("ip"):
        pytest.skip("a network of one's own needs root and the command ip")
    name, number = f"st{os.getpid()}", os.getpid() % 250
    ours, theirs = f"10.231.{number}.1", f"10.231.{number}.2"

    def ip(words):
        return subprocess.run(["ip", *words.split()], check=False, capture_output=True, text=True)

    made = [
        ip(f"netns add {name}"),
        ip(f"link add {name}a type veth peer name {name}b netns {name}"),
        ip(f"addr add {ours}/30 dev {name}a"),
        ip(f"-n {name} addr add {theirs}/30 dev {name}b"),
        ip(f"link set {name}a up"),
        ip(f"-n {name} link set {name}b up"),
    ]
    try:
        if any(one.returncode for one in made):
            pytest.skip(f"no network of one's own can be made here: {''.join(one.stderr for one in made)}")
        yield ours, ("netns", "exec", name, sys.executable), lambda state: ip(f"-n {name} link set {name}b {state}")
    finally:
        ip(f"link del {name}a")
        ip(f"netns del {name}")


def answers(server) -> bool:
    """Whether it takes one more connection."""
    with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            return bool(rpc.SelectorServiceStub(channel).GetServerInfo(pb.GetServerInfoRequest(), timeout=5).policies)
        except grpc.RpcError:
            return False


def test_silent_connections_are_given_up_and_meanwhile_everybody_is_told(sidecar, tmp_path):
    server = sidecar({"max_connections": 4, "keepalive_seconds": 2})
    with Selector(server.address, policy="independent", on_error="raise", timeout=5) as known:
        losses(known)
        server.hang_up()
        known.close()
        eventually(lambda: server.metrics()("selector_connections_ratio", listener="listen") == 0)
        streams = [dial(server.port) for _ in range(4)]
        began = time.monotonic()
        for stream in streams:
            stream.sendall(PREFACE)  # none of them answers a ping
        eventually(lambda: server.metrics()("selector_connections_ratio", listener="listen") == 1)
        with independent(server.address, on_error="raise") as new, pytest.raises(Unreachable) as first:
            losses(new)
        with pytest.raises(Unreachable) as later:
            losses(known)
        eventually(lambda: "has 4 of 4 connections (max_connections)" in server.text)
    for error in (first, later):
        assert "it has as many connections as it takes (--max-connections)" in str(error.value)
        assert "TLS" not in str(error.value)
    eventually(lambda: answers(server), 15)
    assert time.monotonic() - began < 15, "two intervals of 2 s; without pings it took minutes"
    assert server.text.count("max_connections") == 1, "once a minute"
    assert "4 are from 127.0.0.1" in server.text
    for stream in streams:
        stream.close()


@pytest.mark.parametrize("form", ["unix:", "unix://"])
def test_a_unix_sockets_connections_are_counted_too(sidecar, tmp_path, form):
    path = tmp_path / "s.sock"
    server = sidecar({"admin_listen": f"{form}{path}", "max_connections": 2})
    with grpc.insecure_channel(f"unix:{path}") as channel:
        rpc.SelectorServiceStub(channel).GetWeightsStatus(pb.GetWeightsStatusRequest(), timeout=5)
        assert server.metrics()("selector_connections_ratio", listener="admin_listen") == 0.5
    eventually(lambda: server.metrics()("selector_connections_ratio", listener="admin_listen") == 0)


def heard(trainer, word) -> None:
    """Waits until it says this."""
    while (line := trainer.stdout.readline().strip()) != word:
        assert line, "it has ended"


def test_a_trainer_that_is_frozen_in_the_middle_of_a_request_holds_nothing(sidecar):
    server = sidecar({"keepalive_seconds": 1})
    trainer = spawn("-c", TRAINS, server.address, stdout=subprocess.PIPE, text=True)
    try:
        heard(trainer, "begun")
        trainer.send_signal(signal.SIGSTOP)
        frozen = time.monotonic()
        server.wait_pending(0)
        assert time.monotonic() - frozen < 12, "receive_seconds alone would be 30"
        trainer.send_signal(signal.SIGCONT)
        heard(trainer, "picked")
    finally:
        trainer.kill()
        trainer.wait()


def test_a_lost_link_holds_neither_the_sidecar_nor_the_trainer(sidecar, far):
    host, words, link = far
    port = free_port()
    server = sidecar({"keepalive_seconds": 1, "listen": f"{host}:{port}", "health_listen": f"127.0.0.1:{free_port()}"},
                     wait=False)  # fmt: skip
    eventually(lambda: "serving on" in server.text, 60)
    trainer = spawn(*words, "-c", TRAINS, f"{host}:{port}", program=shutil.which("ip"),
                    stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        heard(trainer, "begun")
        heard(trainer, "picked")
        link("down")
        down = time.monotonic()
        heard(trainer, "breaker_open")
        eventually(lambda: server.metrics()("selector_connections_ratio", listener="listen") == 0, 15)
        assert time.monotonic() - down < 15
        assert server.pending() == 0, "what it had begun to send is gone"
        link("up")
        up = time.monotonic()
        heard(trainer, "picked")
        assert time.monotonic() - up < 12, "a probe's pause, and a new connection"
    finally:
        trainer.kill()
        trainer.wait()


def test_a_connection_of_age_costs_no_selection_and_cuts_none(sidecar):
    server = sidecar({"max_connection_age_seconds": 1})
    proxy = Proxy(server.port)
    server.hang_up()
    slow = SlowClient(server)
    with independent(f"127.0.0.1:{proxy.port}", timeout=10) as selector:
        began = time.monotonic()
        while time.monotonic() - began < 4:
            assert losses(selector).fallback == ""
            time.sleep(0.01)
        assert proxy.accepted >= 3, "each was of age after a second"
    assert slow.finish().indices, "it began four seconds ago, on a connection that is of age since"
    proxy.close()


def test_a_connection_without_calls_is_closed_and_made_again(sidecar):
    server = sidecar({"max_connection_idle_seconds": 1})
    server.hang_up()
    with independent(server.address, timeout=10) as selector:
        assert losses(selector).fallback == ""
        assert server.metrics()("selector_connections_ratio", listener="listen") > 0
        eventually(lambda: server.metrics()("selector_connections_ratio", listener="listen") == 0)
        assert losses(selector).fallback == ""
        assert selector.statistics.retries == 0


def test_a_foreign_client_may_ping_while_it_waits(sidecar):
    """At the interval that the sidecar tells, and twice as often: 10 s by default, and 1 s here."""
    server = sidecar({"keepalive_seconds": 1})
    for every in (1000, 600):
        options = [("grpc.keepalive_time_ms", every), ("grpc.keepalive_permit_without_calls", 1)]
        options += [("grpc.http2.max_pings_without_data", 0), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(server.address, options) as channel:
            reply = rpc.SelectorServiceStub(channel).Select.future(waits(4), timeout=20)
            assert reply.exception().code() is grpc.StatusCode.INVALID_ARGUMENT, "not ended by too_many_pings"


def waits(seconds):
    """A request that is nothing, after so many seconds."""
    time.sleep(seconds)
    yield pb.SelectRequest()


def test_the_limit_of_open_files_is_no_tighter_than_that_of_connections():
    """Many systems allow 1024 files, which 1024 connections and Redis would exhaust."""
    code = """
import logging, resource
logging.basicConfig()
from selector_server.rpc.connections import allow_files
for hard in (5000, 1000):
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    allow_files(700)
    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1212", "1000"]
    assert "open files are limited to 1000 (ulimit -n); 1212 are needed for max_connections" in done.stderr
