"""The ways to Redis: unix sockets, users and rotated passwords, TLS, Sentinels, clusters. Real servers."""

import numpy as np
import pytest
import redis
from selector_client import LinkOptions, WeightPublisher
from selector_proto.weights.link import LinkError, masked
from selector_proto.weights.redis_link import check, connect
from selector_proto.weights.store import StoreUnavailable
from selector_proto.weights.transports import open_store
from support.certificates import certificates
from support.processes import eventually, free_port
from support.redis_servers import join, needs, tls_server, valkey_server, watched_pair

from selector_server.config import load
from selector_server.errors import SetupError
from selector_server.weights.fetcher import Fetcher

SECRET, NEXT_SECRET = "hunter2-secret", "correct-horse"


def tensors(value):
    return {"w": np.full((300, 1000), value, np.float32), "scale": np.float32(value)}


class Way:
    """A publisher and a fetcher of one run at one URL."""

    def __init__(self, url, run, options=None) -> None:
        self.publisher = WeightPublisher(url, run, link=options, dtype="fp32")
        self.fetcher = Fetcher(url, run, 1 << 30, options)

    def carries(self, value, seconds=20) -> int:
        """Publishes, and reads what was published; its version."""
        assert self.publisher.publish(value, tensors(value))
        assert self.publisher.flush(seconds), self.publisher.last_error
        version = self.publisher.last_version
        assert self.fetcher.newest() == version
        fetched = self.fetcher.fetch(version, self.fetcher.manifest(version))
        assert np.frombuffer(fetched.tensors["w"].data, np.float32).tolist() == [value] * 300_000
        return version

    def close(self) -> None:
        self.publisher.close(0.1)
        self.fetcher.close()


@pytest.fixture
def way(run_name):
    ways = []

    def start(url, options=None) -> Way:
        ways.append(Way(url, run_name, options))
        return ways[-1]

    yield start
    for one in ways:
        one.close()


