"""Which of the ranks that select as one a Selection is for."""

from selector_proto.v1 import selector_pb2 as pb

from selector_server.config import Config
from selector_server.engine.task import Member
from selector_server.errors import InvalidRequest, LimitExceeded

MAX_GROUP = 128


def to_member(selection: pb.Selection, config: Config) -> Member | None:
    """None if it selects alone. Raises InvalidRequest and LimitExceeded; needs the header only."""
    group, rank, world_size = selection.group, selection.rank, selection.world_size
    if rank >= max(world_size, 1):
        raise InvalidRequest("rank", rank, f"must be below world_size, {world_size}")
    if world_size <= 1:
        return None
    if config.peers:
        if world_size != config.peer_count:
            raise InvalidRequest("world_size", world_size, f"must be peer_count of this sidecar, {config.peer_count}")
        if rank != config.peer_rank:
            raise InvalidRequest("rank", rank, f"must be peer_rank of this sidecar, {config.peer_rank}")
    elif world_size > config.max_pending_requests:
        limit = f"at most max_pending_requests of this server, {config.max_pending_requests}: all ranks wait in it"
        raise LimitExceeded("world_size", world_size, limit)
    if not 1 <= len(group) <= MAX_GROUP or not group.isprintable():
        raise InvalidRequest("group", repr(group), f"1 to {MAX_GROUP} printable characters with world_size above 1")
    if not selection.HasField("trainer_step"):
        raise InvalidRequest("trainer_step", "missing", "ranks of a group select as one for the same step")
    return Member(group, selection.trainer_step, rank, world_size)
