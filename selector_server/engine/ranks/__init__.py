"""Data-parallel ranks that select as one. `open_ranks` is the room's one door."""

from selector_server.engine.admission import Admission
from selector_server.engine.dispatcher import Dispatcher
from selector_server.engine.ranks.base import Ranks, Run
from selector_server.engine.ranks.many_sidecars import ManySidecars
from selector_server.engine.ranks.one_sidecar import OneSidecar
from selector_server.engine.ranks.process_group import Peers
from selector_server.engine.scorer import Observer

__all__ = ["Peers", "Ranks", "Run", "open_ranks"]


def open_ranks(
    dispatcher: Dispatcher,
    admission: Admission,
    group_seconds: float,
    peers: Peers | None,
    observer: Observer | None = None,
) -> Ranks:
    """With `peers`, every rank has a sidecar of its own; without, all ranks come to this one and wait at most
    `group_seconds` for each other."""
    if peers is None:
        return OneSidecar(dispatcher, admission, group_seconds)
    return ManySidecars(peers, dispatcher, admission.max_requests, observer)
