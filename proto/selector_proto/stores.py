"""Where weights are kept: Redis or a folder, by URL, behind the few methods that publisher and source need."""

from collections.abc import Callable
from typing import Protocol, TypeVar, cast

import redis
from redis.cluster import RedisCluster
from redis.exceptions import RedisClusterException
from redis.sentinel import MasterNotFoundError

from selector_proto.folder_store import FolderStore
from selector_proto.link_url import LinkError
from selector_proto.redis_link import LinkOptions, check, connect, masked
from selector_proto.weights import MOVE_POINTER, Keys

R = TypeVar("R")


class Store(Protocol):
    """Values by key, as in Redis. Methods raise redis.RedisError when the store cannot be reached."""

    def get(self, key: str) -> bytes | None: ...
    def getrange(self, key: str, start: int, end: int) -> bytes: ...
    def strlen(self, key: str) -> int: ...
    def set(self, key: str, value: bytes | memoryview | str | int, *, ex: int | None = None) -> None: ...
    def incr(self, key: str) -> int: ...
    def unlink(self, *keys: str) -> int: ...
    def move_pointer(self, keys: Keys, version: int) -> int: ...
    def close(self) -> None: ...


def open_store(url: str, options: LinkOptions | None = None, *, write: bool = False) -> Store:
    """The store at `url`; a folder must exist, and be writable if `write`. Connects to nothing yet. Raises LinkError, a
    ValueError, for what cannot be."""
    address = check(url, options)
    if address.kind == "folder":
        return FolderStore(address.path, write=write)
    return RedisStore(url, options)


class RedisStore:
    """Redis, connected when first used: a cluster's client would otherwise fail where training starts."""

    def __init__(self, url: str, options: LinkOptions | None = None) -> None:
        self._url, self._options = url, options
        self._client: redis.Redis | RedisCluster | None = None

    def get(self, key: str) -> bytes | None:
        """The value, None if there is none."""
        return cast("bytes | None", self._do(lambda client: client.get(key)))

    def getrange(self, key: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end`, both included, or as many of them as there are."""
        return cast(bytes, self._do(lambda client: client.getrange(key, start, end)))

    def strlen(self, key: str) -> int:
        """The value's length, 0 if there is none."""
        return self._do(lambda client: client.strlen(key))

    def set(self, key: str, value: bytes | memoryview | str | int, *, ex: int | None = None) -> None:
        """Replaces the value; Redis forgets it after `ex` seconds."""
        self._do(lambda client: client.set(key, value, ex=ex))

    def incr(self, key: str) -> int:
        """Adds one, and returns the sum."""
        return self._do(lambda client: client.incr(key))

    def move_pointer(self, keys: Keys, version: int) -> int:
        """Moves the pointer forward only; returns the version that it points to."""
        return int(cast(int, self._do(lambda client: client.eval(MOVE_POINTER, 1, keys.pointer, str(version)))))

    def unlink(self, *keys: str) -> int:
        """Forgets the keys; returns how many of them there were."""
        return self._do(lambda client: client.unlink(*keys))

    def close(self) -> None:
        """Ends the connections; the next use makes new ones."""
        if self._client is not None:
            self._client.close()

    def _do(self, command: Callable[[redis.Redis | RedisCluster], R]) -> R:
        try:
            if self._client is None:
                self._client = connect(self._url, self._options)
            return command(self._client)
        except MasterNotFoundError as error:  # its text has every setting of every Sentinel
            message = f"no Sentinel names a master: each is down, refuses us, or knows none at {masked(self._url)}"
            raise redis.ConnectionError(message) from error
        except (RedisClusterException, LinkError) as error:  # no RedisErrors: no node answers, a file is gone since
            raise redis.ConnectionError(str(error)) from error
