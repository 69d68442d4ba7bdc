"""The loader: sub-batches in the form of the super-batches, chosen ahead, with nothing left behind."""

import threading
import time

import numpy as np
import pytest
import torch
from selector_client import SelectingLoader, Selection, Selector
from selector_client.loading.batch_layout import default_take, default_view
from support.model import samples
from support.processes import eventually
from torch.utils.data import DataLoader, Dataset


class Recorder:
    """Stands in for a Selector where what matters is when and how it is asked."""

    def __init__(self, seconds=0.0):
        self.seconds, self.steps, self.began = seconds, [], threading.Event()

    def select(self, images, texts, *, step):
        self.began.set()
        self.steps.append(step)
        time.sleep(self.seconds)
        return Selection(indices=np.array([len(images) - 1, len(images) - 2]))


def batches(count, size=10):
    for seed in range(count):
        images, texts = samples(size, seed)
        yield {"images": images, "texts": texts, "id": [f"{seed}-{i}" for i in range(size)]}


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name == "selecting-loader"]


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_each_batch_holds_the_rows_that_were_picked(server, prefetch):
    with Selector(server.address, filter_ratio=0.8, seed=1) as selector:
        loader = SelectingLoader(batches(6, 20), selector, prefetch=prefetch)
        for seed, batch in enumerate(loader):
            images, texts = samples(20, seed)
            indices = loader.last.indices
            assert loader.last.fallback == ""
            assert len(indices) == len(set(indices.tolist())) == 4
            np.testing.assert_array_equal(batch["images"], images[indices])
            np.testing.assert_array_equal(batch["texts"], texts[indices])
            assert batch["id"] == [f"{seed}-{i}" for i in indices]
        assert (seed, selector.statistics.requests) == (5, 6)
        assert loader.wait_seconds > 0


def test_prefetching_changes_no_pick(server):
    def picks(prefetch):
        with Selector(server.address, seed=4) as selector:
            loader = SelectingLoader(batches(5, 20), selector, prefetch=prefetch)
            return [(loader.last.indices.tolist(), loader.last.seed) for _ in loader]

    assert picks(0) == picks(1) == picks(3)


def test_selection_overlaps_training():
    """Steps of 50 ms and selections of 50 ms take little more than either alone."""

    def seconds(prefetch):
        loader = SelectingLoader(batches(10), Recorder(0.05), prefetch=prefetch)
        started = time.perf_counter()
        for _ in loader:
            time.sleep(0.05)
        return time.perf_counter() - started, loader.wait_seconds

    (alone, waited_alone), (ahead, waited_ahead) = seconds(0), seconds(1)
    assert waited_alone >= 0.5
    assert waited_ahead < 0.6 * waited_alone
    assert ahead < 0.8 * alone


@pytest.mark.parametrize("prefetch", [1, 2])
def test_no_more_than_prefetch_selections_run_ahead(prefetch):
    recorder = Recorder()
    iterator = iter(SelectingLoader(batches(10), recorder, prefetch=prefetch))
    next(iterator)
    eventually(lambda: len(recorder.steps) == 1 + prefetch)
    time.sleep(0.2)
    assert len(recorder.steps) == 1 + prefetch
    iterator.close()


def test_the_next_selection_is_made_while_picks_are_taken():
    recorder, taken, go = Recorder(), [], threading.Event()

    def take(batch, rows):
        taken.append(len(recorder.steps))
        go.wait(10)
        return batch["id"][rows[0]]

    iterator = iter(SelectingLoader(batches(5), recorder, take=take))
    reader = threading.Thread(target=lambda: taken.append(next(iterator)))
    reader.start()
    eventually(lambda: len(recorder.steps) == 2)
    assert taken == [1], "the first sub-batch is still being taken"
    go.set()
    reader.join(10)
    iterator.close()
    eventually(lambda: not loader_threads())


def test_steps_count_on_over_epochs():
    recorder = Recorder()
    data = list(batches(3))
    loader = SelectingLoader(data, recorder, first_step=100)
    for _ in range(2):
        assert len(list(loader)) == 3
    assert recorder.steps == [100, 101, 102, 103, 104, 105]


@pytest.mark.parametrize("prefetch", [0, 1])
def test_what_the_data_raises_reaches_the_trainer(prefetch):
    def broken():
        yield from batches(2)
        raise OSError("shard 3 is gone")

    seen = 0
    with pytest.raises(OSError, match="shard 3 is gone"):
        for _ in SelectingLoader(broken(), Recorder(), prefetch=prefetch):
            seen += 1
    assert seen == 2


def test_leaving_early_leaves_no_thread():
    for _ in SelectingLoader(batches(1000), Recorder(), prefetch=2):
        break
    eventually(lambda: not loader_threads())


