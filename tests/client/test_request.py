"""How a request is cut into messages."""

import numpy as np
import pytest
from selector_client.selecting.candidates import SMALL_BYTES, Candidates
from selector_proto.tensors import CHUNK_BYTES
from selector_proto.v1 import selector_pb2 as pb


def messages(values):
    return list(Candidates.losses(values, None).messages(pb.Selection(seed=3)))


@pytest.mark.parametrize(
    ("size", "pieces"),
    [
        (1, [4]),
        (SMALL_BYTES // 4, [SMALL_BYTES]),
        (SMALL_BYTES // 4 + 1, [0, SMALL_BYTES + 4]),
        (CHUNK_BYTES // 4 + 1, [0, CHUNK_BYTES, 4]),
    ],
)
def test_a_large_payload_follows_its_header_a_small_one_comes_with_it(size, pieces):
    values = np.arange(size, dtype=np.float32)
    first, *others = messages(values)
    assert first.selection.seed == 3
    assert first.selection.payload_bytes == values.nbytes
    assert not any(message.HasField("selection") for message in others)
    assert [len(message.payload) for message in (first, *others)] == pieces
    assert b"".join(message.payload for message in (first, *others)) == values.tobytes()
