"""What a store of weights does, and what it raises: the language of publishers and readers, whatever carries the bytes.

StoreError
├── StoreUnavailable   the store cannot be reached, or did not answer in time; it may come back by itself
├── StoreRefused       the store understood, and does not do it: no permission, no such command, no room
│   ├── StoreFull      there is no room
│   └── StoreMistyped  the value is of another type than ours, so that somebody else has its key
└── StoreGarbled       the store answered what cannot be understood

A transport maps the errors of its library to these, once, where it calls the library (`redis_store`, `folder_store`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from selector_proto.weights.layout import Keys


class StoreError(Exception):
    """What a store could not do. The message is made for people and holds no secret."""


class StoreUnavailable(StoreError):
    """The store cannot be reached, or did not answer in time."""


class StoreRefused(StoreError):
    """The store understood and refused: no permission, no such command, no room, a value of another type."""


class StoreFull(StoreRefused):
    """There is no room for it."""


class StoreMistyped(StoreRefused):
    """What has the key is of another type than ours."""


class StoreGarbled(StoreError):
    """The store answered what cannot be understood."""


class Store(Protocol):
    """Values by key. A value is replaced whole: a reader sees the old one or the new one. All methods raise StoreError,
    and none is called from two threads at once. `ttl` is in seconds; a store that forgets nothing by itself ignores it.
    """

    def get(self, key: str) -> bytes | None:
        """A short value (the owner, the counter or the pointer); None if there is none."""
        ...

    def first_bytes(self, key: str, count: int) -> bytes:
        """The first `count` bytes of a value, or as many of them as there are; empty if there is no value."""
        ...

    def put_all(self, items: Iterable[tuple[str, memoryview]], ttl: int) -> None:
        """Puts large values, one after the other. After an error, some of them may be there."""
        ...

    def read_into(self, keys: Sequence[str], rooms: Sequence[memoryview]) -> Iterator[int]:
        """Puts the value of each key at the start of its room and yields its length in bytes, 0 if there is none. It
        ends after the first that does not fit, for which it yields a length greater than the room's."""
        ...

    def delete(self, *keys: str) -> int:
        """Forgets the keys; returns how many of them there were."""
        ...

    def next_version(self, keys: Keys, owner: str, above: int, ttl: int) -> int:
        """The next version, higher than `above` and than all before, at once with the claim: `owner` (epoch and token)
        owns the run from now on. -1 if another publisher owns it (`layout.outranks`)."""
        ...

    def move_pointer(self, keys: Keys, owner: str, version: int, manifest: bytes, ttl: int) -> int:
        """Puts the manifest and moves the pointer to it at once, forward only, and announces it where that is possible;
        returns the version that the pointer has now, -1 as above."""
        ...

    def renew(self, names: Sequence[str], ttl: int) -> bool:
        """Lets keys live for `ttl` seconds from now; False if any of them is gone."""
        ...

    def left_behind(self, keys: Keys) -> dict[int, list[str]]:
        """Keys that former publishers left and that would stay for ever, by version; asked before the first version is
        published. Empty where keys die by themselves."""
        ...

    def clock(self, key: str) -> float | None:
        """The time by the clock of the server that has `key`, in Unix seconds; None where it does not tell. Owners are
        ordered by it and ages counted by it, for the clocks of those who write and read may be wrong."""
        ...

    def danger(self, key: str) -> str:
        """Why the server that has `key` may throw away chunks that are in use; empty if it does not."""
        ...

    def listen(self, channel: str) -> Callable[[float], bool] | None:
        """Begins to listen for announcements. What is returned waits at most so many seconds for the next one, and says
        whether it came. None where nothing can be heard."""
        ...

    def close(self) -> None:
        """Ends the connections. The next use may make new ones."""
        ...
