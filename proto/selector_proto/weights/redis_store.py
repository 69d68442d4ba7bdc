"""Weights in Redis: one server, Sentinels or a cluster. The only place where redis-py's errors are seen."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import redis
from redis.cluster import RedisCluster
from redis.exceptions import RedisClusterException
from redis.sentinel import MasterNotFoundError

from selector_proto.weights import redis_bulk
from selector_proto.weights.layout import Keys
from selector_proto.weights.link import LinkError, LinkOptions, masked
from selector_proto.weights.redis_link import check, connect
from selector_proto.weights.redis_url import parse
from selector_proto.weights.store import (
    StoreError,
    StoreFull,
    StoreGarbled,
    StoreMistyped,
    StoreRefused,
    StoreUnavailable,
)

log = logging.getLogger(__name__)
R = TypeVar("R")
# The time to live of so many keys is renewed in one round trip.
_PIPELINE = 1000
# What a server refuses and we can do without is asked again after so long.
_IMPOSSIBLE_SECONDS = 600.0
_REASON = 300

# A script does in one step what two publishers must not mix. KEYS are the run's owner, counter, pointer and manifest;
# ARGV are the publisher as owner (`layout` says what that is), seconds to live, a version and a manifest. Each script
# first sees to it that the publisher may go on, and makes it the owner.
_OWN = """
local function epoch(owner) return tonumber(string.match(owner, '^(%d+) ') or '0') end
local found = redis.call('GET', KEYS[1])
if found and found ~= ARGV[1] and epoch(found) >= epoch(ARGV[1]) then return -1 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
local function number(key)
  local text = redis.call('GET', key) or '0'
  if #text > 15 or not string.match(text, '^%d+$') then error(key .. ' holds no number') end
  return tonumber(text)
end
"""
# Gives the next version, above ARGV[3] and all before; -1 if another publisher owns the run.
_NEXT_VERSION = (
    _OWN
    + """
local new = math.max(number(KEYS[2]), number(KEYS[3]), tonumber(ARGV[3])) + 1
redis.call('SET', KEYS[2], string.format('%.0f', new), 'EX', ARGV[2])
return new
"""
)
# Puts the manifest and moves the pointer, forward only; gives the version that the pointer has now, -1 as above.
_MOVE_POINTER = (
    _OWN
    + """
