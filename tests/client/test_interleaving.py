"""Super-batches from shards read in turns: each sample once an epoch, from many places, resumed exactly, and without
the shards that cannot be read."""

import itertools
import json
import logging
import pickle
from collections import Counter

import numpy as np
import pytest
from selector_client import InterleavedShards, SelectingLoader
from support.loaders import Chooser, rest

SHARDS, EACH, SIZE = 10, 30, 12  # 300 samples are 25 super-batches
ALL = {(shard, row) for shard in range(SHARDS) for row in range(EACH)}


class Reads:
    """Reads samples (shard, row), and remembers which shards were opened, and how far each was read."""

    def __init__(self, broken=(), at=0):
        self.opened, self.read, self._broken, self._at = [], Counter(), broken, at

    def __call__(self, shard):
        self.opened.append(shard)
        for row in range(EACH):
            if shard in self._broken and row == self._at:
                raise OSError(f"cut off after {row}")
            self.read[shard] += 1
            yield shard, row


def interleaved(reads=None, **options):
    options = {"at_once": 4, "buffer": 36, "seed": 3} | options
    return InterleavedShards(range(SHARDS), reads or Reads(), SIZE, **options)


def flat(super_batches):
    return [sample for batch in super_batches for sample in batch]


@pytest.mark.parametrize(
    "options", [{}, {"at_once": 1}, {"at_once": 99}, {"buffer": 1}, {"buffer": 299}, {"buffer": 9999}]
)
def test_an_epoch_has_every_sample_once(options):
    stream = interleaved(**options)
    for _ in range(2):
        batches = list(stream)
        assert [len(batch) for batch in batches] == [SIZE] * 25
        assert sorted(flat(batches)) == sorted(ALL)


def test_epochs_and_seeds_have_orders_of_their_own_and_a_seed_always_the_same():
    one, same, other = interleaved(), interleaved(), interleaved(seed=4)
    first, second = list(one), list(one)
    assert list(same) == first
    assert first != second
    assert first != list(other)


def test_what_fills_no_super_batch_is_left_out_at_the_end_of_an_epoch_only():
    stream = InterleavedShards(range(SHARDS), Reads(), 70, at_once=3, buffer=70)
    assert [len(batch) for batch in stream] == [70] * 4


def test_shards_are_read_from_their_beginning_to_their_end_a_few_at_a_time():
    reads, held = Reads(), []
    for number, batch in enumerate(interleaved(reads, buffer=60), 1):
        held.append(sum(reads.read.values()) - number * SIZE)
        assert len(batch) == SIZE
        begun = [count for count in reads.read.values() if count < EACH]
        assert len(begun) <= 4 + 1, "four are open, and one was just read to its end"
    assert len(reads.opened) == SHARDS
    assert 48 <= np.mean(held[5:15]) <= 72, "buffer, on average"
    assert max(held) <= 60 + 4 * SIZE


def test_super_batches_are_from_all_shards_that_are_open_and_mixed():
    batches = list(interleaved())
    assert np.mean([len({shard for shard, _ in batch}) for batch in batches]) > 3.5
    neighbours = [b == (a[0], a[1] + 1) for batch in batches for a, b in itertools.pairwise(batch)]
    assert np.mean(neighbours) < 0.1


@pytest.mark.parametrize("stop", [0, 1, 2, 3, 4, 12, 24, 25, 26, 40])
def test_it_goes_on_from_any_state(stop):
    wanted = rest(interleaved(), 60)
    one = interleaved()
    found = rest(one, stop) if stop else []
    state = json.loads(json.dumps(one.state_dict()))
    reads = Reads()
    two = interleaved(reads)
    two.load_state_dict(state)
    if stop < 25:
        left = list(two)
        assert found + left == wanted[:25]
        assert len(reads.opened) == len(set(reads.opened)), "none is opened twice"
        assert len(reads.opened) <= SHARDS - (stop > 15), "and not those that were given whole"
    assert rest(two, 3) == wanted[max(25, stop) : max(25, stop) + 3]
    assert len(json.dumps(state)) < 300


