"""Loaders over datasets, and loaders that stop and go on somewhere else."""

import json
import threading
import time

import numpy as np
import pytest
import torch
from selector_client import SelectingLoader, Selection, Selector
from selector_client.loading.batch_layout import collate
from selector_client.loading.dataset import SuperBatches
from support.model import samples
from support.processes import eventually
from torch.utils.data import DataLoader, IterableDataset

PIXELS, TOKENS = samples(100, 5)
SETTINGS = {"filter_ratio": 0.75, "seed": 11, "timeout": 30.0, "on_error": "raise"}


class Icons:
    """A map-style dataset that counts what is decoded."""

    def __init__(self):
        self.decoded = []

    def __len__(self):
        return len(PIXELS)

    def __getitem__(self, index):
        self.decoded.append(index)
        return {"image": PIXELS[index].astype(np.float32), "index": index, "name": f"icon {index}"}

    def view(self, indices):
        return {"images": PIXELS[indices], "texts": TOKENS[indices]}


def over(selector, dataset=None, **options):
    dataset = dataset or Icons()
    return SelectingLoader.over(dataset, selector, super_batch_size=20, view=dataset.view, seed=3, **options)


def indices_of(batch):
    return batch["index"].tolist()


class Recorder:
    """Picks the first of each super-batch."""

    def __init__(self, picks=2):
        self.picks, self.asked = picks, []

    def select(self, images, texts, *, step, ids=None, timeout=None):
        self.asked.append((step, timeout))
        return Selection(indices=np.arange(min(self.picks, len(images))))


# Datasets


def test_only_the_picks_are_decoded(server):
    dataset = Icons()
    with Selector(server.address, **SETTINGS) as selector:
        loader = over(selector, dataset)
        assert len(loader) == 5
        for batch in loader:
            assert batch["image"].shape == (5, *PIXELS.shape[1:])
            assert isinstance(batch["image"], torch.Tensor)
            assert batch["name"] == [f"icon {index}" for index in indices_of(batch)]
    assert len(dataset.decoded) == len(set(dataset.decoded)) == 25
    assert loader.progress.candidates == 100


def test_an_epoch_shows_every_sample_once_and_the_next_one_in_another_order():
    batches = SuperBatches(23, 5, seed=1)
    epochs = [list(batches) for _ in range(3)]
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == [5] * 4
        assert len(set(np.concatenate(epoch).tolist())) == 20
    assert epochs[0][0].tolist() != epochs[1][0].tolist()
    assert [b.tolist() for b in SuperBatches(23, 5, seed=1)] == [b.tolist() for b in epochs[0]]
    assert [b.tolist() for b in SuperBatches(6, 3, shuffle=False)] == [[0, 1, 2], [3, 4, 5]]
    for size in (0, 24):
        with pytest.raises(ValueError, match=f"super_batch_size is {size}; must be 1 to the dataset's size, 23"):
            SuperBatches(23, size)


def test_whoever_drew_before_a_state_was_loaded_draws_nothing_after_it():
    batches = SuperBatches(30, 5, shuffle=False)
    before = iter(batches)
    next(before)
    batches.load_state_dict({"epoch": 2, "cursor": 3})
    assert list(before) == []
    assert batches.state_dict() == {"epoch": 2, "cursor": 3}
    batches.load_state_dict({"epoch": 2, "cursor": 4})
    now = iter(batches)
    assert next(now).tolist() == [20, 21, 22, 23, 24]
    batches.load_state_dict({"epoch": 0, "cursor": 1})
    assert next(iter(batches)).tolist() == [5, 6, 7, 8, 9]
    assert list(now) == []
    assert batches.state_dict() == {"epoch": 0, "cursor": 2}


def test_a_loader_over_a_dataset_may_keep_its_order():
    batches = list(over(Recorder(), shuffle=False))
    assert [indices_of(batch) for batch in batches] == [[start, start + 1] for start in range(0, 100, 20)]


def test_samples_are_stacked_without_torch(monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "torch")
    batch = collate([{"a": np.ones(2), "b": ("x", 1)}, {"a": np.zeros(2), "b": ("y", 2)}])
    assert batch["a"].shape == (2, 2)
    assert batch["b"][0] == ["x", "y"]
    assert batch["b"][1].tolist() == [1, 2]


# Resuming


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("stop", [1, 4, 5, 7])
def test_a_dataset_is_resumed_exactly(server, prefetch, stop):
    """Through an epoch's end, with picks made ahead, and without decoding or asking twice."""

    def run(loader, count):
        seen = []
        while len(seen) < count:
            for batch in loader:
                seen.append(indices_of(batch))
                if len(seen) == count:
                    break
        return seen

    with Selector(server.address, **SETTINGS) as selector:
        wanted = run(over(selector, prefetch=prefetch), 12)
    with Selector(server.address, **SETTINGS) as selector:
        loader = over(selector, prefetch=prefetch)
        seen, state = [], None
        while state is None:
            for batch in loader:
                seen.append(indices_of(batch))
                if len(seen) == stop:
                    eventually(lambda: len(loader.state_dict()["ahead"]) == min(prefetch, -stop % 5), 10)
                    state = json.loads(json.dumps(loader.state_dict()))
                    break
    other = {**SETTINGS, "seed": 999}
    with Selector(server.address, **other) as selector:
        loader = over(selector, prefetch=prefetch)
        loader.load_state_dict(state)
        rest = run(loader, 12 - stop)
        assert loader.progress.steps == 12
    assert seen + rest == wanted


