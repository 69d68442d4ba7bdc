"""What the demo's arms are fed with: neighbours as shards give them, and pictures that are moved."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from selector_tools.datasets.dataset import Pictures
from selector_tools.reference.augmentation import Augmentation
from selector_tools.study import streams
from selector_tools.study.model import SmallSigLip
from selector_tools.study.training import train
from torch import Tensor


def icons(families: str, concepts: str) -> Pictures:
    n = len(families)
    return Pictures(np.zeros((n, 32, 32), np.uint8), ("x",) * n, tuple(concepts), tuple(families))


def test_neighbours_are_of_one_family_and_then_of_one_concept() -> None:
    order = streams.stored_order(icons("bababb", "yzxzxx"))
    assert order.tolist() == [1, 3, 2, 4, 5, 0]  # rows that are equal in both keep their order


def test_a_super_batch_has_whole_runs_of_neighbours_and_an_epoch_each_pair_at_most_once() -> None:
    order = np.random.default_rng(1).permutation(1000).astype(np.int64)
    place = np.argsort(order)
    per_epoch = (1000 - streams.RUN) // streams.RUN // 4  # 30 or 31 runs, four at once
    drawn = list(islice(streams.runs(order, 4 * streams.RUN, seed=0), 3 * per_epoch))
    starts = []
    for epoch in np.split(np.stack(drawn), 3):
        assert len(np.unique(epoch)) == epoch.size
        places = place[epoch.reshape(-1, streams.RUN)]
        assert (np.diff(places, axis=1) == 1).all()
        assert len(set((places[:, 0] % streams.RUN).tolist())) == 1  # all runs of an epoch are cut alike
        assert (np.diff(places[:, 0]) < 0).any()  # and come in random order
        starts.append(int(places[0, 0] % streams.RUN))
    assert len(set(starts)) > 1  # the next epoch cuts elsewhere


def test_the_same_seed_gives_the_same_super_batches() -> None:
    order = np.arange(400)

    def first(seed: int) -> list[list[int]]:
        return [rows.tolist() for rows in islice(streams.runs(order, 64, seed), 12)]

    assert first(3) == first(3)
    assert first(3) != first(4)


@pytest.mark.parametrize(("count", "size"), [(1000, 100), (1000, 0), (94, 64)])
def test_a_super_batch_that_runs_cannot_fill_is_refused(count: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"super-batch is {size}; must be a multiple of 32 and at most {count - 31}"):
        next(streams.runs(np.arange(count), size, seed=0))


def test_the_smallest_pool_fills_a_super_batch_wherever_it_is_cut() -> None:
    batches = streams.runs(np.arange(95), 64, seed=0)
    assert all(len(set(next(batches).tolist())) == 64 for _ in range(100))


class Recorder(SmallSigLip):
    """Keeps the pictures that it is trained on."""

    def __init__(self) -> None:
        super().__init__(vocabulary=10)
        self.seen: list[Tensor] = []

    def loss(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        self.seen.append(pixels)
        return super().loss(pixels, tokens)


def batches(drawn: list[int]) -> Iterator[dict[str, Any]]:
    dot = np.zeros((4, 32, 32, 1), np.uint8)
    dot[:, 16, 16] = 255
    while True:
        drawn.append(len(drawn))
        yield {"images": dot, "texts": np.ones((4, 8), np.int64), "ids": np.arange(4)}


def test_training_moves_pictures_by_chances_that_the_seed_decides() -> None:
    def seen(augment: Augmentation | None, seed: int) -> Tensor:
        model = Recorder()
        train(model, batches([]), 20, learning_rate=1e-3, augment=augment, seed=seed)
        return torch.cat(model.seen)

    moved = seen(Augmentation(shift=3), 0)
    assert (moved.sum(dim=(1, 2, 3)) == 255).all()
    assert set(moved.nonzero()[:, 1:3].flatten().tolist()) == set(range(13, 20))
    assert torch.equal(moved, seen(Augmentation(shift=3), 0))
    assert not torch.equal(moved, seen(Augmentation(shift=3), 1))
    assert seen(None, 0)[:, 16, 16].all()


def test_weights_are_published_when_their_batch_is_there_and_before_the_next_is_asked_for() -> None:
    drawn: list[int] = []
    published = []

    class Publisher:
        def publish(self, step: int, model: object) -> None:
            published.append((step, len(drawn)))

    train(Recorder(), batches(drawn), 4, learning_rate=1e-3, publisher=Publisher())  # type: ignore[arg-type]
    assert published == [(0, 1), (1, 2), (2, 3), (3, 4)]
