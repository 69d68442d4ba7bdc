"""What both ways of selecting as one have in common: how a request enters, and how one rank's failure ends all."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeAlias

from selector_proto.tensors import WireError

from selector_server.engine.candidates.base import Scorable
from selector_server.engine.request import Request
from selector_server.engine.task import Result, Task
from selector_server.errors import SelectorError

Run: TypeAlias = Callable[[Task[Scorable], Request], Awaitable[Result]]


class Ranks(Protocol):
    """Between preparation and dispatcher."""

    def start(self) -> None:
        """Connects with other sidecars, if there are any. Raises SetupError."""

    def stop(self) -> None:
        """Ends the connection."""

    def entered(self, request: Request) -> AbstractContextManager[Run]:
        """Gives what runs a prepared task: with the other ranks, or alone if the request has no `member`. An exception
        in the block, be it that the client went away, refuses all ranks. Raises GroupFailed and InvalidRequest."""


@contextmanager
def losing(lose: Callable[[str], object]) -> Iterator[None]:
    """If the block fails or its client goes away, `lose` is told why, in words for the other ranks."""
    try:
        yield
    except asyncio.CancelledError:
        lose("went away")
        raise
    except Exception as error:
        known = isinstance(error, SelectorError | WireError)
        lose(f"was refused: {error}" if known else "met an internal error")
        raise
