"""What this package raises. A trainer sees these errors only if it asks to: by default a failed selection becomes a
uniform one, which is counted and flagged.

SelectorClientError
├── Unreachable     no answer came in time: the server is absent, dead, hung or too slow
│   ├── Untrusted   there is no connection, because a certificate or a file of one is wrong; the message says which
│   └── Misrouted   something else answered, mostly a proxy on the way; the message says what, and the likely cause
├── RemoteError     the server refused the request; its message names field, value and limit
│   └── Denied      the token is missing, unknown there, or for other calls (unauthenticated, permission_denied)
└── PublishError    weights could not be gathered or, if that is to raise, copied or published
"""


class SelectorClientError(Exception):
    """Is the root of all errors of this package. `reason` is a short word for counters, mostly the name of the gRPC
    status in lower case. `retry_seconds` is the time after which the same request may succeed, mostly as the sidecar
    says. It is None if nothing is known of that, and infinite if the request never will."""

    def __init__(self, reason: str, message: str, retry_seconds: float | None = None) -> None:
        super().__init__(message)
        self.reason, self.retry_seconds = reason, retry_seconds


class Unreachable(SelectorClientError):
    """No answer came in time."""


class Untrusted(Unreachable):
    """A certificate or a token's file is wrong: not signed by an authority that is trusted, expired, or of another
    name."""


class Misrouted(Unreachable):
    """Something that is no sidecar answered, with an HTTP status or a web page, and would do so again."""


class RemoteError(SelectorClientError):
    """The server refused the request."""


class Denied(RemoteError):
    """The sidecar wants a token, or another one than it was sent."""


class PublishError(SelectorClientError):
    """Weights could not be gathered, copied or published."""
