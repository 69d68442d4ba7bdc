"""Work beside the event loop."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from selector_server.engine.caller import Caller

T = TypeVar("T")


async def in_thread(work: Callable[[], T], caller: Caller | None = None) -> T:
    """What `work` returns, called off the event loop. The `caller` is told to have left when nobody waits for it any
    more; the request's permit is held until the work has ended."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if caller is not None:
            caller.leave()
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # looked at, for nobody else will
        raise