local now = number(KEYS[3])
if tonumber(ARGV[3]) <= now then return now end
redis.call('SET', KEYS[4], ARGV[4], 'EX', ARGV[2])
redis.call('SET', KEYS[3], ARGV[3], 'EX', ARGV[2])
return tonumber(ARGV[3])
"""
)


def open_redis(url: str, options: LinkOptions, write: bool) -> "RedisStore":  # noqa: ARG001 - Redis itself says what may be written
    """The Redis at `url`. Raises LinkError."""
    check(url, options)
    return RedisStore(url, options)


class RedisStore:
    """A `Store` in Redis. It connects when it is first used: a cluster's client would otherwise fail where training
    starts."""

    def __init__(self, url: str, options: LinkOptions | None = None) -> None:
        self._url, self._options = url, options
        self._client: redis.Redis | RedisCluster | None = None
        self._impossible: dict[str, float] = {}  # commands that are not answered, until they are asked again

    def get(self, key: str) -> bytes | None:
        return cast("bytes | None", self._do(lambda client: client.get(key)))

    def first_bytes(self, key: str, count: int) -> bytes:
        def read(client: redis.Redis | RedisCluster) -> bytes:
            if isinstance(client, redis.Redis):
                return redis_bulk.read_start(client, key, count)
            value = client.getrange(key, 0, count - 1)
            if not isinstance(value, bytes):
                raise redis.InvalidResponse(f"Redis answered {str(value)[:40]} instead of bytes")
            return value

        return self._do(read)

    def put_all(self, items: Iterable[tuple[str, memoryview]], ttl: int) -> None:
        def write(client: redis.Redis | RedisCluster) -> None:
            if isinstance(client, redis.Redis):
                redis_bulk.write(client, items, ttl)
                return
            for key, value in items:
                client.set(key, value, ex=ttl)

        self._do(write)

    def read_into(self, keys: Sequence[str], rooms: Sequence[memoryview]) -> Iterator[int]:
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

    def delete(self, *keys: str) -> int:
        try:
            return self._do(lambda client: client.unlink(*keys))
        except StoreRefused as refused:  # Redis 3 has none
            try:
                return self._do(lambda client: client.delete(*keys))
            except StoreRefused:
                raise refused from None

    def next_version(self, keys: Keys, owner: str, above: int, ttl: int) -> int:
        arguments = (keys.owner, keys.counter, keys.pointer, owner, ttl, above)
        return int(cast(int, self._do(lambda client: client.eval(_NEXT_VERSION, 3, *arguments))))

    def move_pointer(self, keys: Keys, owner: str, version: int, manifest: bytes, ttl: int) -> int:
        names = (keys.owner, keys.counter, keys.pointer, keys.manifest(version))
        arguments = (*names, owner, ttl, version, manifest)
        now = int(cast(int, self._do(lambda client: client.eval(_MOVE_POINTER, 4, *arguments))))
        try:
            self._if_possible("PUBLISH", keys.pointer, lambda client: client.publish(keys.news, version))
        except StoreError:  # readers look by themselves
            log.debug("no announcement of version %d", version, exc_info=True)
        return now

    def renew(self, names: Sequence[str], ttl: int) -> bool:
        alive = True
        for start in range(0, len(names), _PIPELINE):
            part = names[start : start + _PIPELINE]
            alive &= self._do(lambda client, part=part: _expire(client, part, ttl))  # type: ignore[misc]
        return alive

    def left_behind(self, keys: Keys) -> dict[int, list[str]]:  # noqa: ARG002 - it would be a scan of everybody's keys
        """Nothing would stay: whatever a dead publisher left dies by itself."""
        return {}

    def clock(self, key: str) -> float | None:
        def ask(client: Any) -> Any:
            if isinstance(client, RedisCluster):
                return client.time(target_nodes=client.get_node_from_key(key))  # type: ignore[no-untyped-call]
            return client.time()

        if (told := self._if_possible("TIME", key, ask)) is None:
            return None
        seconds, microseconds = told
        return float(seconds) + float(microseconds) / 1e6

    def danger(self, key: str) -> str:
        if (memory := self._if_possible("INFO", key, _memory)) is None:
            return ""
        policy, most = memory.get("maxmemory_policy", "noeviction"), memory.get("maxmemory", 0)
        if most and policy != "noeviction":
            return f"maxmemory-policy is {policy}; must be noeviction, or live chunks vanish without an error"
        return ""

    def listen(self, channel: str) -> Callable[[float], bool] | None:
        if parse(self._url).kind == "cluster":  # asked before connecting: its client asks all nodes at once
            return None

        seconds = (self._options or LinkOptions()).timeout_seconds

        def subscribe(client: Any) -> Any:
            made = client.pubsub()
            made.subscribe(channel)
            made.get_message(timeout=seconds)  # its answer
            return made

        if (subscription := self._if_possible("SUBSCRIBE", channel, subscribe)) is None:
            return None

        def wait(seconds: float) -> bool:
            with self._connected():
                message = subscription.get_message(timeout=seconds)
            return message is not None and message["type"] == "message"

        return wait

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _do(self, command: Callable[[redis.Redis | RedisCluster], R]) -> R:
        with self._connected() as client:
            return command(client)

    def _if_possible(self, name: str, key: str, command: Callable[[Any], R]) -> R | None:
        """What a command answers that we can do without; None if the server refuses it, as it does where the user may
        not use it or the server does not know it. Proxies hang up instead: that is one if another command, with `key`,
        is answered at once. Such a command is asked again later."""
        if time.monotonic() < self._impossible.get(name, 0.0):
            return None
        try:
            return self._do(command)
        except StoreRefused as error:
            reason = str(error)
        except StoreUnavailable as error:
            self.get(key)
            reason = str(error)
        log.warning("Redis does not do %s, and we do without: %s", name, reason)
        self._impossible[name] = time.monotonic() + _IMPOSSIBLE_SECONDS
        return None

    @contextmanager
    def _connected(self) -> Iterator[redis.Redis | RedisCluster]:
        """The client. Whatever goes wrong while it is used is raised as a StoreError."""
        try:
            if self._client is None:
                self._client = connect(self._url, self._options)
            yield self._client
        except StoreError:
            raise
        except MasterNotFoundError as error:  # its text has every setting of every Sentinel
            message = f"no Sentinel names a master: each is down, refuses us, or knows none at {masked(self._url)}"
            raise StoreUnavailable(message) from error
        except (RedisClusterException, LinkError) as error:  # no node answers, or a file is gone since the start
            raise StoreUnavailable(str(error)) from error
        except redis.ResponseError as error:
            raise _refusal(error)(_told(error)) from error
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:  # errors of TLS are OSErrors
            raise StoreUnavailable(_told(error)) from error
        except redis.RedisError as error:
            raise StoreGarbled(_told(error)) from error
        except Exception as error:  # redis-py's parser believes what it reads, and fails in many ways over nonsense
            raise StoreGarbled(f"Redis answered nonsense: {type(error).__name__}: {str(error)[:200]}") from error


def _refusal(error: redis.ResponseError) -> type[StoreRefused]:
    # In a script the server says it by these words alone.
    if isinstance(error, redis.OutOfMemoryError) or "OOM command not allowed" in str(error):
        return StoreFull
    return StoreMistyped if str(error).startswith("WRONGTYPE") else StoreRefused


def _told(error: Exception) -> str:
    """One line: redis-py says much by the names of its errors, and Redis quotes what it does not understand."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:_REASON]
    rights = isinstance(error, redis.exceptions.NoPermissionError) or "ACL failure" in text
    return f"{text} (docs/weight-sync.md has the rights that are needed)" if rights else text


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