@pytest.mark.parametrize("prefetch", [0, 2])
def test_any_iterable_is_resumed_by_leaving_out_what_was_yielded(server, prefetch):
    def data():
        for number in range(6):
            images, texts = samples(20, number)
            yield {"images": images, "texts": texts, "number": np.full(20, number)}

    def batches(loader):
        return [(batch["number"][0].item(), batch["images"].sum()) for batch in loader]

    with Selector(server.address, **SETTINGS) as selector:
        wanted = batches(SelectingLoader(data(), selector, prefetch=prefetch))
    with Selector(server.address, **SETTINGS) as selector:
        loader = SelectingLoader(data(), selector, prefetch=prefetch)
        iterator = iter(loader)
        seen = [next(iterator), next(iterator)]
        state = loader.state_dict()
        iterator.close()
    with Selector(server.address, **SETTINGS | {"seed": 1}) as selector:
        loader = SelectingLoader(data(), selector, prefetch=prefetch)
        loader.load_state_dict(state)
        rest = batches(loader)
    assert [(batch["number"][0].item(), batch["images"].sum()) for batch in seen] + rest == wanted


def test_leaving_early_loses_no_sample_of_a_dataset():
    recorder, seen = Recorder(), []
    loader = over(recorder, prefetch=2)
    for _ in range(3):
        for batch in loader:
            seen += indices_of(batch)
            break
    seen += [index for batch in loader for index in indices_of(batch)]
    assert len(seen) == len(set(seen)) == 10
    assert max(step for step, _ in recorder.asked) == 4, "steps are those of what is yielded"


# Short super-batches


def pieces(*sizes):
    for size in sizes:
        yield {"images": PIXELS[:size], "texts": TOKENS[:size]}


def test_a_super_batch_that_is_too_short_is_dropped(server):
    with Selector(server.address, sub_batch_size=5, on_error="raise") as selector:
        loader = SelectingLoader(pieces(20, 20, 4), selector)
        assert [len(batch["images"]) for batch in loader] == [5, 5]
        assert loader.progress.dropped == 1
        with pytest.raises(ValueError, match="5 picks of 4 candidates"):
            list(SelectingLoader(pieces(4), selector))
    with Selector(server.address, filter_ratio=0.75, on_error="raise") as selector:
        assert [len(b["images"]) for b in SelectingLoader(pieces(20, 8), selector)] == [5, 5]
        assert [len(b["images"]) for b in SelectingLoader(pieces(20, 4), selector)] == [5]
        assert [len(b["images"]) for b in SelectingLoader(pieces(20, 4), selector, last="keep")] == [5, 1]


# Deadlines


def test_deadlines_follow_the_steps_time():
    recorder = Recorder()
    for _ in SelectingLoader(pieces(*[20] * 15), recorder, prefetch=1):
        time.sleep(0.15)
    deadlines = [timeout for _, timeout in recorder.asked]
    assert set(deadlines[:10]) == {None}
    assert deadlines[-1] == pytest.approx(5 * 2 * 0.15, rel=0.2)
    for _ in SelectingLoader(pieces(20), recorder, deadline=0.25):
        pass
    assert recorder.asked[-1][1] == 0.25
    for deadline in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="deadline is"):
            SelectingLoader([], recorder, deadline=deadline)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"prefetch": -1}, "prefetch is -1; must be 0 or more"), ({"last": "all"}, "last is 'all'; must be 'drop' or")],
)
def test_wrong_options_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        SelectingLoader([], Recorder(), **options)


# Workers


class Selected(IterableDataset):
    """A loader within a worker of torch's DataLoader."""

    def __init__(self, selector):
        self.selector = selector

    def __iter__(self):
        dataset = Icons()
        yield from SelectingLoader.over(dataset, self.selector, super_batch_size=20, view=dataset.view, workers=2)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_in_the_workers_of_a_data_loader(server, context):
    with Selector(server.address, **SETTINGS) as selector:
        selector.select(PIXELS, TOKENS)  # the parent has a connection
        loader = DataLoader(Selected(selector), batch_size=None, num_workers=2, multiprocessing_context=context)
        batches = [indices_of(batch) for batch in loader]
    assert [len(batch) for batch in batches] == [5] * 10


def test_threads_end(server):
    with Selector(server.address, **SETTINGS) as selector:
        for _ in over(selector, prefetch=3):
            break
    eventually(lambda: not [t for t in threading.enumerate() if t.name == "selecting-loader"])
