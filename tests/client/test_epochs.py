"""Sources that end and begin anew, and sources that do not repeat their order, each as its kind behaves."""

import logging

import datasets
import numpy as np
import pytest
import torch
from selector_client import SelectingLoader
from selector_client.loading.digest import digest_of
from support.loaders import BATCH, SIZE, Chooser, rest, saved, shown
from support.processes import eventually
from torch.utils.data import DataLoader

ROWS = np.arange(SIZE)


def loader(source, chooser=None, **options):
    options = {"view": shown, "take": lambda rows, picks: rows[picks], "prefetch": 0} | options
    return SelectingLoader(source, chooser or Chooser(), **options)


def first_of(batch):
    return batch // BATCH


class Keeping:
    """Keeps its place, and begins anew by itself, in an order of each epoch; or, as some do, only after an empty
    iteration that follows a state of the end; or never, unless it is given the state of its beginning."""

    def __init__(self, kind):
        self.kind, self.epoch, self.next, self.loaded = kind, 0, 0, None

    def __iter__(self):
        if self.kind == "stays" and self.loaded is not None:
            self.epoch, self.next = self.loaded
        elif self.kind == "stays":
            self.next = 0
        elif self.loaded is None:
            self.epoch, self.next = self.epoch + (self.next > 0), 0
        if self.kind != "stays":
            self.loaded = None
        if self.kind == "anew" and self.next == 5:
            self.epoch, self.next = self.epoch + 1, 0
        while self.next < 5:
            self.next += 1
            yield ROWS[(self.next - 1) * BATCH : self.next * BATCH] + 100 * (self.epoch if self.kind != "stays" else 0)

    def state_dict(self):
        return {"at": [self.epoch, self.next]}

    def load_state_dict(self, state):
        self.loaded = self.epoch, self.next = tuple(state["at"])


