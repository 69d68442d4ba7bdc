"""Joins a Ray cluster, or starts a small one in this machine, and says in one line why it cannot."""

import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from selector_server.errors import SetupError
from selector_tools.mistakes import in_one_line

FLAG = "--ray"
LOCAL = "local"  # what Ray calls a cluster that it is to start here
_ANSWER_SECONDS = 5.0
_HOST_AND_PORT = re.compile(r"^\[?(?P<host>[^/\[\]]+)\]?:(?P<port>\d+)$")


@contextmanager
def joined(address: str) -> Iterator[None]:
    """Is in the cluster at `address` during the block: HOST:PORT of one that this machine belongs to. An empty one
    stands for what RAY_ADDRESS says, as in Ray's own jobs, and else for a cluster that is started here and ends with
    the block. Raises SetupError."""
    # Ray reports what it is used for to its makers unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # noqa: PLC0415 - nobody else needs the extra
    from ray.exceptions import RayError  # noqa: PLC0415

    place = address or os.environ.get("RAY_ADDRESS", "") or LOCAL
    _listens(place)
    with _standard_output_as_error():
        try:
            ray.init(place, logging_level=logging.ERROR, log_to_driver=False)
        except (RuntimeError, ConnectionError, ValueError, OSError, RayError) as error:
            raise SetupError(FLAG, place, in_one_line(error)) from error
        try:
            yield
        except RayError as error:
            raise SetupError(FLAG, place, in_one_line(error)) from error
        finally:
            ray.shutdown()


@contextmanager
def _standard_output_as_error() -> Iterator[None]:
    """Sends what is written to standard output meanwhile to standard error: there Ray tells of nodes that died, partly
    by code that is not Python's, and there what --json prints must stand alone."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _listens(place: str) -> None:
    """Raises SetupError if nobody listens at an address: Ray itself takes a minute to say so."""
    if (found := _HOST_AND_PORT.match(place)) is None:
        return
    try:
        socket.create_connection((found["host"], int(found["port"])), _ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise SetupError(FLAG, place, f"nobody answers: {in_one_line(error)}") from error
