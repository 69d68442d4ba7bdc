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
├── TooLate               the deadline passed, or the client stopped sending
├── Unavailable           the server is draining or its worker is gone
└── SetupError            the server cannot start: configuration, bundle, device
    └── BundleError       a bundle is missing or malformed
"""


class SelectorError(Exception):
    """`field` is what the error is about, `value` what it was, `limit` what was expected."""

    def __init__(self, field: str, value: object, limit: str) -> None:
        shown = str(value)
        self.field, self.limit = field, limit
        self.value = shown if len(shown) <= 200 else shown[:200] + "…"
        super().__init__(f"{field} is {self.value}; {limit}")


class Unauthenticated(SelectorError):
    """No token that this server knows."""


class PermissionDenied(SelectorError):
    """A token that is known, for other calls."""


class InvalidRequest(SelectorError):
    """The request contradicts the contract."""


class LimitExceeded(SelectorError):
    """The request is larger than this server takes."""


class Overloaded(LimitExceeded):
    """Too much is under way."""


class NotPossible(SelectorError):
    """The server's state does not allow this request."""


class StaleWeights(NotPossible):
    """The served weights are older than the request accepts."""


class GroupFailed(NotPossible):
    """A rank is missing, or failed, and so all of its group are refused."""


class TooLate(SelectorError):
    """The deadline passed."""


class Unavailable(SelectorError):
    """The server is draining or its worker is gone."""


class SetupError(SelectorError):
    """The server cannot start."""


class BundleError(SetupError):
    """A bundle is missing or malformed."""
