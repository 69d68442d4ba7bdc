"""Runs an iterator on a thread of its own, a bounded number of items ahead of its user."""

import threading
from collections.abc import Generator, Iterator
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()


def prefetched(items: Iterator[T], depth: int, thread_name: str) -> Generator[T, None, None]:
    """Yields the same items, of which `depth` may be ready or under way before they are asked for; at 0 there is no
    thread. What `items` raises is raised here. When this iterator is closed, the thread ends after the item that is
    under way."""
    if not depth:
        yield from items
        return
    done: SimpleQueue[Any] = SimpleQueue()
    room = threading.Semaphore(depth)
    stop = threading.Event()

    def work() -> None:
        try:
            room.acquire()
            for item in items:
                done.put(item)
                room.acquire()
                if stop.is_set():
                    return
            done.put(_END)
        except BaseException as error:  # whatever the user's iterable raises belongs to the user's thread
            done.put(error)

    # The thread runs in the user's context, so that what happens on it belongs to the user's trace.
    threading.Thread(target=copy_context().run, args=(work,), name=thread_name, daemon=True).start()
    try:
        while (item := done.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            room.release()
            yield item
    finally:
        stop.set()
        room.release()
