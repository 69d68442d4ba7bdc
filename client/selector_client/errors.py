"""What this package raises. A trainer sees these only if it asks to: by default a failed selection becomes a
uniform one, counted and flagged.

SelectorClientError
├── Unreachable     no answer in time: server absent, dead, hung or too slow
│   └── Untrusted   no connection, for its certificate, ours or a file of them is not right; the message says which
├── RemoteError     the server refused the request; its message names field, value and limit
│   └── Denied      the token is missing, unknown there, or for other calls (unauthenticated, permission_denied)
└── PublishError    weights could not be gathered or, if that is to raise, copied or published
"""


class SelectorClientError(Exception):
    """`reason` is a short word for counters, the gRPC status name in lower case. `retry_seconds`: the sidecar says
    that the same request may succeed after that time; None if it says nothing, infinite if it never will."""

    def __init__(self, reason: str, message: str, retry_seconds: float | None = None) -> None:
        super().__init__(message)
        self.reason, self.retry_seconds = reason, retry_seconds


class Unreachable(SelectorClientError):
    """No answer in time."""


class Untrusted(Unreachable):
    """A certificate or a token's file is not right: not signed by whom we trust, expired, of another name."""


class RemoteError(SelectorClientError):
    """The server refused the request."""


class Denied(RemoteError):
    """The sidecar does not take the token, or wants one."""


class PublishError(SelectorClientError):
    """Weights could not be gathered, copied or published."""
