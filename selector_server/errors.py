"""Everything that can go wrong, as one tree; `rpc/status.py` maps it to gRPC status, and nothing else does.

SelectorError
├── Unauthenticated       no token that this server knows
├── PermissionDenied      a token that is known, for other calls than this one
├── InvalidRequest        the request contradicts the contract or the limits of a value
├── LimitExceeded         the request is larger than this server takes
│   └── Overloaded        too much is under way; the same request may succeed later
├── NotPossible           the request is fine, this server's state is not (no such model)
│   ├── StaleWeights      the served weights are older than the request accepts; newer ones may come
│   └── GroupFailed       the ranks that were to select as one did not all come so far
├── TooLate               the deadline passed or cannot be kept, or the client stopped sending
├── Abandoned             nobody waits for it any more
├── Unavailable           the server's worker is gone
│   └── Draining          the server goes down
└── SetupError            the server cannot start: configuration, bundle, device
    └── BundleError       a bundle is missing or malformed
"""

from enum import Enum
from typing import Self


class Exclusion(Enum):
    """Why one candidate cannot be used; the contract's ExclusionReason has the same names."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    FORMAT = "format"
    TOO_LARGE = "too_large"
    TEXT = "text"
    VALUE = "value"
    REPEATED = "repeated"


class SelectorError(Exception):
    """`field` is what the error is about, `value` what it was, `limit` what was expected. `rejection` is the word for
    it among the rejected requests, empty if the request was not rejected for the server's sake. `exclusion` says why
    a candidate cannot be used, if the error is one candidate's alone: then that one may be left out instead."""

    rejection = ""
    exclusion: Exclusion | None = None

    def __init__(self, field: str, value: object, limit: str) -> None:
        shown = str(value)
        self.field, self.limit = field, limit
        self.value = shown if len(shown) <= 200 else shown[:200] + "…"
        super().__init__(f"{field} is {self.value}; {limit}")

    def excluding(self, reason: Exclusion) -> Self:
        """This error, as one candidate's alone."""
        self.exclusion = reason
        return self

    def again(self) -> Self:
        """Returns the same error for another request: without its traceback, which holds on to a request's arrays."""
        other = type(self).__new__(type(self), *self.args)
        other.__dict__.update(self.__dict__)
        return other


class Unauthenticated(SelectorError):
    """The call carries no token that this server knows."""


class PermissionDenied(SelectorError):
    """The call carries a token that is known, but for other calls."""


class InvalidRequest(SelectorError):
    """The request contradicts the contract."""


class LimitExceeded(SelectorError):
    """The request is larger than this server takes."""

    rejection = "too_large"


class Overloaded(LimitExceeded):
    """Too much is under way. The same request may succeed in `retry_seconds`. `at_once` says that the first
    message was enough to see it."""

    def __init__(
        self, field: str, value: object, limit: str, rejection: str, retry_seconds: float, at_once: bool = True
    ) -> None:
        super().__init__(field, value, limit)
        self.rejection, self.retry_seconds, self.at_once = rejection, retry_seconds, at_once


class NotPossible(SelectorError):
    """The server's state does not allow this request."""


class StaleWeights(NotPossible):
    """The served weights are older than the request accepts."""


class GroupFailed(NotPossible):
    """A rank is missing, or failed, and so all of its group are refused."""


class TooLate(SelectorError):
    """The deadline passed, or what is left to do takes longer."""

    rejection = "late"


class Abandoned(SelectorError):
    """Nobody waits for it any more."""


class Unavailable(SelectorError):
    """The server's worker is gone."""

    rejection = "unavailable"


class Draining(Unavailable):
    """The server goes down."""

    rejection = "draining"


class SetupError(SelectorError):
    """The server cannot start."""


class BundleError(SetupError):
    """A bundle is missing or malformed."""