KINDS = ["anew", "after an empty one", "stays"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_exhausted_source_begins_anew(kind, prefetch):
    one = loader(Keeping(kind), prefetch=prefetch)
    epochs = [[batch.tolist() for batch in one] for _ in range(4)]
    assert [len(epoch) for epoch in epochs] == [5] * 4
    tops = [max(max(batch) for batch in epoch) // 100 for epoch in epochs]
    assert tops == ([0] * 4 if kind == "stays" else [0, 1, 2, 3])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [0, 2, 5, 7, 10])
def test_a_source_with_its_own_state_is_resumed_and_then_begins_anew(kind, stop):
    wanted = [batch.tolist() for batch in rest(loader(Keeping(kind)), 20)]
    one = loader(Keeping(kind))
    found = [batch.tolist() for batch in rest(one, stop)] if stop else []
    state = saved(one)
    two = loader(Keeping(kind), Chooser(seed=99))
    two.load_state_dict(state)
    found += [batch.tolist() for batch in rest(two, 20 - stop)]
    assert found == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_that_was_left_in_the_middle_goes_on_and_then_begins_anew(kind):
    one = loader(Keeping(kind))
    sizes = []
    for _ in one:
        break
    for _ in range(3):
        sizes.append(len(list(one)))
    assert sizes == [4, 5, 5]


def test_an_iterable_dataset_of_hugging_face_has_every_epoch():
    """It gave 10, 0 and 0 sub-batches over three epochs."""

    def rows():
        return datasets.Dataset.from_dict({"row": list(range(400))}).to_iterable_dataset().batch(40)

    view = {"view": lambda batch: shown(np.array(batch["row"])), "take": None}
    assert [len(list(one)) for one in [loader(rows(), **view)] * 3] == [10, 10, 10]
    one = loader(rows(), **view)
    found = rest(one, 13)
    state = saved(one)
    two = loader(rows(), Chooser(seed=99), **view)
    two.load_state_dict(state)
    more = [len(list(two)) for _ in range(3)]
    assert more == [7, 10, 10]
    assert len(found) == 13


# Orders that are not repeated


class Shuffled(DataLoader):
    """As DataLoader(shuffle=True) in a process that was seeded in another way, or not at all."""

    def __init__(self, seed, **options):
        torch.manual_seed(seed)
        super().__init__(ROWS, batch_size=BATCH, shuffle=True, **options)


def stopped(source, count, prefetch=0):
    one = loader(source, prefetch=prefetch)
    iterator = iter(one)
    found = [next(iterator) for _ in range(count)]
    if prefetch:
        eventually(lambda: len(one.state_dict()["ahead"]) == prefetch)
    return found, saved(one)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_source_that_does_not_repeat_its_order_is_told_loudly(caplog, prefetch):
    """104 of 400 samples came twice and 104 never, in silence."""
    _, state = stopped(Shuffled(1), 2, prefetch)
    two = loader(Shuffled(2), Chooser(seed=99))
    two.load_state_dict(state)
    with caplog.at_level(logging.WARNING):
        found = rest(two, 3)
    assert len(found) == 3, "and training goes on"
    warnings = [r.getMessage() for r in caplog.records if "order" in r.getMessage()]
    assert len(warnings) == 1
    assert (
        "did not repeat their order, so that samples which were trained on come again, and others never" in warnings[0]
    )
    assert "StatefulDataLoader" in warnings[0]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_strict_resume_refuses_a_source_that_does_not_repeat_its_order(prefetch):
    _, state = stopped(Shuffled(1), 2)
    two = loader(Shuffled(2), strict_resume=True, prefetch=prefetch)
    two.load_state_dict(state)
    with pytest.raises(ValueError, match="super_batches did not repeat their order"):
        next(iter(two))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_source_that_repeats_its_order_is_resumed_without_a_word(caplog, prefetch):
    def seeded():
        return DataLoader(ROWS, batch_size=BATCH, shuffle=True, generator=torch.Generator().manual_seed(7))

    wanted = [batch.tolist() for batch in rest(loader(seeded()), 5)]
    found, state = stopped(seeded(), 2, prefetch)
    two = loader(seeded(), Chooser(seed=99), strict_resume=True)
    two.load_state_dict(state)
    assert [batch.tolist() for batch in (*found, *rest(two, 3))] == wanted
    assert caplog.records == []


def test_picks_that_were_made_ahead_are_forgotten_if_their_super_batch_does_not_come_back(caplog):
    """They would index another super-batch, perhaps a shorter one."""
    data = [ROWS[:BATCH], ROWS[BATCH : 2 * BATCH], ROWS[2 * BATCH : 3 * BATCH]]
    _, state = stopped(data, 1, 2)
    assert len(state["ahead"]) == 2
    other = [data[0], ROWS[50:54], ROWS[40:52]]
    chooser = Chooser()
    two = loader(other, chooser, last="keep")
    two.load_state_dict(state)
    found = rest(two, 2)
    assert chooser.steps == [1, 2], "both are asked for anew"
    assert set(found[0].tolist()) < set(range(50, 54))
    assert set(found[1].tolist()) < set(range(40, 52))
    assert "did not repeat their order" in caplog.text


@pytest.mark.parametrize(
    "column",
    [
        lambda rows: {"ids": rows, "texts": None},
        lambda rows: {"ids": [str(row) for row in rows], "texts": ["same"] * len(rows)},
        lambda rows: {"texts": [f"w{row}" for row in rows]},
        lambda rows: {"texts": [[f"w{row}", None] for row in rows]},
        lambda rows: {"texts": np.array([f"w{row}" for row in rows], object)},
        lambda rows: {"texts": torch.from_numpy(rows)[:, None]},
        lambda rows: {"texts": [b"\xff%d" % row for row in rows]},
        lambda rows: {"texts": [f"\udcff{row}" for row in rows]},
    ],
)
def test_super_batches_are_told_apart_by_ids_or_else_by_texts(column):
    one, again, other = (digest_of({"images": object(), **column(rows)}) for rows in (ROWS[:9], ROWS[:9], ROWS[1:10]))
    assert one == again != other


def test_a_state_dict_that_needs_arguments_is_no_state(caplog):
    """As that of mosaicml's StreamingDataset, which must be told how many samples were seen."""

    class Needs(list):
        def state_dict(self, num_samples, from_beginning):
            raise AssertionError("never called right")

        def load_state_dict(self, state):
            raise AssertionError("never called")

    data = [ROWS[i : i + BATCH] for i in range(0, SIZE, BATCH)]
    wanted = [batch.tolist() for batch in rest(loader(data), 5)]
    found, state = stopped(Needs(data), 2)
    two = loader(Needs(data), Chooser(seed=99))
    two.load_state_dict(state)
    assert [batch.tolist() for batch in (*found, *rest(two, 3))] == wanted
    assert "state_dict() cannot be used, so they are drawn again to resume" in caplog.text
