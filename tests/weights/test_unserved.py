"""Every reply says why the newest weights are not served, until they are."""

import pytest
from selector_proto.v1 import selector_pb2 as pb
from support.processes import eventually
from support.wire import embeddings, some_embeddings, some_losses


@pytest.mark.parametrize("kind", ["samples", "uniform", "embeddings"])
def test_a_reply_of_whatever_kind_names_the_version_that_is_refused(trainer, kind):
    requests = {
        "samples": trainer.select,
        "uniform": lambda: trainer.select(policy="uniform"),
        "embeddings": lambda: trainer.server.select(embeddings(*some_embeddings())),
    }
    trainer.serve(1)
    assert not requests[kind]().HasField("unserved_weights")
    version = trainer.refused()
    told = requests[kind]().unserved_weights
    assert (told.version, told.state) == (version, pb.SYNC_STATE_REJECTED)
    assert "logit_scale" in told.reason
    assert told.reason == trainer.server.status().last_error
    trainer.serve(2)
    assert not requests[kind]().HasField("unserved_weights")


def test_a_pin_is_told_once_there_is_something_newer(trainer):
    version = trainer.serve(1)
    trainer.pin(version)
    assert not trainer.select().HasField("unserved_weights")
    newer = trainer.publish(trainer.models.learner)
    eventually(lambda: trainer.server.status().newest_version == newer)
    told = trainer.select().unserved_weights
    assert (told.version, told.state) == (newer, pb.SYNC_STATE_PINNED)
    assert told.reason == f"version {version} is pinned"
    trainer.unpin()
    eventually(lambda: trainer.serving() == newer)
    eventually(lambda: not trainer.select().HasField("unserved_weights"))


def test_without_weight_sync_there_is_nothing_to_tell(server, plain_server):
    for one in (server, plain_server):
        assert not one.select(some_losses()).HasField("unserved_weights")
