"""Many large values travel to and from Redis over one connection: each command is sent before the one before it is
answered, and values are received where they are wanted.

redis-py would make two fresh copies of each value and wait for each answer, which is three times as slow. It still does
everything else: connections, TLS, passwords, timeouts. So errors are redis-py's too; `redis_store` maps them.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import redis

# So many commands are sent ahead of their answers: enough that neither side waits for the other.
_AHEAD = 4
# Redis does not say that it hangs up on a reader for whom it holds too much.
_LIMIT = f"is its client-output-buffer-limit for normal clients below {_AHEAD} chunks?"
_LINE_BYTES = 512  # an answer's first line may be so long; errors are cut there


def write(client: redis.Redis, items: Iterable[tuple[str, memoryview]], ttl: int) -> None:
    """Sets every key to its value for `ttl` seconds. Raises redis.RedisError; some of the keys may then be set."""
    with _connection(client) as connection:
        unanswered = 0
        try:
            for key, value in items:
                _send(connection, "SET", key, value, "EX", ttl)
                unanswered += 1
                if unanswered == _AHEAD:
                    connection.read_response()
                    unanswered -= 1
            while unanswered:
                connection.read_response()
                unanswered -= 1
        except redis.ResponseError:
            # Nothing that was sent ahead may be set later, when the caller has deleted what there is.
            for _ in range(unanswered - 1):
                with suppress(redis.ResponseError):
                    connection.read_response()
            raise


def read(client: redis.Redis, keys: Sequence[str], rooms: Sequence[memoryview]) -> Iterator[int]:
    """Puts the value of each key at the start of its room, and yields its length as soon as it is there: 0 if there is
    none, more than the room if it does not fit (then nothing of it is kept, and nothing follows). Raises
    redis.RedisError; ResponseError where a key holds something else."""
    with _connection(client) as connection:
        answers, sent = _Answers(connection), 0
        for index, room in enumerate(rooms):
            try:
                while sent < min(len(keys), index + _AHEAD):
                    _send(connection, "GET", keys[sent])
                    sent += 1
                length = answers.next(room)
            except (redis.ConnectionError, ConnectionError) as error:
                if type(error).__module__.startswith("redis") and type(error) is not redis.ConnectionError:
                    raise  # it says what is wrong
                raise redis.ConnectionError(f"{error} amid a fetch; {_LIMIT}") from error
            yield length
            if length > len(room):
                connection.disconnect()
                return


def read_start(client: redis.Redis, key: str, count: int) -> bytes:
    """The first `count` bytes of a value, or as many of them as there are. redis-py would keep whatever length the
    server says. Raises as `read` does."""
    room = memoryview(bytearray(count))
    with _connection(client) as connection:
        _send(connection, "GETRANGE", key, 0, count - 1)
        length = _Answers(connection).next(room)
        if length > count:
            raise redis.InvalidResponse(f"Redis answered {length} bytes; at most {count} were asked for")
        return bytes(room[:length])


def _send(connection: Any, *command: object) -> None:
    # A health check would take the answer to an earlier command for its own.
    connection.send_packed_command(connection.pack_command(*command), check_health=False)


class _Answers:
    """The replies of a connection, read without a parser: strings, nulls and errors."""

    def __init__(self, connection: Any) -> None:
        self._sock, self._error = connection._sock, connection._parser.parse_error
        self._line = bytearray(_LINE_BYTES)
        self._held = b""  # bytes that came with a line and are behind it

    def next(self, room: memoryview) -> int:
        """Reads the next answer and returns its length; the value is in `room` if it fits."""
        kind, text = self._first_line()
        if kind == b"_" or (kind, text) == (b"$", b"-1"):
            return 0
        if kind == b"-":
            raise self._error(text.decode(errors="replace"))
        if kind != b"$" or not text.isdigit() or len(text) > 18:
            raise redis.InvalidResponse(f"Redis answered {(kind + text)[:40]!r} instead of a value")
        if (length := int(text)) > len(room):
            return length
        early = self._held[:length]
        room[: len(early)] = early
        self._held, end = self._held[length:], len(early)
        while end < length:
            end += self._some(room[end:length])
        while len(self._held) < 2:  # the line break behind the value
            self._more()
        self._held = self._held[2:]
        return length

    def _first_line(self) -> tuple[bytes, bytes]:
        while (end := self._held.find(b"\r\n")) < 0:
            if len(self._held) >= _LINE_BYTES:
                raise redis.InvalidResponse(f"Redis answered {self._held[:40]!r} instead of a value")
            self._more()
        line, self._held = self._held[:end], self._held[end + 2 :]
        return line[:1], line[1:]

    def _more(self) -> None:
        self._held += self._line[: self._some(memoryview(self._line)[: _LINE_BYTES - len(self._held)])]

    def _some(self, room: memoryview) -> int:
        count = int(self._sock.recv_into(room))
        if not count:
            raise redis.ConnectionError("Redis closed the connection")
        return count


@contextmanager
def _connection(client: redis.Redis) -> Iterator[Any]:
    """One of the client's connections. When it goes back, all its answers were read; after an error they may not have
    been, and it is closed."""
    pool = client.connection_pool
    connection: Any = pool.get_connection()
    whole = False
    try:
        yield connection
        whole = True
    except TimeoutError as error:
        raise redis.TimeoutError("timeout reading from Redis") from error
    except OSError as error:
        raise redis.ConnectionError(f"while reading from Redis: {error.strerror or error}") from error
    finally:
        if not whole:
            connection.disconnect()
        pool.release(connection)
