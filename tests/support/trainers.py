"""A training run whose sidecar's weights tests pin, outdate and refuse."""

import torch
from selector_client import WeightPublisher
from selector_proto.v1 import admin_pb2, admin_pb2_grpc
from selector_proto.v1 import selector_pb2 as pb

from support.model import TwoTower, as_published, plan, samples
from support.processes import Sidecar, eventually
from support.wire import Request, raw

PIXELS, IDS = samples(60)


def request(**fields) -> Request:
    return raw(PIXELS, IDS, seed=3, **fields)


class Trainer:
    """Publishes to one sidecar, and asks it as an operator would."""

    def __init__(self, server: Sidecar, models, url, run) -> None:
        self.server, self.models = server, models
        self.publisher = WeightPublisher(url, run)
        self.admin = admin_pb2_grpc.AdminServiceStub(server.channel)

    def publish(self, model, step=0) -> int:
        """The version, which is in Redis but perhaps not served yet."""
        assert self.publisher.publish(step, model)
        assert self.publisher.flush(20)
        return self.publisher.last_version

    def serve(self, seed, step=0) -> int:
        """Publishes the model of that seed and waits until it is served."""
        version = self.publish(TwoTower(seed), step)
        eventually(lambda: self.serving() == version, message=lambda: str(self.server.status()))
        return version

    def refused(self, step=0) -> int:
        """Publishes a model whose logit scale is no number, and waits until it is refused."""
        version = self.publish(TwoTower(0).state_dict() | {"logit_scale": torch.tensor(torch.nan)}, step)
        eventually(lambda: self.server.status().state == pb.SYNC_STATE_REJECTED)
        return version

    def serving(self) -> int:
        return self.server.status().serving.version

    def pin(self, version) -> admin_pb2.PinWeightsResponse:
        return self.admin.PinWeights(admin_pb2.PinWeightsRequest(version=version), timeout=10)

    def unpin(self) -> admin_pb2.UnpinWeightsResponse:
        return self.admin.UnpinWeights(admin_pb2.UnpinWeightsRequest(), timeout=10)

    def history(self) -> admin_pb2.ListWeightsHistoryResponse:
        return self.admin.ListWeightsHistory(admin_pb2.ListWeightsHistoryRequest(), timeout=10)

    def select(self, timeout=30, **fields) -> pb.SelectResponse:
        return self.server.select(request(**fields), timeout)

    def picks_of(self, seed) -> list[int]:
        """What the model of that seed picks after a publication; None: the bundle's own."""
        model = self.models.learner if seed is None else as_published(TwoTower(seed))
        return self.models.picks(PIXELS, IDS, plan(12, seed=3), learner=model)
