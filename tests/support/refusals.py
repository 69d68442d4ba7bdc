"""Refusals: what every answer to a bad request has to say."""

from support.wire import error_info, some_losses

INVALID, EXHAUSTED, PRECONDITION = "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"
_REASONS = {
    INVALID: {"INVALID_REQUEST", "MALFORMED"},
    EXHAUSTED: {"LIMIT_EXCEEDED"},
    PRECONDITION: {"NOT_POSSIBLE", "STALE_WEIGHTS"},
}


def edited(request, edit):
    """The request, after `edit` of its selection."""
    edit(request.selection)
    return request


def assert_refused(server, build, code, named, limit):
    """`build()` is refused with `code`, a text that begins with `named` and a limit that has `limit` in it."""
    error = server.refuse(build())
    assert error.code().name == code, error.details()
    assert error.details().startswith(named)
    info = error_info(error)
    assert limit in info["limit"]
    assert info["limit"].strip()
    assert info["reason"] in _REASONS[code]
    assert error.details() == f"{info['field']} is {info['value']}; {info['limit']}"
    assert len(error.details()) < 1000
    assert_goes_on(server)


def assert_goes_on(server):
    assert len(server.select(some_losses()).indices) == 4
