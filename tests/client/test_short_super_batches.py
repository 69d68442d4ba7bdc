"""Super-batches of which samples are missing: b stays b, none is dropped that has enough, and drops are told."""

import logging

import numpy as np
import pytest
from selector_client import SelectingLoader, Selector
from selector_client.callbacks import TrainingHooks
from support.loaders import rest, saved
from support.model import samples
from support.processes import eventually
from torch.utils.data import DataLoader

PIXELS, TOKENS = samples(200)


def pieces(*sizes):
    return [{"images": PIXELS[:size], "texts": TOKENS[:size], "row": np.arange(size)} for size in sizes]


def lengths(loader):
    return [len(batch["row"]) for batch in loader]


@pytest.fixture(autouse=True)
def off(monkeypatch):
    monkeypatch.setenv("SELECTOR_OFF", "1")


def selector(**settings):
    return Selector("localhost:1", seed=1, **({"filter_ratio": 0.8} | settings))


def test_one_percent_of_missing_samples_drops_no_super_batch():
    sizes = 200 - np.random.default_rng(0).binomial(200, 0.01, 60)
    sizes[0] = 200
    loader = SelectingLoader(pieces(*sizes.tolist()), selector())
    assert lengths(loader) == [40] * 60
    assert loader.progress.dropped == 0


def test_b_is_that_of_the_nominal_size_from_the_first_super_batch_on():
    sizes = [197, 200, 199, 41, 39, 200]
    assert lengths(SelectingLoader(pieces(*sizes), selector(), super_batch_size=200)) == [40] * 5
    assert lengths(SelectingLoader(pieces(*sizes), selector())) == [39] * 6, "of the first one"
    loader = SelectingLoader(pieces(*sizes), selector(), super_batch_size=200, last="keep")
    assert lengths(loader) == [40, 40, 40, 40, 7, 40]


def test_a_real_sidecar_picks_b_of_a_short_super_batch(server, monkeypatch):
    monkeypatch.delenv("SELECTOR_OFF")
    with Selector(server.address, filter_ratio=0.8, on_error="raise") as one:
        loader = SelectingLoader(pieces(200, 150, 40, 200), one)
        assert lengths(loader) == [40] * 4


def test_a_first_super_batch_that_is_very_short_is_warned_of(caplog):
    assert lengths(SelectingLoader(pieces(40, 200, 200), selector())) == [8] * 3
    (record,) = [r for r in caplog.records if "super_batch_size" in r.getMessage()]
    assert "8 of 200 candidates are picked, as of the first super-batch" in record.getMessage()
    assert "super_batch_size=200 of the loader would pick 40" in record.getMessage()


def test_larger_super_batches_than_the_trainer_said_are_not_warned_of(caplog):
    """The warning says what super_batch_size should be, which it is."""
    assert lengths(SelectingLoader(pieces(100, 200), selector(), super_batch_size=100)) == [20] * 2
    assert "super_batch_size" not in caplog.text


def test_drops_are_in_the_progress_line_the_hooks_metrics_and_a_warning(caplog):
    one = selector()
    loader = SelectingLoader(pieces(200, 30, 20, 200), one)
    with caplog.at_level(logging.WARNING):
        assert lengths(loader) == [40, 40]
    assert "2 super-batches dropped" in str(loader.progress)
    assert TrainingHooks(one, loader).metrics()["selector/dropped"] == 2
    (record,) = [r for r in caplog.records if "dropped" in r.getMessage()]
    assert "a super-batch of 30 candidates was dropped, because 40 are to be picked" in record.getMessage()


def test_a_super_batch_of_bad_samples_is_dropped_and_a_short_one_with_enough_good_ones_is_used():
    batches = pieces(200, 200, 60)
    for batch, good in ((batches[1], 39), (batches[2], 40)):
        batch["texts"] = [f"w{i}" if i < good else None for i in range(len(batch["row"]))]
    batches[0]["texts"] = ["w"] * 200
    loader = SelectingLoader(batches, selector())
    found = [batch["row"] for batch in loader]
    assert [len(rows) for rows in found] == [40, 40]
    assert sorted(found[1].tolist()) == list(range(40))
    assert loader.progress.dropped == 1


def shown(batch):
    return {"images": PIXELS[batch], "texts": TOKENS[batch]}


@pytest.mark.parametrize(
    ("rows", "drop_last", "wanted"),
    [(400, False, 2), (430, False, 2), (439, False, 2), (440, False, 3), (430, True, 2), (450, True, 2)],
)
def test_the_length_of_a_data_loader_is_honest_before_and_after_an_epoch(rows, drop_last, wanted):
    data = DataLoader(np.arange(rows) % 200, batch_size=200, drop_last=drop_last)
    loader = SelectingLoader(data, selector(), view=shown, take=lambda batch, picks: batch[picks])
    assert len(loader) == wanted
    for _ in range(2):
        assert len(list(loader)) == len(loader) == wanted
    kept = SelectingLoader(data, selector(), view=shown, take=lambda batch, picks: batch[picks], last="keep")
    assert len(kept) == len(list(kept)) == len(data)


def test_the_length_of_a_list_is_honest_after_an_epoch():
    loader = SelectingLoader(pieces(200, 30, 200), selector())
    assert len(loader) == 3
    for _ in range(2):
        assert len(list(loader)) == len(loader) == 2


def test_a_batch_size_that_is_not_the_super_batchs_is_no_nominal_size():
    """The loader's own batches are put together to super-batches, or taken apart, by its collate_fn."""
    for size, wanted in ((2, 40), (200, 8)):
        data = DataLoader(
            np.arange(400), batch_size=size, collate_fn=lambda rows, size=size: np.arange(200 if size == 2 else 40)
        )
        loader = SelectingLoader(data, selector(), view=shown, take=lambda batch, picks: batch[picks])
        assert {len(batch) for batch in loader} == {wanted}


@pytest.mark.parametrize(("first", "wanted"), [(197, 40), (101, 40), (100, 20)])
def test_a_batch_size_counts_if_the_first_super_batch_has_more_than_half_of_it(first, wanted):
    data = DataLoader(np.arange(400), batch_size=200, collate_fn=lambda rows: np.arange(200 if rows[0] else first))
    loader = SelectingLoader(data, selector(), view=shown, take=lambda batch, picks: batch[picks])
    assert [len(batch) for batch in loader] == [wanted] * 2


def test_a_dropped_super_batch_stays_dropped_for_picks_that_were_made_ahead():
    """The picks of what came after it were once given to it, after a resumption."""
    data = pieces(200, 200, 30, 200, 200, 30, 200)

    def loader(seed=1, prefetch=0):
        return SelectingLoader(data, Selector("localhost:1", seed=seed, filter_ratio=0.8), prefetch=prefetch)

    wanted = [batch["row"].tolist() for batch in loader()]
    assert len(wanted) == 5
    one = loader(prefetch=2)
    iterator = iter(one)
    found = [next(iterator)["row"].tolist()]
    eventually(lambda: len(one.state_dict()["ahead"]) == 2)
    state = saved(one)
    assert [ahead["dropped"] for ahead in state["ahead"]] == [0, 1]
    other = loader(99)
    other.load_state_dict(state)
    assert found + [batch["row"].tolist() for batch in rest(other, 4)] == wanted