@pytest.fixture
def valkey(tmp_path):
    """Starts the wheel's servers."""
    servers = []

    def start(**options):
        servers.append(valkey_server(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.terminate()


def test_a_unix_socket(valkey, way, tmp_path):
    valkey(unix_socket_path=tmp_path / "redis.sock")
    assert way(f"unix://{tmp_path}/redis.sock?db=1").carries(1) == 1
    client = redis.Redis(unix_socket_path=str(tmp_path / "redis.sock"), db=1)
    assert len(client.keys()) == 7, "owner, counter, pointer, manifest, clock and two chunks"


def test_a_database_by_its_number(redis_url, way):
    one = way(f"{redis_url}/3")
    assert one.carries(1) == 1
    assert not redis.Redis.from_url(redis_url, db=0).exists(one.fetcher.keys.pointer)
    assert redis.Redis.from_url(redis_url, db=3).exists(one.fetcher.keys.pointer)


def test_a_user_and_a_password_that_is_rotated(valkey, way, tmp_path, caplog):
    server = valkey()
    admin = redis.Redis(port=server.port)

    def change_to(password):
        rules = ("resetpass", f">{password}", "~selector:*", "+@all", "-@dangerous")
        admin.execute_command("ACL", "SETUSER", "trainer", "on", *rules)

    def hang_up():
        admin.execute_command("CLIENT", "KILL", "USER", "trainer")

    file = tmp_path / "password"
    file.write_text(f"{SECRET}\n")
    change_to(SECRET)
    # The user in the options, and the user in the URL.
    assert way(f"redis://trainer@127.0.0.1:{server.port}", LinkOptions(password_file=str(file))).carries(1) == 1
    both = way(f"redis://127.0.0.1:{server.port}", LinkOptions(username="trainer", password_file=file))
    assert both.carries(2) == 2
    # Rotated, while a connection is open and after it is gone.
    change_to(NEXT_SECRET)
    hang_up()
    with pytest.raises(StoreUnavailable, match="AuthenticationError") as refused:
        both.fetcher.newest()
    assert SECRET not in str(refused.value)
    both.publisher.publish(3, tensors(3))
    eventually(lambda: "AuthenticationError" in both.publisher.last_error)
    file.write_text(f"{NEXT_SECRET}\r\n")
    assert both.publisher.flush(20)
    assert both.carries(4) >= 4
    # Gone: what is connected goes on, what connects says which file.
    file.unlink()
    hang_up()
    with pytest.raises(StoreUnavailable, match=r"password file .*password; cannot be read: No such file"):
        both.fetcher.newest()
    file.write_text(NEXT_SECRET)
    assert both.carries(5) > 4
    shown = [repr(thing) for thing in (both.publisher, both.fetcher, LinkOptions(password_file=file))]
    for text in (*shown, caplog.text, both.publisher.last_error, repr(connect(f"redis://:{SECRET}@127.0.0.1"))):
        assert SECRET not in text
        assert NEXT_SECRET not in text


def test_tls_with_certificates_of_both_sides(way, tmp_path):
    needs("redis-server", "openssl")
    files = certificates(tmp_path)
    server, client = tls_server(tmp_path / "server", files)
    try:
        port, ca = client.connection_pool.connection_kwargs["port"], files["ca.pem"]
        url = f"rediss://127.0.0.1:{port}/0"
        own = {"certificate_file": files["client.pem"], "key_file": files["client.key"]}
        assert way(url, LinkOptions(ca_file=ca, **own)).carries(1) == 1
        with pytest.raises(redis.ConnectionError, match="certificate verify failed"):
            connect(url, LinkOptions(ca_file=files["other.pem"], **own)).ping()
        with pytest.raises(redis.ConnectionError, match="certificate verify failed"):
            connect(url, LinkOptions(**own)).ping()  # this host does not trust it
        with pytest.raises(redis.ConnectionError, match="Hostname mismatch"):
            connect(url.replace("127.0.0.1", "localhost"), LinkOptions(ca_file=ca, **own)).ping()
        with pytest.raises(redis.ConnectionError):
            connect(url, LinkOptions(ca_file=ca)).ping()  # without a certificate of its own
        with pytest.raises(redis.ConnectionError):
            connect(f"redis://127.0.0.1:{port}/0").ping()
    finally:
        server.kill()


def test_tls_of_a_cluster_and_of_sentinels(way, tmp_path):
    needs("redis-server", "redis-sentinel", "openssl")
    files = certificates(tmp_path)
    own = {"certificate_file": files["client.pem"], "key_file": files["client.key"]}
    options, running = LinkOptions(ca_file=files["ca.pem"], **own), []

    def start(name, *lines, **more) -> tuple[redis.Redis, int]:
        server, client = tls_server(tmp_path / name, files, *lines, **more)
        running.append(server)
        return client, client.connection_pool.connection_kwargs["port"]

    try:
        node, port = start("node", "cluster-enabled yes")
        node.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        eventually(lambda: b"cluster_state:ok" in node.execute_command("CLUSTER", "INFO"))
        assert way(f"rediss+cluster://127.0.0.1:{port}", options).carries(1) == 1
        _, port = start("master")
        watch = f"sentinel monitor weights 127.0.0.1 {port} 1"
        _, port = start("sentinel", watch, program="redis-sentinel")
        assert way(f"rediss+sentinel://127.0.0.1:{port}/weights", options).carries(1) == 1
    finally:
        for server in running:
            server.kill()


def test_sentinels_name_the_new_master_when_the_old_one_is_killed(way, tmp_path):
    needs("redis-server", "redis-sentinel")
    file = tmp_path / "password"
    file.write_text(SECRET)
    servers, sentinel = watched_pair(tmp_path, SECRET)
    options = LinkOptions(sentinel_password_file=file)
    try:
        # The first Sentinel of the two is not there.
        one = way(f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinel}/weights/0", options)
        first = one.carries(1)
        (_, process), (replica, _), _ = servers.items()
        eventually(lambda: redis.Redis(port=replica).get(one.fetcher.keys.pointer) == str(first).encode())
        process.kill()
        one.publisher.publish(2, tensors(2))
        eventually(lambda: redis.Redis(port=replica).info("replication")["role"] == "master", 30)
        assert one.publisher.flush(30), one.publisher.last_error
        assert one.publisher.last_version > first
        assert one.carries(3) > one.publisher.published - 1
        assert redis.Redis(port=replica).exists(one.fetcher.keys.manifest(one.publisher.last_version))
        for url, given in ((f"{sentinel}/others", options), (f"{sentinel}/weights", None)):  # without its password
            with pytest.raises(StoreUnavailable, match="no Sentinel names a master") as error:
                open_store(f"redis+sentinel://me:{NEXT_SECRET}@127.0.0.1:{url}", given).get("x")
            assert len(str(error.value)) < 200
            assert NEXT_SECRET not in str(error.value)
    finally:
        for server in servers.values():
            server.kill()


def test_a_cluster_of_three(valkey, run_name):
    ports = [valkey(config={"cluster-enabled": "yes"}).port for _ in range(3)]
    join(ports)
    # Runs whose keys live on different nodes.
    urls = [f"redis+cluster://127.0.0.1:{port},127.0.0.1:{free_port()}" for port in ports[:2]]
    for index in range(5):
        one = Way(urls[index % 2], f"{run_name}-{index}")
        assert (one.carries(1), one.carries(2), one.carries(3)) == (1, 2, 3)
        one.close()
    sizes = [redis.Redis(port=port).dbsize() for port in ports]
    assert sum(sizes) == 5 * (3 + 3 * 4), "three of the run, and three versions of a manifest, a clock and two chunks"
    assert max(sizes) < sum(sizes), "the runs are spread"


def test_a_cluster_that_is_not_there_fails_no_constructor(run_name):
    one = Way(f"redis+cluster://127.0.0.1:{free_port()}", run_name)
    with pytest.raises(StoreUnavailable):
        one.fetcher.newest()
    assert one.publisher.publish(1, tensors(1)), "training goes on"
    eventually(lambda: one.publisher.failures)
    one.close()


@pytest.mark.parametrize("url", ["redis://", "redis+sentinel://", "unix://"])
def test_a_password_in_the_url_is_in_no_repr(url):
    path = {"redis://": "host/0", "redis+sentinel://": "host/weights", "unix://": "/path"}[url]
    client = connect(f"{url}me:{SECRET}@{path}")
    shown = f"{client!r} {client.connection_pool!r} {client.connection_pool.connection_kwargs}"
    assert SECRET not in shown
    assert client.connection_pool.connection_kwargs["credential_provider"].get_credentials() == ("me", SECRET)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://somewhere", "http://somewhere; must be redis://.*its scheme is unknown"),
        ("localhost:6379", "scheme is unknown"),
        ("rediss+unix:///x", "scheme is unknown"),
        ("redis://", "must have a host"),
        ("redis:///0", "must have a host"),
        ("redis+cluster://", "must have a host"),
        ("redis://a:1,b:2", "must have one host"),
        ("redis://host:70000", "must have ports from 1 to 65535"),
        ("redis://host:0", "must have ports"),
        ("redis://host/first", "must end with the number of a database"),
        ("redis://host?db=first", "a query with a value that is not one"),
        ("redis://host?color=red", "may have a query of client_name, "),
        ("redis://host#1", "must be redis://"),
        ("redis+cluster://a:1/2", "a cluster has no database numbers"),
        ("redis+cluster://a:1?db=2", "a cluster has no database numbers"),
        ("redis+sentinel://a:1", "must name the service"),
        ("redis+sentinel://a:1,/weights", r"^\*\*\*; must be redis://"),
        ("redis+sentinel://a:1/weights/x", "must end with the number"),
        ("unix://", "must be unix:///path"),
        (f"unix:///{'x' * 107}", "must have 1 to 107 bytes"),
        ("unix://var/redis.sock", "must be unix:///path"),
        ("file://server/folder", "must be file:///folder"),
        ("file:///folder?db=0", "must be file:///folder"),
        ("file:///no/such/folder", "^file:///no/such/folder; must be a folder that exists"),
        (f"redis://me:{SECRET}@host:x", "must be redis://"),
        (f"redis://me:{SECRET}@host/x", "must end with the number"),
        (f"redis+sentinel://me:{SECRET}@a,b:99999/weights", "must have ports"),
        (f"redis://host?password=x&{SECRET}=1", "may have a query"),
        (f"redis://:x@y/{SECRET}@host", "must be redis://"),
        (f"redis://me:1?{SECRET}@host", "must be redis://"),
        (f"redis://[{SECRET}@host", "must be redis://"),
    ],
)
def test_urls_that_cannot_be(url, reason):
    with pytest.raises(ValueError, match=reason) as error:
        open_store(url)
    assert SECRET not in str(error.value)
    assert "\n" not in str(error.value)


