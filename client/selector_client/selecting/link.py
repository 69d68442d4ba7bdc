"""The channel that the calls of one selector go through, and when it is given up for a new one."""

import logging
import os
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import grpc

from selector_client.errors import SelectorClientError, Unreachable, Untrusted
from selector_client.selecting.call_errors import (
    answered_by_sidecar,
    closed_silently,
    closes_at_once,
    error_of,
    pings_refused,
)
from selector_client.selecting.channel import health_check, is_serving, open_channel, service
from selector_client.selecting.credentials import Access
from selector_client.selecting.selection import Statistics

log = logging.getLogger(__name__)

# After so many deadlines in a row a connection may be dead, although the sidecar answers new ones.
SILENT_DEADLINES = 2
# But the sidecar may only be slow. A new connection costs it time, so that silence brings at most one in so many
# seconds, and those of many trainers come apart by up to so many.
RENEWAL_SECONDS, JITTER_SECONDS = 5.0, 2.0
# Keepalive pings that are to come more often, or less often, are not sent.
KEEPALIVE_SECONDS = (1.0, 7200.0)
PROBE_SECONDS = 2.0


@dataclass(eq=False)
class Connection:
    """A channel, which belongs to the process or the event loop `owner` and pings every `keepalive` seconds (0: never).
    It had `silent` deadlines since its last answer."""

    channel: Any
    owner: Any
    keepalive: float
    silent: int = 0


class Link(ABC):
    """Keeps one connection, which the first call opens. It may be used from several threads.

    Calls that are under way in a connection that was given up go on in it; it is closed when the last of them ends.
    Credentials are read anew for each connection.
    """

    def __init__(self, address: str, access: Access, statistics: Statistics) -> None:
        self.address, self.access, self._statistics = address, access, statistics
        self._own_lock, self._process = threading.Lock(), os.getpid()
        self._current: Connection | None = None
        self._alive: WeakSet[Connection] = WeakSet()  # this one, and those whose last calls are still under way
        self._keepalive, self._pings_refused = 0.0, False
        self._due = 0.0  # a silent connection is not given up before this time of time.monotonic()
        self._answered = False  # whether any connection ever brought an answer
        self.closings = 0  # how often it was closed
        self._closed = False  # whether it was, and no call came since
        self._told = False  # whether the log says that no sidecar answers health checks

    @abstractmethod
    def healthy(self) -> bool:
        """Whether the sidecar says that it serves requests. It is asked through the connection that calls will use,
        because another one may work where this one does not."""

    @abstractmethod
    def _open(self, keepalive: float) -> Any:
        """Opens a channel. Raises Untrusted."""

    @abstractmethod
    def _owner(self) -> Any:
        """To whom a channel that is opened now belongs."""

    @property
    def _lock(self) -> threading.Lock:
        """The lock, which is a new one in a forked child: a thread that is not there may have held it."""
        if self._process != os.getpid():
            self._own_lock, self._process = threading.Lock(), os.getpid()
        return self._own_lock

    def keep_alive(self, seconds: float) -> None:
        """Notes how often the sidecar wants to be pinged; the next call opens a connection that does so. Sidecars of
        version 0.1 say 0, and end connections that ping them."""
        least, most = KEEPALIVE_SECONDS
        with self._lock:
            self._keepalive = seconds if least <= seconds <= most and not self._pings_refused else 0.0

    def take(self, since: int | None = None, *, probing: bool = False) -> Connection:
        """Returns the connection for the next call. Raises Untrusted, and Unreachable if the link was closed since it
        had been closed `since` times, or, for a probe, if no call came after that."""
        with self._lock:
            if since not in (None, self.closings) or (probing and self._closed):
                raise Unreachable("closed", f"{self.address}: closed before the request was sent")
            self._closed = False
            owner, old = self._owner(), self._current
            # A channel from before a fork would hang or crash after it, and one of another loop cannot be awaited.
            usable = old is not None and old.owner == owner
            if old is not None and usable and not self._is_over(old):
                return old
            with suppress(Untrusted) if usable else nullcontext():  # files that are being rotated cost no connection
                self._current = Connection(self._open(self._keepalive), owner, self._keepalive)
            assert self._current is not None
            self._alive.add(self._current)
            return self._current

    def _is_over(self, connection: Connection) -> bool:
        if connection.keepalive != self._keepalive:
            return True
        now = time.monotonic()
        if connection.silent < SILENT_DEADLINES or now < self._due:
            return False
        self._due = now + RENEWAL_SECONDS
        self._statistics.renewals += 1
        words = "%s: %d deadlines in a row, so that a new connection is opened"
        log.log(
            logging.WARNING if self._statistics.renewals == 1 else logging.INFO, words, self.address, connection.silent
        )
        return True

    def heard(self, connection: Connection) -> None:
        """Notes that an answer came, whatever it says."""
        connection.silent, self._answered = 0, True

    def is_unclear(self, error: grpc.RpcError) -> bool:
        """Whether a look at the address, for a moment, would tell more about the error."""
        return not self._answered and closed_silently(error)

    def failed(self, connection: Connection, error: grpc.RpcError, full: bool = False) -> SelectorClientError:
        """Notes that a call failed, and returns the client's error for that. `full` says that a look at the address
        found that it takes no more connections."""
        code = error.code()
        if answered_by_sidecar(error):
            self.heard(connection)
        with self._lock:
            if code is grpc.StatusCode.UNAVAILABLE and self._current is connection:
                # Between calls nothing drives the channel's own attempts to reconnect, so that it may take 10 s to find
                # a sidecar that is back.
                self._current = None
            elif code is grpc.StatusCode.DEADLINE_EXCEEDED and not answered_by_sidecar(error):
                connection.silent += 1
                if connection.silent == SILENT_DEADLINES:
                    jitter = random.uniform(0, JITTER_SECONDS)  # noqa: S311 - no secret
                    self._due = max(self._due, time.monotonic() + jitter)
            if pings_refused(error):  # by another sidecar, or by a proxy on the way to the one that wants them
                self._keepalive, self._pings_refused = 0.0, True
        return error_of(error, self.address, self.access, full or self._answered)

    def _unhealthy(self, error: SelectorClientError) -> bool:
        """Returns False, and says in the log, once, if the way to the sidecar's health check has to be mended."""
        if error.reason in ("unimplemented", "proxy") and not self._told:
            self._told = True
            words = "the health check /grpc.health.v1.Health/Check, after which selections go on, is not answered: %s"
            log.warning(words, error)
        return False

    def _left(self) -> list[Connection]:
        """Forgets all connections, and returns those that are this owner's, who may close them."""
        with self._lock:
            left, self._current = list(self._alive), None
            self.closings, self._closed = self.closings + 1, True
            return [connection for connection in left if connection.owner == self._owner()]


