"""What every form of candidates can do: be made ready beside the device's thread, be joined, and be scored on it."""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from selector_server.engine.candidates.preparation import Preparation
from selector_server.engine.closed import Closed
from selector_server.engine.models import Models
from selector_server.engine.request import Request
from selector_server.engine.task import ServedWeights, SuperBatch, Task
from selector_server.sampling import Scores


class Candidates(SuperBatch, Protocol):
    """B candidates as they were received."""

    form: ClassVar[str]  # its name in refusals and records

    @property
    def keyed(self) -> bool:
        """Whether the candidates may be found in the reference cache."""

    @property
    def reference_brought(self) -> bool:
        """Whether what the reference makes of them came with them."""

    def extra_bytes(self, preparation: Preparation) -> int:
        """The most bytes that `prepare` makes of them, beside their payload."""

    def prepare(self, task: Task[Any], preparation: Preparation, request: Request) -> "Scorable":
        """Does what needs no device. Candidates that cannot be used are closed, if the task excludes them. Raises
        InvalidRequest, LimitExceeded or NotPossible, and what `request.check` raises, which is asked often."""


class Scorable(SuperBatch, Protocol):
    """B candidates that are ready to be scored."""

    form: ClassVar[str]

    @property
    def keyed(self) -> bool:
        """Whether they were looked up in the reference cache."""

    @property
    def reference_brought(self) -> bool:
        """Whether what the reference makes of them came with them."""

    @property
    def cached(self) -> int:
        """How many of them the reference cache knew."""

    @property
    def uncached(self) -> int:
        """How many of them it was asked for in vain."""

    @property
    def closed(self) -> Closed:
        """Those that may not be picked. What stands in their place is not looked at."""

    @property
    def not_examined(self) -> int:
        """How many of them nobody looked at, because all that is needed of them was in a cache."""

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Those of all ranks, which are alike, in the order of ranks."""

    @classmethod
    def joined_bytes(cls, parts: Sequence[Self]) -> int:
        """The bytes that `joined` allocates."""

    def scores(self, task: Task[Any], models: Models, request: Request) -> tuple[Scores, ServedWeights | None]:
        """Scores them on the worker's thread; the scores of closed ones are finite and mean nothing. Raises
        SelectorError; Abandoned and TooLate at its next step after the client left or its deadline passed."""


class Given:
    """What forms have in common that come with all that is needed to score them: nothing is encoded or looked up."""

    encoded: ClassVar[bool] = False
    keyed: ClassVar[bool] = False
    reference_brought: ClassVar[bool] = True
    cached: ClassVar[int] = 0
    uncached: ClassVar[int] = 0
    not_examined: ClassVar[int] = 0
    closed: Closed

    def unusable(self, device: torch.device) -> Tensor:
        """The indices of candidates in whose place anything may stand, int64 [n]."""
        return torch.tensor(list(self.closed.reasons), dtype=torch.int64, device=device)

    def extra_bytes(self, preparation: Preparation) -> int:  # noqa: ARG002 - the protocol's arguments
        return 0

    def prepare(self, task: Task[Any], preparation: Preparation, request: Request) -> Self:  # noqa: ARG002
        return self