def test_forms_of_batches():
    images, texts = samples(10)
    want = [9, 8]
    pair = next(iter(SelectingLoader([(images, torch.from_numpy(texts), list("abcdefghij"))], Recorder())))
    assert isinstance(pair, tuple)
    np.testing.assert_array_equal(pair[0], images[want])
    assert torch.equal(pair[1], torch.from_numpy(texts[want]))
    assert pair[2] == ["j", "i"]
    own = SelectingLoader(
        [range(10)],
        Recorder(),
        view=lambda batch: {"images": list(batch), "texts": None},
        take=lambda batch, indices: sum(batch[i] for i in indices),
    )
    assert list(own) == [17]


@pytest.mark.parametrize(
    ("super_batch", "shown"),
    [
        ({"images": "i", "texts": "t", "labels": "l"}, {"images": "i", "texts": "t"}),
        ({"images": "i", "texts": "t", "ids": "d", "labels": "l"}, {"images": "i", "texts": "t", "ids": "d"}),
        (("i", "t", "l"), {"images": "i", "texts": "t"}),
        (["i", "t"], {"images": "i", "texts": "t"}),
    ],
)
def test_what_a_selector_is_shown_of_each_form(super_batch, shown):
    assert default_view(super_batch) == shown


def test_rows_are_taken_out_of_each_form():
    rows, names = np.arange(3) * 10, ["a", "b", "c"]
    want = ([20, 0], ["c", "a"])
    for form in (list, tuple):
        taken = default_take(form((rows, names)), np.array([2, 0]), 3)
        assert isinstance(taken, form)
        assert (taken[0].tolist(), taken[1]) == want
    taken = default_take({"rows": rows, "both": (rows, names)}, np.array([2, 0]), 3)
    assert (taken["rows"].tolist(), taken["both"][0].tolist(), taken["both"][1]) == (want[0], *want)


class Pairs(Dataset):
    """Images with texts, as a torch data set."""

    def __init__(self, count):
        self.images, self.texts = samples(count)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.texts[index]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_torch_data_loader_with_forked_workers(server):
    """Two epochs, so that workers are forked when the channel is open; its batches are lists of tensors."""
    data = DataLoader(Pairs(60), batch_size=20, num_workers=2, multiprocessing_context="fork")
    with Selector(server.address, on_error="raise") as selector:
        loader = SelectingLoader(data, selector)
        for _ in range(2):
            for number, (images, texts) in enumerate(loader):
                rows = number * 20 + loader.last.indices
                assert torch.equal(images, torch.from_numpy(data.dataset.images[rows]))
                assert torch.equal(texts, torch.from_numpy(data.dataset.texts[rows]))
            assert number == 2
        assert selector.statistics.requests == 6


def test_what_view_and_take_raise_reaches_the_trainer():
    for prefetch in (0, 1):
        with pytest.raises(KeyError, match="pixels"):
            list(SelectingLoader(batches(2), Recorder(), prefetch=prefetch, view=lambda batch: batch["pixels"]))
        with pytest.raises(ZeroDivisionError):
            list(SelectingLoader(batches(2), Recorder(), prefetch=prefetch, take=lambda batch, rows: 1 // 0))


def test_leaving_early_closes_the_data_and_raises_nothing_later():
    closed = threading.Event()

    def data():
        try:
            yield from batches(1000)
        finally:
            closed.set()

    for prefetch in (0, 1, 3):
        closed.clear()
        recorder = Recorder()
        iterator = iter(SelectingLoader(data(), recorder, prefetch=prefetch))
        next(iterator)
        eventually(lambda recorder=recorder, ahead=1 + prefetch: len(recorder.steps) == ahead)
        time.sleep(0.1)  # the thread now waits for room
        iterator.close()
        del iterator
        assert closed.wait(10)
    eventually(lambda: not loader_threads())


def test_a_batch_without_images_and_texts_is_named():
    with pytest.raises(TypeError, match="cannot find images and texts in a dict; give SelectingLoader a view"):
        list(SelectingLoader([{"pixels": 1}], Recorder()))
    with pytest.raises(ValueError, match="prefetch is -1"):
        SelectingLoader([], Recorder(), prefetch=-1)


def test_a_dead_sidecar_costs_selection_and_not_the_run(sidecar, bundles):
    running = sidecar(bundles.flags)
    with Selector(running.address, timeout=5.0) as selector:
        loader = SelectingLoader(batches(12, 20), selector)
        sizes, fallbacks = [], []
        for number, batch in enumerate(loader):
            if number == 3:
                running.process.kill()
            sizes.append(len(batch["images"]))
            fallbacks.append(loader.last.fallback)
    assert sizes == [4] * 12
    assert fallbacks[:3] == [""] * 3
    assert fallbacks[-1] == "breaker_open"
    assert selector.statistics.fallbacks.total() == sum(map(bool, fallbacks))
