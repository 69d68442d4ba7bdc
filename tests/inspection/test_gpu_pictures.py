"""What is looked at of a sidecar on a CUDA device; skipped, out loud, where there is none."""

import numpy as np
import pytest
import torch
from selector_proto.v1 import inspection_pb2 as pb
from selector_proto.v1 import inspection_pb2_grpc as rpc
from support.processes import eventually
from support.rules import PIXELS, TOKENS
from support.wire import raw

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device and onnxruntime-gpu"),
]


def seen(start, flags, device):
    """The picks, the losses of the selection, and the pictures by index, of a sidecar on that device."""
    server = start(flags | {"inspect": "true", "inspect_content": "true", "device": device})
    stub = rpc.InspectionServiceStub(server.channel)
    picks = server.select(raw(PIXELS, TOKENS)).indices
    eventually(lambda: stub.GetOverview(pb.GetOverviewRequest(), timeout=10).totals.selections)
    kept = stub.GetSuperBatch(pb.GetSuperBatchRequest(), timeout=10)
    galleries = stub.ListPictures(pb.ListPicturesRequest(), timeout=10).galleries
    pictures = {one.index: one.picture.pixels for gallery in galleries for one in gallery.candidates}
    return set(picks), np.array([kept.learner_losses, kept.reference_losses]), pictures


def test_it_shows_what_one_on_a_cpu_shows(start_sidecars, bundles):
    with start_sidecars() as start:
        (picks, losses, pictures), (picks_there, losses_there, pictures_there) = (
            seen(start, bundles.flags, device) for device in ("cuda", "cpu")
        )
    assert picks == picks_there
    np.testing.assert_allclose(losses, losses_there, atol=1e-2)
    both = pictures.keys() & pictures_there.keys()  # galleries that are drawn at random differ
    assert both
    assert all(pictures.values())
    assert all(pictures[index] == pictures_there[index] for index in both)
