"""How old a version is, though the clocks of its publisher and of this host may be wrong, each by its own time."""

import logging
import time
from dataclasses import dataclass

from selector_server.telemetry.weights_metrics import WeightsMetrics

log = logging.getLogger(__name__)

# Clocks that are kept by NTP are apart by milliseconds.
TOLERATED_SECONDS = 1.0
# Clocks that stay apart are told of again after so long.
TELL_SECONDS = 600.0
# A publication may take so long to copy, cast and send before it can be seen.
SHIPPING_SECONDS = 300.0


@dataclass(frozen=True)
class Clocks:
    """Seconds by which a version's publisher and this host were ahead of the store's clock; None where nobody knows."""

    publisher: float | None = None
    host: float | None = None


@dataclass(frozen=True)
class Dated:
    """When a version was published, by this host's time.monotonic(), which no jump of a clock changes. `doubt` says why
    that may be wrong, and is empty if it is not."""

    at: float
    doubt: str = ""


class Dating:
    """Dates the versions of a run, from one thread, and tells of clocks that are apart.

    The age is counted by the store's clock where the publisher told how far its own is from that. A publication without
    this, of an older publisher, is believed; if it lies in the future, its age counts from its arrival.
    """

    def __init__(self, metrics: WeightsMetrics) -> None:
        self._metrics = metrics
        self._newest: int | None = None
        self._looked: float | None = None
        self._arrived = 0.0
        self._absent: float | None = None
        self._told: float | None = None

    def saw(self, newest: int) -> None:
        """Takes note that this is the newest version now."""
        looked = time.monotonic()
        if newest != self._newest:
            # At the look before, it was not there yet.
            self._newest, self._arrived, self._absent = newest, looked, self._looked
        self._looked = looked

    def date(self, published_at: float, clocks: Clocks) -> Dated:
        """Dates the newest version, which was published at Unix seconds of its publisher's clock."""
        here, host = time.monotonic(), clocks.host or 0.0
        age = time.time() - host - (published_at - (clocks.publisher or 0.0))
        arrived = here - self._arrived
        # Seconds by which the publisher's clock is ahead of ours, as far as that can be told.
        skew, doubt = 0.0, ""
        if clocks.publisher is not None:
            skew = clocks.publisher - host
        elif age < arrived:
            skew = arrived - age - host
        elif self._absent is not None and age > here - self._absent + SHIPPING_SECONDS:
            skew = here - self._absent - age - host
            doubt = f"its publisher's clock seems to be about {-skew:.0f} s behind ours"
        self._tell(skew, clocks)
        return Dated(here - max(age, arrived), doubt)

    def _tell(self, skew: float, clocks: Clocks) -> None:
        """Shows the skew; the log has at most one line of it in TELL_SECONDS."""
        self._metrics.clock_skew.set(skew)
        now = time.monotonic()
        if self._told is not None and now - self._told < TELL_SECONDS:
            return
        if abs(skew) > TOLERATED_SECONDS:
            self._told = now
            log.warning("weights: the publisher's clock is %s this host's; %s", _apart(skew), _consequence(clocks))
        elif self._told is not None:
            self._told = None
            log.warning("weights: the clocks of their publisher and of this host agree again")


def _apart(seconds: float) -> str:
    return f"{abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'}"


def _consequence(clocks: Clocks) -> str:
    if clocks.publisher is None:
        return "ages may be wrong, and count from the arrival of weights that are dated in the future"
    ours = "is not known" if clocks.host is None else f"is {_apart(clocks.host)} that"
    return f"it is {_apart(clocks.publisher)} the store's clock, by which ages are counted, and this host's {ours}"
