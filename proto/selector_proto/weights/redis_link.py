"""Clients of Redis: one server, Sentinels or a cluster, over TCP, TLS or a unix socket.

The password comes from a file that is read for every new connection, so a rotated secret needs no restart; so do the
certificates. Nothing here logs, and no error or repr tells a password.
"""

import inspect
from pathlib import Path
from typing import Any

import redis
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.credentials import CredentialProvider, UsernamePasswordCredentialProvider
from redis.retry import Retry
from redis.sentinel import Sentinel

from selector_proto import certificates
from selector_proto.weights.link import HIDDEN, LinkError, LinkOptions, masked
from selector_proto.weights.redis_url import Address, parse

MAX_PASSWORD_BYTES = 4096


class PasswordFile(CredentialProvider):
    """Gives redis-py the password of a file, which is read anew for each connection."""

    def __init__(self, path: str | Path, username: str | None = None, option: str = "password_file") -> None:
        self._path, self._username, self._option = Path(path), username, option

    def read(self) -> str:
        """The password. Raises LinkError."""
        try:
            with self._path.open("rb") as stream:
                data = stream.read(MAX_PASSWORD_BYTES + 1).rstrip(b"\r\n")
        except OSError as error:
            raise LinkError(self._path, f"cannot be read: {error.strerror}", self._option) from None
        if not 0 < len(data) <= MAX_PASSWORD_BYTES:
            raise LinkError(self._path, f"must hold 1 to {MAX_PASSWORD_BYTES} bytes", self._option)
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise LinkError(self._path, "must be UTF-8 text", self._option) from None  # the cause holds the password

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """What redis-py sends with AUTH. Raises redis.AuthenticationError."""
        try:
            password = self.read()
        except LinkError as error:
            raise redis.AuthenticationError(f"password file {error}") from None
        return (self._username, password) if self._username else (password,)


def check(url: str, options: LinkOptions | None = None) -> Address:
    """What the URL says, if it and the options can be. Connects to nothing. Raises LinkError."""
    options = options or LinkOptions()
    address, shown = parse(url), masked(url)
    for name in ("ca_file", "certificate_file", "key_file"):
        if getattr(options, name) is not None and not address.tls:
            raise LinkError(getattr(options, name), f"needs rediss://, not {shown}", name)
    if options.username is not None and "username" in address.settings:
        raise LinkError(HIDDEN, "the URL has a user too; give one of them", "username")
    if options.password_file is not None and "password" in address.settings:
        raise LinkError(options.password_file, "the URL has a password too; give one of them", "password_file")
    if options.sentinel_password_file is not None and address.kind != "sentinel":
        raise LinkError(options.sentinel_password_file, f"{shown} has no Sentinels", "sentinel_password_file")
    for name in ("password_file", "sentinel_password_file"):
        if (file := getattr(options, name)) is not None:
            PasswordFile(file, option=name).read()
    if address.tls:
        _check_certificates(options)
    return address


def connect(url: str, options: LinkOptions | None = None) -> redis.Redis | RedisCluster:
    """A client. That of a cluster asks for its nodes at once, and raises what redis-py raises; the others connect when
    they are first used. Raises LinkError for what cannot be."""
    options = options or LinkOptions()
    address = check(url, options)
    # The older protocol has all that we need, and every server and proxy speaks it. The newer one begins with HELLO,
    # which Redis knows from version 6 on, and which may be renamed away.
    settings = _shared(options, address.tls) | {"protocol": 2} | address.settings
    settings |= _credentials(options, settings.pop("username", None), settings.pop("password", None))
    # Few and short retries will do: who uses this waits and tries again by itself, and says so.
    retry = Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), 3)
    if address.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in address.hosts]  # type: ignore[no-untyped-call]
        return RedisCluster(startup_nodes=nodes, retry=retry, **settings)
    settings["retry"] = retry
    if address.kind == "single":
        if address.path:
            return redis.Redis(unix_socket_path=address.path, **settings)
        host, port = address.hosts[0]
        return redis.Redis(host, port, **settings)
    # A dead Sentinel is not waited for: the next one is asked.
    asked = _shared(options, address.tls) | {"protocol": 2, "retry": Retry(NoBackoff(), 0)}
    if options.sentinel_password_file is not None:
        asked |= {"credential_provider": PasswordFile(options.sentinel_password_file)}
    master = Sentinel(address.hosts, sentinel_kwargs=asked).master_for(address.service, **settings)  # type: ignore[no-untyped-call]
    assert isinstance(master, redis.Redis)
    return master


def _shared(options: LinkOptions, tls: bool) -> dict[str, Any]:
    """redis-py's settings that Sentinels and servers have in common."""
    settings: dict[str, Any] = {
        "socket_timeout": options.timeout_seconds,
        "socket_connect_timeout": options.timeout_seconds,
    }
    # Proxies hang up on a command that they do not know, such as the one that tells the library's name.
    newer = "driver_info" in inspect.signature(redis.Redis.__init__).parameters
    settings |= {"driver_info": None} if newer else {"lib_name": None, "lib_version": None}
    if tls:
        names = {"ssl_ca_certs": options.ca_file, "ssl_certfile": options.certificate_file}
        names |= {"ssl_keyfile": options.key_file}
        settings |= {"ssl": True, "ssl_cert_reqs": "required", "ssl_check_hostname": True}
        settings |= {name: str(file) for name, file in names.items() if file is not None}
    return settings


def _credentials(options: LinkOptions, url_username: str | None, url_password: str | None) -> dict[str, Any]:
    username = options.username or url_username
    if options.password_file is not None:
        return {"credential_provider": PasswordFile(options.password_file, username)}
    if username is None and url_password is None:
        return {}
    # They go into a provider: some versions of redis-py show a pool's passwords, and none shows a provider's.
    provider = UsernamePasswordCredentialProvider(username, url_password)
    return {"credential_provider": provider}


def _check_certificates(options: LinkOptions) -> None:
    """Raises LinkError for files that cannot be used. redis-py reads them itself, at each connection."""
    try:
        certificates.read(options.ca_file, options.certificate_file, options.key_file)
    except certificates.CertificateError as error:
        raise LinkError(error.value, error.limit, error.option) from None
