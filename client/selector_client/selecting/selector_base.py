"""What the blocking selector and its asyncio twin offer alike."""

from selector_client.selecting.breaker import Breaker
from selector_client.selecting.link import Link
from selector_client.selecting.selection import Statistics
from selector_client.selecting.session import Session
from selector_client.selecting.settings import Settings


class SelectorBase:
    """The part of a selector that makes no calls. Trainers need `settings` and `statistics`; the other names are for
    this package's loader and metrics."""

    def __init__(self, session: Session, link: Link) -> None:
        self._session = session
        session.reach(link)

    @property
    def settings(self) -> Settings:
        """The settings that say how it picks."""
        return self._session.settings

    @property
    def statistics(self) -> Statistics:
        """What was counted since the start."""
        return self._session.statistics

    @property
    def timeout(self) -> float:
        """How many seconds a selection may take, with its retries, if it is given no timeout of its own."""
        return self._session.timeout

    @property
    def breaker(self) -> Breaker:
        """The breaker, which says whether the sidecar is being asked at present."""
        return self._session.breaker

    @property
    def seed(self) -> int:
        """The seed; together with `count` it decides the noise of the next selection."""
        return self._session.seed

    @property
    def count(self) -> int:
        """How many selections were begun."""
        return self._session.count

    def resume(self, count: int, seed: int | None = None) -> None:
        """Makes the next selection the one that follows `count` others, as a checkpoint recorded them. A `seed`
        replaces the present one."""
        self._session.resume(count, seed)