def test_what_urls_say():
    address = check("redis+sentinel://me:p%40w@a:1,b,[::1]:3/weights/4?socket_timeout=9")
    assert address.hosts == (("a", 1), ("b", 26379), ("::1", 3))
    assert (address.service, address.tls) == ("weights", False)
    assert address.settings == {"username": "me", "password": "p@w", "db": 4, "socket_timeout": 9.0}
    assert "p@w" not in repr(address)
    assert check("rediss+cluster://a,b:7").hosts == (("a", 6379), ("b", 7))
    assert masked(f"redis+sentinel://me:{SECRET}@a:1,b/weights/4?x=y") == "redis+sentinel://a:1,b/weights/4"
    kwargs = connect("redis://host?socket_timeout=9").connection_pool.connection_kwargs
    assert (kwargs["socket_timeout"], kwargs["socket_connect_timeout"]) == (9, 5)


TLS = "rediss://localhost"
WRONG_OPTIONS = {
    "ca without TLS": ("redis://localhost", {"ca_file": "ca.pem"}, "redis_ca_file", "needs rediss://"),
    "no such ca": (TLS, {"ca_file": "ca.pem"}, "redis_ca_file", "No such file"),
    "ca of words": (TLS, {"ca_file": "words"}, "redis_ca_file", "must be a file of certificates"),
    "key alone": (TLS, {"key_file": "words"}, "redis_key_file", "needs a certificate"),
    "no such key": (TLS, {"certificate_file": "words", "key_file": "nowhere"}, "redis_key_file", "cannot be read"),
    "words": (TLS, {"certificate_file": "words"}, "redis_certificate_file", "must be a certificate with its key"),
    "no password": ("redis://localhost", {"password_file": "nowhere"}, "redis_password_file", "No such file"),
    "empty": ("redis://localhost", {"password_file": "empty"}, "redis_password_file", "must hold 1 to 4096 bytes"),
    "endless": ("redis://localhost", {"password_file": "/dev/zero"}, "redis_password_file", "must hold 1 to 4096"),
    "no text": ("redis://localhost", {"password_file": "noise"}, "redis_password_file", "must be UTF-8 text"),
    "two": (f"redis://:{SECRET}@host", {"password_file": "words"}, "redis_password_file", "has a password too"),
    "two users": (f"redis://{SECRET}@host", {"username": SECRET}, "redis_username", "has a user too"),
    "no Sentinel": (
        "redis://host",
        {"sentinel_password_file": "words"},
        "redis_sentinel_password_file",
        "no Sentinels",
    ),
    "folder": ("file:///tmp", {"password_file": "words"}, "redis_password_file", "a folder takes none"),
}


