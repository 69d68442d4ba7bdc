"""Makes the process group of sidecars that select as one, watches it, and makes it anew when one of them is lost.

Generations are counted in a store that sidecar 0 serves. Whoever joins, or finds that another is lost, begins the next
one: then all leave the former process group and meet in a new one. Nobody has to be restarted but who was lost.
"""

import logging
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Condition, Event, Lock, Thread

import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined] # imported if available

from selector_server.errors import GroupFailed, SetupError
from selector_server.sampling.sharded import ShardLost, ShardsDisagree

log = logging.getLogger(__name__)

# The generation is looked at that often.
TICK_SECONDS = 0.1
_KEY = "generation"


class Generation:
    """One process group, which is torch's default one, while it lasts. `store` is its own part of the store; `turns`
    counts the draws that sidecar 0 has called for; `refused` are times and keys of requests that this sidecar refused;
    `lock` is for both."""

    def __init__(self, number: int, store: Store) -> None:
        self.number, self.store, self.over = number, store, False
        self.turns, self.refused, self.lock = 0, deque[tuple[float, list[str]]](), Lock()
        self._turn, self._changed = 0, Condition()

    @contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """Holds the process group for the draw of that number, from 0, after those before it: all sidecars draw in one
        order. Raises ShardLost when there is no group any more, which any error but ShardsDisagree leads to."""
        with self._changed:
            self._changed.wait_for(lambda: self.over or self._turn == number)
            if self.over:
                raise ShardLost(f"generation {self.number} of the sidecars ended")
            try:
                yield
            except ShardsDisagree:
                raise
            except BaseException:
                self.over = True
                raise
            finally:
                self._turn += 1
                self._changed.notify_all()

    def end(self) -> None:
        """Waits for the draw under way."""
        with self._changed:
            self.over = True
            self._changed.notify_all()


@dataclass(frozen=True)
class Peers:
    """This sidecar is `rank` of `count`; sidecar 0 is found at `address`, host and port. `seconds` bounds every wait
    for others; `backend` is torch.distributed's."""

    address: tuple[str, int]
    rank: int
    count: int
    seconds: float
    backend: str


class ProcessGroup:
    """This sidecar's place among its peers, kept on a thread of its own."""

    def __init__(self, peers: Peers) -> None:
        self.rank, self.count, self.seconds = peers.rank, peers.count, peers.seconds
        self._address, self._backend = peers.address, peers.backend
        self._served: TCPStore | None = None
        self._generation: Generation | None = None
        self._stopped = Event()
        self._thread = Thread(target=self._run, name="peers", daemon=True)

    def start(self) -> None:
        """Raises SetupError if sidecar 0 cannot serve the store."""
        if self.rank == 0:
            host, port = self._address
            try:
                self._served = TCPStore(
                    host, port, is_master=True, timeout=self._timeout, wait_for_workers=False, use_libuv=True
                )
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                raise SetupError("peers", f"tcp://{host}:{port}", f"sidecar 0 cannot serve it: {reason}") from error
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(self.seconds)

    def current(self) -> Generation:
        """Raises GroupFailed while not all sidecars are connected."""
        generation = self._generation
        if generation is None or generation.over:
            host, port = self._address
            limit = f"not all {self.count} sidecars are connected; they will be when all run"
            raise GroupFailed("peers", f"tcp://{host}:{port}", limit)
        return generation

    def lose(self, generation: Generation) -> None:
        """Is told that the generation is of no use any more, for any sidecar. Its process group is left soon."""
        generation.over = True

    @property
    def _timeout(self) -> timedelta:
        return timedelta(seconds=self.seconds)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                store = self._connect()
                store.add(_KEY, 1)  # The others' process group, if they have one, lacks this sidecar.
                while not self._stopped.is_set():
                    self._live(store, int(store.get(_KEY)))
            except (RuntimeError, OSError) as error:
                log.warning("the peers' store is out of reach: %s", str(error).partition("\n")[0])
            self._stopped.wait(TICK_SECONDS)

    def _connect(self) -> TCPStore:
        if self._served is not None:
            return self._served
        host, port = self._address
        socket.create_connection((host, port), self.seconds).close()  # This is quiet, where the store logs pages.
        return TCPStore(host, port, is_master=False, timeout=self._timeout, use_libuv=True)

    def _live(self, store: Store, number: int) -> None:
        """Lives through one generation, from its meeting to its end. Raises RuntimeError when the store is gone."""
        ready = [f"{number}/ready/{rank}" for rank in range(self.count)]
        store.set(ready[self.rank], "")
        while not store.check(ready):
            if self._stopped.wait(TICK_SECONDS) or int(store.get(_KEY)) != number:
                return
        part = PrefixStore(f"{number}/group", store)
        try:
            dist.init_process_group(
                self._backend, store=part, rank=self.rank, world_size=self.count, timeout=self._timeout
            )
            generation = self._generation = Generation(number, PrefixStore(f"{number}/asked", store))
            log.info("connected with all %d sidecars, generation %d", self.count, number)
            while not generation.over and int(store.get(_KEY)) == number and not self._stopped.is_set():
                time.sleep(TICK_SECONDS)
        except RuntimeError as error:
            log.warning("generation %d of the sidecars: %s", number, str(error).partition("\n")[0])
        finally:
            self._close()
        store.compare_set(_KEY, str(number), str(number + 1))

    def _close(self) -> None:
        generation, self._generation = self._generation, None
        if generation is not None:
            generation.end()
            log.info("generation %d of the sidecars ended", generation.number)
        if dist.is_initialized():
            dist.destroy_process_group()
