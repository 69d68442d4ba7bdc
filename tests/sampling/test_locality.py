"""How alike neighbours and picks are, against literal float64 sums over pairs."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selector_server.sampling import locality
from selector_server.sampling.locality import COMPARED_PICKS, NEAR_DUPLICATE, near_duplicates, neighbours


def unit(count, width, seed, alike=0.0):
    """Random rows of length one, float64; each is like the one before it by so much."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, width))
    for row in range(1, count):
        rows[row] += alike * rows[row - 1]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def oracle_neighbours(image, rows, share):
    """The mean cosines of adjacent candidates and of all pairs; None without adjacent ones."""
    beside = [
        image[at] @ image[at + 1]
        for at in range(len(rows) - 1)
        if rows[at + 1] == rows[at] + 1 and rows[at] // share == rows[at + 1] // share
    ]
    every = [image[one] @ image[other] for one, other in combinations(range(len(rows)), 2)]
    return (np.mean(beside), np.mean(every)) if beside else None


def oracle_near_duplicates(image, picks, opened):
    alike = [any(image[pick] @ image[other] > NEAR_DUPLICATE for other in opened if other != pick) for pick in picks]
    return np.mean(alike)


@pytest.mark.parametrize("share", [40, 20, 8])
@pytest.mark.parametrize("closed", [[], [0], [3, 4, 39], list(range(1, 40, 2))])
@pytest.mark.parametrize("slice_", [512, 7])
def test_neighbours_are_those_of_the_oracle(share, closed, slice_, monkeypatch):
    monkeypatch.setattr(locality, "CPU_ROWS", slice_)
    image, rows = unit(40, 6, 1, alike=0.8), np.setdiff1d(np.arange(40), closed)
    found = neighbours(torch.from_numpy(image[rows]).float(), torch.from_numpy(rows), share)
    wanted = oracle_neighbours(image[rows], rows, share)
    if wanted is None:
        assert found is None
    else:
        assert found is not None
        assert (found.adjacent, found.random) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_candidates_tell_nothing_or_one_pair(count):
    image = torch.from_numpy(unit(count, 4, 0)).float()
    found = neighbours(image, torch.arange(count), count)
    if count == 1:
        assert found is None
    else:
        assert found is not None
        assert found.adjacent == pytest.approx(found.random, abs=1e-6)


@pytest.mark.parametrize("slice_", [512, 16])
@pytest.mark.parametrize("closed", [[], [1, 50, 51]])
def test_near_duplicates_are_those_of_the_oracle(slice_, closed, monkeypatch):
    monkeypatch.setattr(locality, "CPU_ROWS", slice_)
    image = unit(60, 16, 2)
    image[1], image[20], image[51], image[52] = image[0], 0.999 * image[40], image[50], image[53]
    opened = np.setdiff1d(np.arange(60), closed)
    open_ = torch.from_numpy(np.isin(np.arange(60), opened)) if closed else None
    picks = np.array([0, 20, 30, 52, 59])
    found = near_duplicates(torch.from_numpy(image).float(), torch.from_numpy(picks), open_)
    assert found == pytest.approx(oracle_near_duplicates(image, picks, opened))
    assert found == pytest.approx(0.6 if not closed else 0.4), "the test knows its duplicates"


def test_a_large_sub_batch_is_judged_by_a_sample_over_the_whole_super_batch(monkeypatch):
    """The second half of the picks are copies of what was not picked. The order of the draw is of no matter."""
    count = 8 * COMPARED_PICKS
    image = unit(count, 32, 3)
    image[count // 4 : count // 2] = image[count // 2 : 3 * count // 4]
    seen = []
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: seen.append(len(a)) or torch.matmul(a, b))
    found = near_duplicates(torch.from_numpy(image).float(), torch.arange(count // 2).flip(0))
    draw = torch.randperm(count // 2, generator=torch.Generator().manual_seed(0))
    assert found == near_duplicates(torch.from_numpy(image).float(), draw)
    assert found == pytest.approx(0.5, abs=0.02)
    assert seen
    assert max(seen) <= COMPARED_PICKS


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 50), st.integers(0, 2**32 - 1), st.data())
def test_the_order_of_candidates_decides_what_is_adjacent_and_nothing_else(count, seed, data):
    image = torch.from_numpy(unit(count, 5, seed % 1000)).float()
    order = torch.tensor(data.draw(st.permutations(range(count))))
    picks = torch.tensor(data.draw(st.lists(st.integers(0, count - 1), min_size=1, unique=True)))
    one, other = (neighbours(rows, torch.arange(count), count) for rows in (image, image[order]))
    assert one is not None
    assert other is not None
    assert one.random == pytest.approx(other.random, abs=1e-5)
    assert -1 - 1e-6 <= other.adjacent <= 1 + 1e-6
    back = torch.argsort(order)
    assert near_duplicates(image, picks) == near_duplicates(image[order], back[picks])
    reverse = neighbours(image.flip(0), torch.arange(count), count)
    assert reverse is not None
    assert reverse.adjacent == pytest.approx(one.adjacent, abs=1e-6)


def test_a_shuffled_stream_has_no_gap_and_one_in_runs_has():
    """Runs of 32 around a centre each, as shards of a crawl are."""
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.standard_normal((64, 16)), 32, axis=0) + rng.standard_normal((2048, 16))
    image = torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).float()
    natural = neighbours(image, torch.arange(2048), 2048)
    shuffled = neighbours(image[torch.from_numpy(rng.permutation(2048))], torch.arange(2048), 2048)
    assert natural is not None
    assert shuffled is not None
    assert natural.adjacent - natural.random > 0.4
    assert abs(shuffled.adjacent - shuffled.random) < 0.03


def test_images_without_a_direction_are_like_nothing():
    image = torch.zeros(4, 3)
    found = neighbours(image, torch.arange(4), 4)
    assert found is not None
    assert (found.adjacent, found.random) == (0.0, 0.0)
    assert near_duplicates(image, torch.arange(4)) == 0.0