class BlockingLink(Link):
    """The link of a blocking selector. A forked child opens a connection of its own."""

    def call(self, call: Callable[[Any], Any], since: int | None = None) -> Any:
        """Returns what `call` returns, which is given the calls of SelectorService. Raises SelectorClientError, and
        sends nothing if the link was closed since it had been closed `since` times."""
        return self._through(self.take(since), lambda channel: call(service(channel, self.access)))

    def healthy(self) -> bool:
        try:
            connection = self.take(probing=True)
            return is_serving(self._through(connection, lambda channel: health_check(channel, PROBE_SECONDS)))
        except SelectorClientError as error:
            return self._unhealthy(error)

    def close(self) -> None:
        """Ends all connections and what is under way in them. A later call opens a new one."""
        for left in self._left():
            left.channel.close()

    def _through(self, connection: Connection, call: Callable[[grpc.Channel], Any]) -> Any:
        try:
            answer = call(connection.channel)
        except grpc.RpcError as error:
            full = self.is_unclear(error) and closes_at_once(self.address)
            raise self.failed(connection, error, full) from error
        except ValueError as error:  # gRPC raises it when the channel is closed under a running call
            raise Unreachable("closed", f"{self.address}: {error}") from error
        self.heard(connection)
        return answer

    def _open(self, keepalive: float) -> grpc.Channel:
        return open_channel(self.address, self.access, keepalive)

    def _owner(self) -> int:
        return os.getpid()
