"""Chart and image where there is no IPv4, and where there is no IPv6: the same environment serves in all of them."""

import re
import urllib.request
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from support.forked import ForkedCommand
from support.manifests import environment, objects, sidecars
from support.networks import forbid_ipv6, network, there
from support.processes import eventually, free_port

DOCKERFILE = Path(__file__).resolve().parents[2] / "Dockerfile"
# Kubernetes gives a pod of an IPv6 cluster one address, and every loopback that is up has 127.0.0.1.
ONLY_IPV6 = "ip address add fd00::2/64 dev lo nodad"
IPV6_OFF = "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"


def of_the_image() -> dict[str, str]:
    return dict(re.findall(r"(SELECTOR_\w*LISTEN)=(\S+)", DOCKERFILE.read_text()))


def of_the_chart(folder: Path) -> dict[str, str]:
    [pod] = sidecars(objects("kustomize shared"))
    values = {name: value for name, value in environment(pod.selector).items() if name.endswith("LISTEN")}
    return values | {"SELECTOR_ADMIN_LISTEN": f"unix:{folder}/admin.sock"}


ENVIRONMENTS = {"image": lambda _: of_the_image(), "chart": of_the_chart}


@contextmanager
def without_ipv4():
    with network(ONLY_IPV6) as enter:
        yield enter, ("::1", "fd00::2")


@contextmanager
def without_any_ipv4():
    with network(ONLY_IPV6, "ip address delete 127.0.0.1/8 dev lo") as enter:
        yield enter, ("::1", "fd00::2")


@contextmanager
def with_ipv6_off():
    with network(IPV6_OFF) as enter:
        yield enter, ("127.0.0.1",)


@contextmanager
def without_the_family():
    yield forbid_ipv6, ("127.0.0.1",)


def scraped(host: str, port: int) -> str:
    host = f"[{host}]" if ":" in host else host
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=10) as reply:
        return reply.read().decode()


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("image", without_ipv4),
        ("image", with_ipv6_off),
        ("image", without_the_family),
        ("chart", without_any_ipv4),
        ("chart", with_ipv6_off),
        ("chart", without_the_family),
    ],
)
def test_it_serves_answers_probes_and_is_scraped(name, place, tmp_path):
    values = ENVIRONMENTS[name](tmp_path)
    # In the namespace of this machine, others may have these ports.
    ports = {f":{port}": f":{free_port()}" for port in (50051, 50053, 9464)}
    env = {key: re.sub(r":\d+$", lambda found: ports[found[0]], value) for key, value in values.items()}
    grpc_port, metrics_port = (int(ports[name][1:]) for name in (":50051", ":9464"))
    health_port = int(env["SELECTOR_HEALTH_LISTEN"].rpartition(":")[2])
    with place() as (enter, hosts):
        server = ForkedCommand(["serve", "--threads", "1"], env, tmp_path / "log", enter)
        log = (tmp_path / "log").read_text

        def health(*address: str) -> str:
            # A log is appended to.
            (answer := tmp_path / "answer").unlink(missing_ok=True)
            ForkedCommand(["health", *address], env, answer, enter).wait(30)
            return answer.read_text().strip()

        def lives() -> None:
            assert server.poll() is None, log()

        try:
            eventually(lambda: health() == "SERVING", 60, log, lives)
            for host in hosts:
                shown = f"[{host}]" if ":" in host else host
                assert health(f"{shown}:{grpc_port}") == "SERVING"
                if name == "chart":  # The kubelet asks at the pod's address.
                    assert health(f"{shown}:{health_port}") == "SERVING"
                run = partial(scraped, host, metrics_port)
                text = run() if enter is forbid_ipv6 else there(enter, run)
                assert "selector_pending_requests 0.0" in text
        finally:
            server.kill()
            server.wait(10)
