"""A bounded pool of threads works on many files at once, and ends soon when nobody wants the work any more."""

from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from threading import Event
from types import TracebackType
from typing import Self

from selector_server.errors import Unavailable

# A thread works on so many files before it looks for more.
_STRIDE = 16


class Decoder:
    """All requests share these `threads` threads. `close`, or the end of a `with` block, ends them."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decoder")
        self._closed = Event()

    def run(self, work: Callable[[int], None], count: int, check: Callable[[], None] = lambda: None) -> None:
        """Calls work(0) to work(count - 1), in any order, and `check` before each. Raises what one of them raised, or
        Unavailable if this decoder was closed meanwhile."""

        def stride(start: int) -> None:
            for index in range(start, min(start + _STRIDE, count)):
                if self._closed.is_set():
                    raise CancelledError
                check()
                work(index)

        jobs = []
        try:
            jobs += [self._pool.submit(stride, start) for start in range(0, count, _STRIDE)]
            for job in jobs:
                job.result()
        except (CancelledError, RuntimeError) as error:
            if not self._closed.is_set():
                raise
            raise Unavailable("server", "stopping", "send the request to another one, or again later") from error
        finally:
            for job in jobs:  # after one bad file the rest need not be decoded
                job.cancel()

    def close(self) -> None:
        """Ends all work within the time that one file takes."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
