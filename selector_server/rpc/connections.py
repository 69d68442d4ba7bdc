"""Sees how many connections an address has. gRPC bounds them, but tells nobody: one too many is closed in silence."""

import logging
import os
import resource
import socket
import stat
import time
from collections import Counter
from contextlib import suppress

from selector_proto.contract import socket_path

log = logging.getLogger(__name__)

WARN_SECONDS = 60.0
# Files that a sidecar has open besides its connections: models, caches, Redis, shared memory.
OTHER_FILES = 512


class Connections:
    """The connections to one address of this process, of which there may be `limit`. `setting` and `listen` name the
    address, and `port` is that of a TCP address."""

    def __init__(self, setting: str, listen: str, port: int, limit: int) -> None:
        self._setting, self._listen, self._port, self._limit = setting, listen, port, limit
        self._warned = -WARN_SECONDS

    def share(self) -> float:
        """How many there are, of as many as may be."""
        return self._peers().total() / self._limit

    def warn(self) -> None:
        """Logs, once a minute at most, that no more are taken, and from where most of them come."""
        if time.monotonic() - self._warned < WARN_SECONDS or len(_files()) < self._limit:
            return
        peers = self._peers()
        if peers.total() < self._limit:
            return
        self._warned = time.monotonic()
        [(host, most)] = peers.most_common(1)
        words = "%s is %s; has %d of %d connections (max_connections), so that one more is closed; %d are from %s"
        log.warning(words, self._setting, self._listen, peers.total(), self._limit, most, host)

    def _peers(self) -> Counter[str]:
        """Counts connections by the host at their other end. gRPC accepts them, so they are found among the files of
        this process; where these are not listed, there are none."""
        found: Counter[str] = Counter()
        for file in _files():
            if (host := self._peer(file)) is not None:
                found[host] += 1
        return found

    def _peer(self, file: int) -> str | None:
        with suppress(OSError):  # it was closed meanwhile, or listens
            if not stat.S_ISSOCK(os.fstat(file).st_mode):
                return None
            end = socket.socket(fileno=file)
            try:
                own, other = end.getsockname(), end.getpeername()
            finally:
                end.detach()  # it stays gRPC's
            if isinstance(own, tuple):
                return str(other[0]).removeprefix("::ffff:") if own[1] == self._port else None
            # gRPC binds unix:///path under the name ///path.
            mine = own and socket_path(f"unix:{own}") == socket_path(self._listen)
            return "this host" if mine else None
        return None


def _files() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/dev/fd")]
    except OSError:
        return []


def allow_files(connections: int) -> None:
    """Raises this process's own limit of open files, where it may, so that as many connections can be there. Without
    that, the kernel would refuse them before gRPC does, and Redis and the cache with them."""
    needed = connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < needed:
        log.warning("open files are limited to %d (ulimit -n); %d are needed for max_connections", most, needed)
