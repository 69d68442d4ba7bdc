"""Runs an iterator on a thread, a bounded number of items ahead of who uses them."""

import threading
from collections.abc import Generator, Iterator
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()


def ahead(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """The same items, of which `depth` may be ready or under way before they are asked for; at 0, none. What `items`
    raises is raised here. When this iterator is closed, the thread ends after the item under way."""
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
        except BaseException as error:  # whatever the user's iterable raises belongs to the trainer's thread
            done.put(error)

    # In the trainer's context: what happens on the thread belongs to its trace.
    threading.Thread(target=copy_context().run, args=(work,), name="selecting-loader", daemon=True).start()
    try:
        while (item := done.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            room.release()
            yield item
    finally:
        stop.set()
        room.release()
