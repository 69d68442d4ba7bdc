"""Work on a CPU in pieces: plain threads take one piece after another, and each of them computes alone.

OpenMP's threads meet after every operator, and those that run spin until the last one is there. Beside a busy process
one of them often is not running, so that an operator takes a time slice instead of microseconds. Here threads meet once
all pieces are done, and whoever runs takes the next piece: a lost core costs its share and no more.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

T = TypeVar("T")


class Threads:
    """Some threads: the one that calls, and helpers."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._helpers = ThreadPoolExecutor(
            max(1, count - 1), "sampler", initializer=torch.set_num_threads, initargs=(1,)
        )

    def spread(self, worker: Callable[[], Callable[[T], None]], pieces: Sequence[T]) -> None:
        """Calls what `worker` returns for every piece, in any order. Each thread that takes part calls `worker` once,
        for what it needs alone, such as room for products. Raises what one of them raised first."""
        left = iter(pieces)  # Threads may share an iterator over a sequence: each piece comes out once.
        mode = torch.is_inference_mode_enabled()  # of this thread, and of no other

        def take() -> None:
            try:
                with torch.inference_mode(mode):
                    work = worker()
                    for piece in left:
                        work(piece)
            except BaseException as error:
                errors.append(error)
                for _ in left:
                    """After an error no more pieces are taken."""

        errors: list[BaseException] = []
        helpers = [self._helpers.submit(take) for _ in range(min(self.count, len(pieces)) - 1)]
        take()
        wait([helper for helper in helpers if not helper.cancel()])  # One that has not begun is not needed any more.
        if errors:
            raise errors[0]


_threads = _ONE = Threads(1)


def use_threads(count: int) -> None:
    """Lets the sampler and the encoders compute in `count` threads of a CPU from now on, in the whole process, and each
    of torch's operators in one. Without it, they have one thread, in which torch's operators have some of their own."""
    global _threads  # noqa: PLW0603 - as torch's number of threads is the process's
    torch.set_num_threads(1)
    _threads = Threads(count)


def threads() -> int:
    """How many threads compute."""
    return _threads.count


def spread(worker: Callable[[], Callable[[T], None]], pieces: Sequence[T], device: torch.device) -> None:
    """Calls what `worker` returns for every piece, as Threads.spread does; what is not on a CPU needs one thread."""
    (_threads if device.type == "cpu" else _ONE).spread(worker, pieces)
