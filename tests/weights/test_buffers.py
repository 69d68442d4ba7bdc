"""Memory that is used again, and never while somebody uses it."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from selector_server.buffers import Pool


def test_a_block_is_used_again_when_nobody_holds_any_of_it():
    pool = Pool()
    block = pool.take(1000)
    where = block.ctypes.data
    tensor = torch.from_numpy(block.view(np.float32)).reshape(10, 25)[3:]
    del block
    assert pool.take(1000).ctypes.data != where, "a tensor made of a part of it still exists"
    del tensor
    taken = [pool.take(1000), pool.take(1000)]
    assert where in {one.ctypes.data for one in taken}
    assert taken[0].ctypes.data != taken[1].ctypes.data


def test_sizes_that_differ_a_little_share_a_block_and_others_do_not():
    pool = Pool()
    where = pool.take(10 << 20).ctypes.data
    assert pool.take((10 << 20) + 1000).ctypes.data == where
    assert len(pool.take(100 << 20)) == 100 << 20
    assert len(pool.take(7)) == 7


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 200), min_size=1))
def test_parts_lie_apart_and_aligned(counts):
    parts = Pool().floats(counts)
    for number, part in enumerate(parts.values()):
        assert part.ctypes.data % 64 == 0 or not len(part)
        part[:] = number
    assert [set(part) for part in parts.values()] == [
        {number} if len(part) else set() for number, part in enumerate(parts.values())
    ]
    assert {name: len(part) for name, part in parts.items()} == counts
