"""Where weights are kept: Redis or a folder, by URL, behind the few methods that publisher and source need."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, cast

import redis
from redis.cluster import RedisCluster
from redis.exceptions import RedisClusterException
from redis.sentinel import MasterNotFoundError

from selector_proto.weights import redis_bulk
from selector_proto.weights.folder_store import FolderStore
from selector_proto.weights.layout import MOVE_POINTER, NEXT_VERSION, Keys
from selector_proto.weights.redis_link import LinkOptions, check, connect, masked
from selector_proto.weights.redis_url import LinkError, parse

log = logging.getLogger(__name__)
R = TypeVar("R")
# Keys whose time to live is renewed in one round trip.
_PIPELINE = 1000


class Store(Protocol):
    """Values by key, as in Redis. Methods raise redis.RedisError when the store cannot be reached."""

    def get(self, key: str) -> bytes | None: ...
    def getrange(self, key: str, start: int, end: int) -> bytes: ...
    def set_all(self, items: Iterable[tuple[str, memoryview]], *, ex: int) -> None: ...
    def fill(self, keys: Sequence[str], rooms: Sequence[memoryview]) -> Iterator[int]: ...
    def unlink(self, *keys: str) -> int: ...
    def next_version(self, keys: Keys, owner: str, above: int, ttl: int) -> int: ...
    def move_pointer(self, keys: Keys, owner: str, version: int, manifest: bytes, ttl: int) -> int: ...
    def renew(self, names: Sequence[str], ttl: int) -> bool: ...
    def left_behind(self, keys: Keys) -> dict[int, list[str]]: ...
    def danger(self) -> str: ...
    def listen(self, channel: str) -> "Callable[[float], bool] | None": ...
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

        def read(client: redis.Redis | RedisCluster) -> bytes:
            if isinstance(client, redis.Redis):
                return redis_bulk.read_part(client, key, start, end)
            value = client.getrange(key, start, end)
            if not isinstance(value, bytes):
                raise redis.InvalidResponse(f"Redis answered {str(value)[:40]} instead of bytes")
            return value

        return self._do(read)

    def set_all(self, items: Iterable[tuple[str, memoryview]], *, ex: int) -> None:
        """Replaces many large values, one after the other; Redis forgets them after `ex` seconds."""

        def write(client: redis.Redis | RedisCluster) -> None:
            if isinstance(client, redis.Redis):
                redis_bulk.write(client, items, ex)
                return
            for key, value in items:
                client.set(key, value, ex=ex)

        self._do(write)

    def fill(self, keys: Sequence[str], rooms: Sequence[memoryview]) -> Iterator[int]:
        """Puts the value of each key at the start of its room and yields its length, 0 if there is none. It ends after
        the first that does not fit, of which it yields a length greater than the room's."""
        with self._connected() as client:
            if isinstance(client, redis.Redis):
                yield from redis_bulk.read(client, keys, rooms)
                return
            for key, room in zip(keys, rooms, strict=True):
                value = cast(bytes, client.getrange(key, 0, len(room)))  # one byte more than there is room for
                if fits := len(value) <= len(room):
                    room[: len(value)] = value
                yield len(value)
                if not fits:
                    return

    def next_version(self, keys: Keys, owner: str, above: int, ttl: int) -> int:
        """The next version, higher than `above` and than all before; -1 if another publisher owns the run. Otherwise
        `owner` (epoch and token) owns it from now on."""
        arguments = (keys.owner, keys.counter, keys.pointer, owner, ttl, above)
        return int(cast(int, self._do(lambda client: client.eval(NEXT_VERSION, 3, *arguments))))

    def move_pointer(self, keys: Keys, owner: str, version: int, manifest: bytes, ttl: int) -> int:
        """Puts the manifest, moves the pointer to it, forward only, and announces it; returns the version that it
        points to, -1 as above."""
        names = (keys.owner, keys.counter, keys.pointer, keys.manifest(version))
        arguments = (*names, owner, ttl, version, manifest)
        now = int(cast(int, self._do(lambda client: client.eval(MOVE_POINTER, 4, *arguments))))
        try:
            self._do(lambda client: client.publish(keys.news, version))
        except redis.RedisError:  # perhaps not allowed to announce anything: readers look by themselves
            log.debug("no announcement of version %d", version, exc_info=True)
        return now

    def renew(self, names: Sequence[str], ttl: int) -> bool:
        """Lets keys live for `ttl` seconds from now; False if any of them is gone."""
        alive = True
        for start in range(0, len(names), _PIPELINE):
            part = names[start : start + _PIPELINE]
            alive &= self._do(lambda client, part=part: _expire(client, part, ttl))  # type: ignore[misc]
        return alive

    def left_behind(self, keys: Keys) -> dict[int, list[str]]:  # noqa: ARG002 - it would be a scan of everybody's keys
        """Nothing that would stay: whatever a dead publisher left dies by itself."""
        return {}

    def danger(self) -> str:
        """Why this Redis may throw away chunks that are in use, or an empty text."""
        try:
            memory = self._do(_memory)
        except redis.ResponseError as error:  # not allowed to ask
            log.warning("cannot tell whether Redis evicts keys: %s", error)
            return ""
        policy, most = memory.get("maxmemory_policy", "noeviction"), memory.get("maxmemory", 0)
        if most and policy != "noeviction":
            return f"maxmemory-policy is {policy}; must be noeviction, or live chunks vanish without an error"
        return ""

    def listen(self, channel: str) -> "Callable[[float], bool] | None":
        """Waits at most so many seconds for an announcement; whether one came. None where nothing can be heard."""
        if parse(self._url).kind == "cluster":  # asked before connecting: its client asks all nodes at once
            return None
        with self._connected() as client:
            subscription = client.pubsub()  # type: ignore[no-untyped-call]
            subscription.subscribe(channel)

        def wait(seconds: float) -> bool:
            with self._connected():
                message = subscription.get_message(timeout=seconds)
            return message is not None and message["type"] == "message"

        return wait

    def unlink(self, *keys: str) -> int:
        """Forgets the keys; returns how many of them there were."""
        return self._do(lambda client: client.unlink(*keys))

    def close(self) -> None:
        """Ends the connections; the next use makes new ones."""
        if self._client is not None:
            self._client.close()

    def _do(self, command: Callable[[redis.Redis | RedisCluster], R]) -> R:
        with self._connected() as client:
            return command(client)

    @contextmanager
    def _connected(self) -> Iterator[redis.Redis | RedisCluster]:
        try:
            if self._client is None:
                self._client = connect(self._url, self._options)
            yield self._client
        except MasterNotFoundError as error:  # its text has every setting of every Sentinel
            message = f"no Sentinel names a master: each is down, refuses us, or knows none at {masked(self._url)}"
            raise redis.ConnectionError(message) from error
        except (RedisClusterException, LinkError) as error:  # no RedisErrors: no node answers, a file is gone since
            raise redis.ConnectionError(str(error)) from error
        except (redis.RedisError, OSError):
            raise
        except Exception as error:  # redis-py's parser believes what it reads, and fails in many ways over nonsense
            raise redis.InvalidResponse(
                f"Redis answered nonsense: {type(error).__name__}: {str(error)[:200]}"
            ) from error


def _expire(client: Any, names: Sequence[str], ttl: int) -> bool:
    pipeline = client.pipeline(transaction=False)
    for name in names:
        pipeline.expire(name, ttl)
    return all(pipeline.execute())


def _memory(client: Any) -> dict[str, Any]:
    """INFO memory, of the worst node of a cluster."""
    if isinstance(client, RedisCluster):
        nodes = client.info("memory", target_nodes=RedisCluster.PRIMARIES)
        several = list(nodes.values()) if "maxmemory" not in nodes else [nodes]
        return max(
            several, key=lambda node: (node.get("maxmemory_policy") != "noeviction", bool(node.get("maxmemory")))
        )
    return cast("dict[str, Any]", client.info("memory"))
