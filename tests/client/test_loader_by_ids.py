"""A loader that asks by ids first reads only what goes on."""

import json
from concurrent import futures

import grpc
import numpy as np
import pytest
from selector_client import (
    SelectingLoader,
    Selector,
)
from support.by_ids import (
    BATCH,
    COUNT,
    GOING,
    PICKS,
    PIXELS,
    SETTINGS,
    TOKENS,
    Passing,
    View,
    fill,
    old,
    refuse,
    served,
    warmed,
)
from support.processes import eventually


@pytest.fixture(scope="module")
def warm(start_sidecars, bundles, tmp_path_factory):
    """A sidecar whose cache knows all samples."""
    with start_sidecars() as start:
        yield warmed(start, bundles, tmp_path_factory.mktemp("cache"), COUNT)


class Dataset:
    """Its samples are their indices; it counts those that are read."""

    def __init__(self):
        self.read = 0

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        self.read += 1
        return index


def loader_over(selector, view, **options):
    options = {"super_batch_size": BATCH, "collate": list, "workers": 0, "seed": 2, "prefetch": 0} | options
    return SelectingLoader.over(Dataset(), selector, view=view, **options)


class Indices(View):
    """As the loader asks: for indices of the dataset, in any order."""

    def __call__(self, indices):
        self.calls.append(indices.tolist())
        return {"images": PIXELS[indices], "texts": TOKENS[indices]}


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_loader_reads_what_goes_on_and_yields_the_same_samples(warm, prefetch):

    def epoch(address):
        view = Indices()
        with Selector(address, on_error="raise", **SETTINGS) as selector:
            loader = loader_over(selector, view, prefetch=prefetch)
            batches = list(loader)
            return batches, view.read, loader.progress, loader.state_dict()

    with served(old(warm)) as address:
        all_read, many, progress, state = epoch(address)
    batches, few, counts, resumed = epoch(warm.address)
    assert (few, many) == (3 * GOING, 3 * BATCH)
    assert batches == all_read
    assert counts.candidates == progress.candidates == 3 * BATCH
    assert counts.not_examined == progress.not_examined == 3 * (BATCH - GOING)
    assert state == resumed


def test_a_loader_resumes_in_mid_epoch_without_reading_what_it_has_picks_for(warm):
    with Selector(warm.address, on_error="raise", **SETTINGS) as selector:
        whole = list(loader_over(selector, Indices()))
    view = Indices()
    with Selector(warm.address, on_error="raise", **SETTINGS) as selector:
        loader = loader_over(selector, view, prefetch=2)
        batches = iter(loader)
        first = next(batches)
        eventually(lambda: len(loader.state_dict()["ahead"]) == 2)
        state = json.loads(json.dumps(loader.state_dict()))
        batches.close()
    view = Indices()
    with Selector(warm.address, on_error="raise", **SETTINGS | {"seed": 99}) as selector:
        loader = loader_over(selector, view, strict_resume=True)
        loader.load_state_dict(state)
        assert [first, *loader] == whole
        assert view.read == 0, "both were picked before"
        next(iter(loader))
        assert view.read == GOING, "the next epoch"


def test_a_loaders_fallbacks_are_counted_once_each(warm):
    with served(Passing(warm, refuse(grpc.StatusCode.INTERNAL))) as address, Selector(address, **SETTINGS) as selector:
        loader = loader_over(selector, Indices())
        assert [len(batch) for batch in loader] == [PICKS] * 3
        assert loader.progress.fallbacks == selector.statistics.fallbacks == {"internal": 3}


def test_a_loader_asks_by_the_datasets_own_ids(warm):
    names = [f"shard/{index}" for index in range(COUNT)]
    fill(warm.address, names, np.arange(COUNT))
    view = Indices()
    with Selector(warm.address, on_error="raise", **SETTINGS) as selector:
        loader = loader_over(selector, view, ids=lambda indices: [names[index] for index in indices])
        next(iter(loader))
        assert loader.last.cached_references == BATCH
    assert view.read == GOING


def test_ranks_that_select_as_one_read_all(warm):
    asked = {"group": "by-ids", "world_size": 2, **SETTINGS, "seed": 1}
    views = [Indices(), Indices()]
    with futures.ThreadPoolExecutor(2) as pool:

        def rank(number):
            with Selector(warm.address, on_error="raise", rank=number, **asked) as selector:
                loader = loader_over(selector, views[number], seed=number)
                next(iter(loader))
                loader.close()
                return loader.last

        found = list(pool.map(rank, range(2)))
    assert [view.read for view in views] == [BATCH, BATCH]
    assert all(one.prefiltered.left_out > 0 for one in found)
