"""What a trainer takes in: a sidecar's answers and errors, and the state that a checkpoint kept."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from selector_client.errors import SelectorClientError
from selector_client.loading.dataset import SuperBatches
from selector_client.loading.loader import SelectingLoader
from selector_client.loading.loader_state import process_name
from selector_client.selecting.breaker import Breaker
from selector_client.selecting.call_errors import error_of
from selector_client.selecting.candidates import Candidates
from selector_client.selecting.link import BlockingLink
from selector_client.selecting.selection import Selection
from selector_client.selecting.selector_base import SelectorBase
from selector_client.selecting.session import Session
from selector_client.selecting.transport import Transport
from selector_proto.v1 import selector_pb2 as pb

from fuzz.frames import each, joined, split
from fuzz.mutate_json import tree
from fuzz.mutate_proto import message
from fuzz.mutation import raw
from fuzz.target import Decode, Target

_CANDIDATES, _PICKS = 20, 4


def _session() -> Session:
    """A session whose breaker asks nobody."""
    session = Session("localhost:1", 10.0, 0, "fallback", sub_batch_size=_PICKS)
    session.reach(BlockingLink(session.address, session.access, session.statistics))
    session.breaker = Breaker(lambda: True)
    return session


@contextmanager
def answers(_: Path) -> Iterator[Decode]:
    session = _session()
    session.statistics.weights_versions = _Forgetful()
    candidates = Candidates.losses(np.zeros(_CANDIDATES, np.float32), None)

    def decode(data: bytes) -> str:
        pending = session.begin(candidates, 1, None)
        try:
            response = pb.SelectResponse.FromString(data)
        except DecodeError:
            return "unparsed"  # gRPC makes a status of it
        selection = session.answered(pending, response)
        indices = selection.indices.tolist()
        assert len(indices) == len(set(indices)) == _PICKS
        assert all(0 <= index < _CANDIDATES for index in indices)
        assert sum(len(one.indices) for one in selection.excluded.values()) <= _CANDIDATES - _PICKS
        assert selection.scores is None or selection.scores.shape == (_PICKS,), "scores that are not the picks'"
        for values in (selection.learner_losses, selection.reference_losses):
            assert values is None or (values.shape == (_PICKS,) and np.isfinite(values).all())
        assert 0 <= selection.explored <= _PICKS
        if (counts := selection.prefiltered) is not None:
            assert 0 <= counts.left_out <= min(counts.known, _CANDIDATES - _PICKS)
            assert counts.known + counts.unknown <= _CANDIDATES
        assert np.arange(_CANDIDATES)[selection.indices].shape == (_PICKS,)
        return ""

    yield decode


class _Forgetful(set[int]):
    """Versions that strangers make up are not remembered: memory is measured."""

    def add(self, _: int) -> None:
        pass


def answer_seeds() -> list[bytes]:
    weights = pb.WeightsVersion(version=3, trainer_step=4, age_seconds=5.0, lag_steps=2)
    full = pb.SelectResponse(
        indices=[3, 1, 19, 0],
        scores=[0.5, 0.1, 0.0, -1.0],
        sub_batch_size=4,
        chunk_sizes=[2, 2],
        seed=9,
        not_examined=2,
        exclusions=[
            pb.Exclusion(reason=pb.EXCLUSION_REASON_FORMAT, indices=[4, 7], first="a GIF"),
            pb.Exclusion(reason=pb.EXCLUSION_REASON_REPEATED, indices=[5], first="as 3"),
        ],
        policy="joint",
        objective=0.1,
        objective_uniform=0.0,
        weights=weights,
        stages=pb.StageSeconds(receive=0.1),
        request_id="r",
        stale=True,
        criterion=pb.CRITERION_LEARNABILITY,
        pair_criterion=pb.CRITERION_NONE,
        prefiltered=pb.Prefiltered(known=12, unknown=4, left_out=6),
        explored=1,
        learner_losses=[1.0, 2.0, 3.0, 4.0],
        reference_losses=[0.5, 0.5, 0.5, 0.5],
    )
    return [full.SerializeToString(), pb.SelectResponse(indices=[0, 1, 2, 3]).SerializeToString()]


class _Failed(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str | None, trailer: bytes) -> None:
        self._code, self._details, self._trailer = code, details, trailer

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str | None:
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return (("grpc-status-details-bin", self._trailer),)


@contextmanager
def failures(_: Path) -> Iterator[Decode]:
    """An error, and what the sidecar says about itself, in the two places where a client looks at them."""
    session = _session()
    candidates = Candidates.losses(np.zeros(_CANDIDATES, np.float32), None)
    codes = list(grpc.StatusCode)

    def decode(data: bytes) -> str:
        first, info, trailer = split(data, 3)[:3]
        code = codes[first[0] % len(codes)] if first else codes[2]
        error = _Failed(code, first[1:].decode(errors="replace") or None, trailer)
        pending = session.begin(candidates, 1, None)
        found = error_of(error, "localhost:1", session.access)
        session.retry(pending, found)
        assert len(session.failed(pending, found).indices) == _PICKS
        try:
            said = pb.GetServerInfoResponse.FromString(info)
        except DecodeError:
            return "unparsed"
        session.learn(said)
        reason = Transport("localhost:1", None, session.learn)._open(said)
        assert reason, "a folder that is not the sidecar's"
        return ""

    yield decode


def failure_seeds() -> list[bytes]:
    info = pb.GetServerInfoResponse(shared_memory_dir="/tmp", shared_memory_token="t", policies=["joint"])
    wait, status = any_pb2.Any(), Status(code=8, message="full")
    wait.Pack(RetryInfo(retry_delay=Duration(seconds=1)))
    status.details.append(wait)
    parts = [info.SerializeToString(), status.SerializeToString()]
    return [joined([bytes([code]) + b"shared_memory.name is wrong", *parts]) for code in range(17)]


class _Selector(SelectorBase):
    """Picks the first ones."""

    def __init__(self) -> None:
        session = Session("localhost:1", 10.0, 0, "fallback", sub_batch_size=2)
        super().__init__(session, BlockingLink(session.address, session.access, session.statistics))

    def select(self, images: Any, texts: Any, step: int, **_: Any) -> Selection:
        return Selection(indices=np.arange(2))


@contextmanager
def states(_: Path) -> Iterator[Decode]:
    def decode(data: bytes) -> str:
        try:
            state = json.loads(data)
        except (ValueError, RecursionError):
            return "unparsed"
        loader = SelectingLoader(
            SuperBatches(12, 4),
            _Selector(),
            view=lambda rows: {"images": rows, "texts": rows},
            take=lambda rows, picks: rows[picks],
            prefetch=0,
        )
        loader.load_state_dict(state)
        for number, batch in enumerate(loader):
            assert len(batch) >= 1
            if number == 3:
                break
        loader.state_dict()
        return ""

    yield decode


def state_seeds() -> list[bytes]:
    state = {
        "steps": 5,
        "drawn": 1,
        "source": {"epoch": 0, "cursor": 1},
        "picks": 2,
        "seed": 7,
        "count": 5,
        "ahead": [
            {"indices": [3, 1], "fallback": "", "count": 6},
            {"indices": [0, 2], "fallback": "unavailable", "count": 7},
        ],
        "process": process_name(),
    }
    return [json.dumps(one).encode() for one in (state, state | {"source": None, "ahead": []}, state | {"picks": None})]


TARGETS = (
    Target(
        "select-response",
        "a sidecar's SelectResponse",
        answers,
        answer_seeds,
        message(pb.SelectResponse),
        (SelectorClientError,),
        share=2.0,
    ),
    Target(
        "client-errors",
        "a sidecar's errors and GetServerInfoResponse",
        failures,
        failure_seeds,
        each(
            [
                raw(b"shared_memory", b"\xff"),
                message(pb.GetServerInfoResponse, "/", "/dev/shm", "/proc/self", "/dev/fd", "/dev/zero"),
                message(Status),
            ]
        ),
        (SelectorClientError,),
    ),
    Target("loader-state", "the loader's state_dict", states, state_seeds, tree(), (ValueError, IndexError), share=1.5),
)
