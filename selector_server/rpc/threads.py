"""Work beside the event loop."""

import asyncio
from collections.abc import Callable
from threading import Event
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[Event], T]) -> T:
    """What `work` returns, called off the event loop. It is told when nobody waits for it any more, and holds its
    request's permit until it has ended."""
    abandoned = Event()
    running = asyncio.ensure_future(asyncio.to_thread(work, abandoned))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        abandoned.set()
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # looked at, for nobody else will
        raise
