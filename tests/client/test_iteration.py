"""A loader's queue, in which picks and super-batches stand together, and the selector as its loader uses it."""

import threading

import numpy as np
import pytest
from selector_client import AsyncSelector, SelectingLoader, Selection, Selector
from selector_client.loading.iteration import Item, Iteration
from selector_client.loading.loader_state import Picked
from selector_client.loading.picker import Picker
from selector_client.loading.prefetch import prefetched
from selector_client.loading.resumable import Position


def picked(count):
    return Picked(Selection(indices=np.array([count])), count)


def test_picks_that_were_kept_get_their_super_batches_in_order_and_nobody_elses():
    iteration = Iteration(Position(3), 5, [picked(6), picked(7)])
    assert [one.count for one in iteration.pending()] == [6, 7]
    first = iteration.drawn("a", Position(4))
    assert (first.super_batch, first.picked.count, first.candidates) == ("a", 6, 0)
    first.given = True
    assert iteration.given == [first]
    second = iteration.drawn("b", Position(5))
    assert (second.super_batch, second.picked.count) == ("b", 7)
    assert iteration.drawn("c", Position(6)) is None, "the third one must be asked for"
    iteration.items.append(Item(picked(8), "c", Position(6), candidates=20))
    assert [one.count for one in iteration.pending()] == [6, 7, 8]


def test_the_position_moves_only_with_what_the_trainer_has_used():
    iteration = Iteration(Position(), 0, [picked(1), picked(2)])
    item = iteration.drawn("a", Position(1))
    iteration.used()
    assert (iteration.position, iteration.count) == (Position(), 0), "the trainer was not given it yet"
    item.given = True
    iteration.used()
    assert (iteration.position, iteration.count) == (Position(1), 1)
    assert len(iteration.items) == 1


@pytest.mark.parametrize("out", [False, True])
def test_an_epochs_end_is_where_the_next_one_begins(out):
    iteration = Iteration(Position(4), 4, [picked(5)])
    item = iteration.drawn("a", Position(5))
    item.given = True
    if not out:
        iteration.used()
    iteration.finish(Position(0, {"epoch": 1}), 9)
    iteration.used()
    assert (iteration.position, iteration.count) == (Position(0, {"epoch": 1}), 9)


@pytest.mark.parametrize("kind", [Selector, AsyncSelector])
def test_selectors_go_on_after_so_many_selections(kind):
    selector = kind("localhost:1", timeout=3.0, seed=7, sub_batch_size=2)
    assert (selector.seed, selector.count, selector.timeout, selector.breaker.open) == (7, 0, 3.0, False)
    selector.resume(5)
    assert (selector.seed, selector.count) == (7, 5)
    selector.resume(6, seed=8)
    assert (selector.seed, selector.count) == (8, 6)


def test_a_resumed_selector_draws_what_the_first_one_would_have(monkeypatch):
    monkeypatch.setenv("SELECTOR_OFF", "1")
    losses = np.zeros(50, np.float32)
    one, other = (Selector("localhost:1", seed=seed, sub_batch_size=5) for seed in (3, 99))
    wanted = [one.select_losses(losses, None).indices.tolist() for _ in range(4)]
    other.resume(2, seed=3)
    assert [other.select_losses(losses, None).indices.tolist() for _ in range(2)] == wanted[2:]


class OnlySelects:
    def select(self, images, texts, *, step, timeout=None):
        return Selection(indices=np.arange(2))


def test_any_object_that_selects_will_do():
    picker = Picker(OnlySelects(), dict, prefetch=1, deadline=None, keep_short=False)
    assert (picker.joint, picker.seed, picker.count) == (False, None, 0)
    picker.resume(5, 7, None)
    assert picker.count == 0
    shown = picker.look({"images": np.zeros(8), "texts": np.zeros(8)})
    selection = picker.pick(shown, 0)
    assert (len(selection.indices), shown.size, picker.picks) == (2, 8, 2)


def test_what_a_fallback_picked_stays_with_its_super_batch_over_a_resumption(monkeypatch):
    monkeypatch.setenv("SELECTOR_OFF", "1")
    data = [{"images": np.full((8, 2, 2, 1), i, np.uint8), "texts": np.full((8, 2), i)} for i in range(5)]

    def loader():
        return SelectingLoader(data, Selector("localhost:1", seed=1, sub_batch_size=2), prefetch=0)

    one = loader()
    iterator = iter(one)
    next(iterator)
    state = one.state_dict()
    state["ahead"] = [{"indices": [4, 5], "fallback": "unavailable", "count": 2}]
    other = loader()
    other.load_state_dict(state)
    iterator = iter(other)
    batch = next(iterator)
    assert batch["texts"].tolist() == [[1, 1], [1, 1]]
    assert (other.last.fallback, other.last.indices.tolist()) == ("unavailable", [4, 5])
    assert next(iterator)["texts"].tolist() == [[2, 2], [2, 2]]
    assert other.last.fallback == "off"


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_prefetched_items_are_the_same_in_order_and_so_is_what_they_raise(depth):
    def items():
        yield from (None, 1, 2)
        raise OSError("the disk is gone")

    found = []
    with pytest.raises(OSError, match="the disk is gone"):
        for item in prefetched(items(), depth, "reader-of-a-test"):
            found.append(item)
    assert found == [None, 1, 2]


def test_prefetching_stays_within_its_depth_on_a_thread_of_that_name():
    made, names, third = [], set(), threading.Event()

    def items():
        for number in range(10):
            made.append(number)
            names.add(threading.current_thread().name)
            if number == 2:
                third.set()
            yield number

    iterator = prefetched(items(), 2, "reader-of-a-test")
    assert next(iterator) == 0
    assert third.wait(10)
    assert made == [0, 1, 2]
    assert names == {"reader-of-a-test"}
    iterator.close()
