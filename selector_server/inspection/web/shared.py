"""What keeps the page cheap however many look at it: one answer for all who ask the same, and a bound on requests."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable

# Who asks the same within so many seconds gets the same answer; that many answers are kept.
SHARED_SECONDS, MAX_SHARED = 0.5, 16
# Requests that are answered at once, and how many more each second: about a twentieth of a core.
BURST, REQUESTS_A_SECOND = 100.0, 50.0


class Shared:
    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[float, asyncio.Future[bytes]]] = {}

    async def get(self, key: Hashable, make: Callable[[], Awaitable[bytes]]) -> bytes:
        """Returns what `make` returns, or returned a moment ago, and raises what it raises."""
        now = asyncio.get_running_loop().time()
        self._known = {key: known for key, known in self._known.items() if known[0] > now}
        if key not in self._known:
            while len(self._known) >= MAX_SHARED:
                del self._known[next(iter(self._known))]
            self._known[key] = (now + SHARED_SECONDS, asyncio.ensure_future(make()))
        # Who hangs up must not take the answer from the others.
        return await asyncio.shield(self._known[key][1])


class Pace:
    """Delays requests that come too fast; a browser whose turn is late just looks slow."""

    def __init__(self) -> None:
        self._left, self._at = BURST, 0.0

    async def wait(self) -> None:
        now = asyncio.get_running_loop().time()
        self._left = min(BURST, self._left + (now - self._at) * REQUESTS_A_SECOND) - 1
        self._at = now
        if self._left < 0:
            await asyncio.sleep(-self._left / REQUESTS_A_SECOND)
