"""What this package raises. A trainer sees these only if it asks to: by default a failed selection becomes a
uniform one, counted and flagged.

SelectorClientError
├── Unreachable     no answer in time: server absent, dead, hung or too slow
├── RemoteError     the server refused the request; its message names field, value and limit
└── PublishError    earlier weights could not be published
"""


class SelectorClientError(Exception):
    """`reason` is a short word for counters, the gRPC status name in lower case. `retry_seconds`: the sidecar says
    that the same request may succeed after that time; None if it says nothing, infinite if it never will."""

    def __init__(self, reason: str, message: str, retry_seconds: float | None = None) -> None:
        super().__init__(message)
        self.reason, self.retry_seconds = reason, retry_seconds


class Unreachable(SelectorClientError):
    """No answer in time."""


class RemoteError(SelectorClientError):
    """The server refused the request."""


class PublishError(SelectorClientError):
    """Earlier weights could not be published."""