@pytest.mark.parametrize("stop", [1, 3, 24, 25, 30])
def test_a_loader_over_it_resumes_exactly(stop):
    def loader(seed=5):
        show = lambda batch: {"images": batch, "texts": [str(sample) for sample in batch]}  # noqa: E731
        return SelectingLoader(interleaved(), Chooser(seed), view=show, prefetch=2, strict_resume=True)

    wanted = rest(loader(), 55)
    one = loader()
    found = rest(one, stop)
    state = json.loads(json.dumps(one.state_dict()))
    two = loader(seed=99)
    two.load_state_dict(state)
    assert found + rest(two, 55 - stop) == wanted


def test_a_copy_goes_on_where_the_original_stands():
    stream = interleaved()
    iterator = iter(stream)
    for _ in range(5):
        next(iterator)
    state = stream.state_dict()
    copy = pickle.loads(pickle.dumps(InterleavedShards(range(SHARDS), list, SIZE)))
    assert copy.state_dict()["epoch"] == 0
    stream.load_state_dict(state)
    assert list(iterator) == [], "the older iteration ends"


def test_a_shard_that_cannot_be_read_is_left_there_and_said(caplog):
    stream = interleaved(Reads(broken=(2, 7), at=10))
    with caplog.at_level(logging.WARNING):
        found = flat(stream)
    assert not any(shard in (2, 7) and row >= 10 for shard, row in found)
    assert len(found) == (300 - 40) // SIZE * SIZE
    assert stream.failed == 2
    assert sorted(record.message for record in caplog.records) == [
        f"shard {shard} is left where it cannot be read: cut off after 10" for shard in (2, 7)
    ]


def test_a_reader_that_raises_when_it_is_called_is_the_shards_own(caplog):
    def read(shard):
        if shard == 4:
            raise FileNotFoundError("4 is gone")
        return Reads()(shard)

    assert len(list(interleaved(read))) == 270 // SIZE
    assert "shard 4 is left where it cannot be read: 4 is gone" in caplog.text


def test_if_no_shard_can_be_read_the_reason_is_raised():
    with pytest.raises(OSError, match="cut off after 0"):
        list(interleaved(Reads(broken=range(SHARDS))))
    assert list(InterleavedShards(range(3), lambda shard: [], SIZE)) == [], "nothing is wrong with empty ones"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([], list, 4), "shards is 0; must be 1 or more"),
        ((["a", "b", "a"], list, 4), "shards has a more than once"),
        (("ab", list, 0), "super_batch_size is 0"),
        (("ab", list, 4, {"at_once": 0}), "at_once is 0"),
        (("ab", list, 4, {"buffer": -1}), "buffer is -1"),
    ],
)
def test_what_cannot_be_is_refused(arguments, words):
    *positional, options = arguments if isinstance(arguments[-1], dict) else (*arguments, {})
    with pytest.raises(ValueError, match=words):
        InterleavedShards(*positional, **options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shards": 11}, "shards is 11; there are 10"),
        ({"taken": 11}, "taken is 11; must be 0 to 10"),
        ({"open": [0, 1], "read": [3]}, "beside 1 as read; must be different shards"),
        ({"open": [1, 1], "read": [3, 3]}, "must be different shards"),
        ({"open": [4], "read": [3]}, "must be different shards"),
        ({"open": "x"}, "open is x; must be a list"),
        ({"through": [1]}, "through is .1.; must be two numbers"),
        ({"through": None}, "through is None; must be a list"),
        ({"epoch": -1}, "epoch is -1"),
        ({"block": None}, "block is None"),
    ],
)
def test_a_state_that_cannot_be_is_refused_and_changes_nothing(change, words):
    stream = interleaved()
    rest(stream, 5)
    before = stream.state_dict()
    with pytest.raises(ValueError, match=words):
        stream.load_state_dict(before | change)
    assert stream.state_dict() == before


def test_every_super_batchs_worth_of_samples_is_put_off_in_a_way_of_its_own():
    order = flat(InterleavedShards(["one"], lambda shard: range(10 * SIZE), SIZE, buffer=2 * SIZE))
    place = {row: number for number, row in enumerate(order)}
    assert len({place[row + SIZE] - place[row] for row in range(9 * SIZE)}) > 10