@pytest.mark.parametrize("case", WRONG_OPTIONS)
def test_options_that_cannot_be_name_the_setting(case, tmp_path):
    url, options, setting, reason = WRONG_OPTIONS[case]
    for name, data in (("words", SECRET.encode()), ("empty", b"\n"), ("noise", b"\xff" + SECRET.encode())):
        (tmp_path / name).write_bytes(data)
    options = {name: text if name == "username" else str(tmp_path / text) for name, text in options.items()}
    with pytest.raises(LinkError, match=reason) as of_trainer:
        WeightPublisher(url, "run", link=LinkOptions(**options))
    flags = {"redis": url} | {f"redis_{name}": text for name, text in options.items()}
    with pytest.raises(SetupError, match=f"^{setting} is ") as of_server:
        load(flags, {}, None)
    for text in (str(of_trainer.value), str(of_server.value)):
        assert SECRET not in text
        assert "\n" not in text
    assert reason in str(of_server.value)


def test_settings_are_shown_without_secrets(tmp_path):
    (tmp_path / "password").write_text(SECRET)
    flags = {"redis": "redis://h/0?client_name=x", "redis_username": "someone"}
    shown = load(flags | {"redis_password_file": str(tmp_path / "password")}, {}, None).shown()
    assert (shown["redis"], shown["redis_username"]) == ("redis://h/0", "***")
    assert shown["redis_password_file"] == str(tmp_path / "password")
    shown = load({"redis": f"redis+cluster://me:{SECRET}@h,i"}, {}, None).shown()
    assert SECRET not in str(shown)
    assert shown["redis"] == "redis+cluster://h,i"
