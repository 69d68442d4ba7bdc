"""Redis at an address of IPv6."""

import pytest
import redis
from selector_proto.weights.link import LinkError, masked
from selector_proto.weights.redis_link import check
from selector_proto.weights.transports import check_link, open_store
from support.processes import free_port
from support.redis_servers import Program, needs


def test_weights_travel_over_ipv6(tmp_path):
    needs("redis-server")
    port = free_port()
    server = Program(tmp_path / "redis", "redis-server", [f"port {port}", "bind ::1"])
    server.wait(redis.Redis(host="::1", port=port))
    try:
        open_store(f"redis://[::1]:{port}").put_all([("selector:a", memoryview(b"weights"))], 60)
        assert open_store(f"redis://[::1]:{port}/0").get("selector:a") == b"weights"
    finally:
        server.kill()


def test_a_zone_is_what_a_url_says():
    assert check("redis+cluster://[fe80::1%25eth0]:1,[::1]").hosts == (("fe80::1%eth0", 1), ("::1", 6379))
    assert masked("redis://me:secret@[fe80::1%25eth0]:1/0") == "redis://[fe80::1%25eth0]:1/0"


@pytest.mark.parametrize("url", ["redis://::1:6379", "redis://fd00::1", "redis://[fe80::1%eth0]", "redis://[::1"])
def test_brackets_are_asked_for(url):
    with pytest.raises(LinkError, match="an IPv6 address stands in brackets"):
        check_link(url)
