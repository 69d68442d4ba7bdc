"""Addresses of IPv6 in every place that takes one: with brackets they work, without they are refused by name."""

import re
import socket
import urllib.request

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from selector_client import Selector
from selector_proto.contract import BRACKETS, is_local, lacks_brackets
from support.networks import network, there
from support.processes import free_port

from selector_server.addresses import listen_at
from selector_server.telemetry.metrics_server import MetricsServer


def reaches(host: str, port: int) -> bool:
    with socket.create_connection((host, port), timeout=5):
        return True


def test_every_address_is_every_one_of_both_families():
    for address in ("[::]:0", "0.0.0.0:0", "[0:0:0:0:0:0:0:0]:0"):
        with listen_at(address) as listening:
            port = listening.getsockname()[1]
            assert reaches("127.0.0.1", port)
            assert reaches("::1", port)


@pytest.mark.parametrize(
    ("address", "host", "other"),
    [("[::1]:0", "::1", "127.0.0.1"), ("127.0.0.1:0", "127.0.0.1", "::1"), ("localhost:0", "127.0.0.1", "::1")],
)
def test_an_address_is_no_other(address, host, other):
    with listen_at(address) as listening:
        port = listening.getsockname()[1]
        assert reaches(host, port)
        with pytest.raises(ConnectionRefusedError):
            reaches(other, port)


def test_a_name_is_an_address_that_there_is(monkeypatch):
    """Not every machine's file of hosts names ::1, so that the answer is given here."""
    both = [(socket.AF_INET6, 1, 6, "", ("::1", 0, 0, 0)), (socket.AF_INET, 1, 6, "", ("127.0.0.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    with listen_at("name:0") as listening:
        assert listening.getsockname()[0] == "127.0.0.1"
    with network("ip address delete 127.0.0.1/8 dev lo") as enter, there(enter, lambda: listen_at("name:0")) as found:
        assert found.getsockname()[0] == "::1"


def test_a_link_local_address_has_a_zone():
    pair = ("ip link add v0 type veth peer name v1", "ip link set v0 up", "ip address add fe80::7/64 dev v0 nodad")
    with network(*pair) as enter:
        with there(enter, lambda: listen_at("[fe80::7%v0]:0")) as listening:
            assert there(enter, lambda: reaches("fe80::7%v0", listening.getsockname()[1]))
        with pytest.raises(OSError, match="Cannot assign"):
            there(enter, lambda: listen_at("[fe80::7%v1]:0"))


@pytest.mark.parametrize("first", ["[::]", "0.0.0.0", "127.0.0.1"])
@pytest.mark.parametrize("second", ["[::]", "0.0.0.0", "localhost"])
def test_a_port_in_use_is_not_shared(first, second):
    with listen_at(f"{first}:0") as listening, pytest.raises(OSError, match="in use"):
        listen_at(f"{second}:{listening.getsockname()[1]}")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("::1:50051", BRACKETS),
        ("fe80::1%eth0:50051", BRACKETS),
        ("::", BRACKETS),
        (":50051", "no host"),
        ("localhost", "no host or no port"),
        ("localhost:", "no port"),
        ("localhost:http", "no port"),
        ("localhost:65536", "the port must be 0 to 65535"),
    ],
)
def test_what_is_no_address(address, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        listen_at(address)


@pytest.mark.parametrize("setting", ["listen", "admin_listen", "health_listen", "metrics_listen"])
def test_every_setting_that_is_an_address_wants_brackets(serve, setting):
    line = serve(f"--{setting.replace('_', '-')}", "::1:50051")
    assert f"{setting} is ::1:50051; must be a free host:port" in line
    assert BRACKETS in line


def test_metrics_at_an_address_of_ipv6():
    server = MetricsServer(CollectorRegistry(), "[::1]:0")
    try:
        with urllib.request.urlopen(f"http://[::1]:{server.port}/metrics", timeout=5) as reply:
            assert reply.status == 200
    finally:
        server.close()


@pytest.mark.parametrize("address", ["::1", "::1:50051", "fe80::1%eth0", "fe80::1%eth0:50051", "ipv6:::1", "fd00::1:1"])
def test_a_trainer_is_told_that_brackets_are_missing(address):
    assert lacks_brackets(address)
    with pytest.raises(ValueError, match=r"address is '.+'; an IPv6 address must stand in brackets, as in \[::1\]:"):
        Selector(address)


@pytest.mark.parametrize(
    "address",
    ["[::1]:1", "[fe80::1%eth0]:1", "ipv6:[::1]:1", "dns:///[::1]:1", "localhost:1", "10.0.0.1:1", "unix:/a:b", "host"]
)  # fmt: skip
def test_other_addresses_lack_none(address):
    assert not lacks_brackets(address)
    Selector(address).close()


def test_a_trainer_selects_at_an_address_of_ipv6(sidecar):
    port = free_port()
    sidecar({"listen": f"[::]:{port}"}, port=port)
    losses = np.arange(40, dtype=np.float32), np.zeros(40, np.float32)
    for address in (f"[::1]:{port}", f"[::1%lo]:{port}", f"ipv6:[::1]:{port}"):
        with Selector(address, on_error="raise", policy="independent", timeout=20) as selector:
            assert len(selector.select_losses(*losses).indices) == 8
    assert is_local(f"[::1]:{port}")
