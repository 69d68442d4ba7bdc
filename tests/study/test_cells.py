"""Names of rules and cells, streams, and what the profiles run."""

from collections import Counter
from dataclasses import asdict, replace
from itertools import islice

import numpy as np
import pytest
from selector_client.selecting.settings import Settings
from selector_tools.datasets.dataset import Pictures
from selector_tools.study import profiles, rates, streams
from selector_tools.study.cells import Cell
from selector_tools.study.names import PROFILE_NAMES
from selector_tools.study.rules import BASELINES, CHANGES, RULES, rule


def test_a_name_says_what_a_rule_is_and_what_changes_it() -> None:
    assert rule("mixed_prefilter_dedup").settings == {
        "policy": "joint",
        "pair_criterion": "easy-reference",
        "prefilter": 2.5,
        "max_similarity": 0.8,
    }
    assert rule("joint_easy_reference_prefilter").settings["criterion"] == "easy-reference"
    assert rule("jest_warm").warm
    assert rule("jest_warm").settings == rule("jest").settings
    assert not rule("shuffled").selects
    assert rule("filtered_warm").warm
    assert rule("filtered_warm").source == "filtered"
    for name in ("best", "mixed_best", "", "uniform_prefilter"):
        with pytest.raises(KeyError):
            rule(name)


@pytest.mark.parametrize("name", [*RULES, *(f"jest_{change}" for change in CHANGES)])
def test_a_sidecar_can_be_asked_for_every_rule(name: str) -> None:
    Settings(**rule(name).settings)


def test_cells_differ_by_name_and_key_where_they_differ() -> None:
    one = Cell("icons", "jest")
    assert one.name == "icons, natural, noise 0, jest"
    assert replace(one, filter_ratio=0.9, publish_every=1).name.endswith("jest, filter ratio 0.9, publish every 1")
    assert one.super_batch == 640
    keys = {replace(one, learning_rate=rate).key(seed) for rate in (1e-3, 2e-3) for seed in (0, 1)}
    assert len(keys) == 4
    assert Cell.of(asdict(one)) == one


def pictures(count: int) -> Pictures:
    names = tuple(str(number) for number in range(count))
    return Pictures(np.zeros((count, 32, 32), np.uint8), names, names, ("a",) * count)


def test_half_of_a_hot_stream_is_copies_of_few_items() -> None:
    found = streams.stream("hot", pictures(6000), 0)
    times = Counter(found.rows.tolist())
    often = [count for count in times.values() if count > 1]
    assert len(found) == 6000
    assert len(often) <= streams.HOT
    assert abs(sum(often) / 6000 - 0.5) < 0.17  # hot items are among those that are kept, too
    assert streams.stream("hot", pictures(6000), 1).rows.tolist() != found.rows.tolist()


def test_a_shuffled_stream_is_the_pool_as_it_is() -> None:
    found = streams.stream("shuffled", pictures(200), 0)
    assert found.rows.tolist() == found.order.tolist() == list(range(200))
    assert len(set(next(streams.runs(found.order, 64, 0)).tolist())) == 64
    assert len(list(islice(streams.runs(found.order, 64, 0), 9))) == 9


@pytest.mark.parametrize(("kind", "shards"), [("sequential", 2), ("buffered", 6), ("interleaved", 16)])
def test_readers_go_through_shards_to_their_end(kind: streams.Kind, shards: int) -> None:
    found = streams.stream(kind, pictures(16_000), 0)
    epoch = list(islice(found.super_batches(640, 0), 25))
    assert sorted(np.concatenate(epoch).tolist()) == list(range(16_000))
    places = np.empty(16_000, np.int64)
    places[found.order] = np.arange(16_000) // 1000
    assert max(len(set(places[entries].tolist())) for entries in epoch[3:-3]) <= shards
    again = found.super_batches(640, 0)
    assert all(np.array_equal(one, next(again)) for one in epoch)
    assert not np.array_equal(next(again), epoch[0])  # another epoch has another order


def test_profiles_keep_to_their_size_and_run_by_seeds_that_chose_nothing() -> None:
    assert set(PROFILE_NAMES) == set(profiles.PROFILES)
    for name, jobs in ((name, profile(3)) for name, profile in profiles.PROFILES.items()):
        assert len(set(jobs)) == len(jobs), name
        seeds = {seed for _, seed in jobs}
        assert (min(seeds) >= profiles.TUNING_SEED) == (name in ("tuning", "gpu_tuning"))
    assert len({cell for cell, _ in profiles.cpu(3) if cell.how.selects}) <= 40
    assert {cell.rule for cell, _ in profiles.headline(1)} >= {"uniform", *profiles.HEADLINE}
    assert {cell.rule for cell, _ in profiles.cpu(1)} >= set(BASELINES)


def test_what_selects_in_the_profile_gpu_has_the_rate_of_its_filtered_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = {cell for cell, _ in profiles.gpu_tuning()}
    for cell in {replace(cell, learning_rate=profiles.RATES[0]) for cell, _ in profiles.gpu(1) if not cell.how.selects}:
        assert cell in tuned
    like = ("filtered", "iconify", 0.0, 512, 600, False)
    monkeypatch.setitem(rates.RATES_CHOSEN_GPU, like, 0.123)
    found = {cell.rule: cell.learning_rate for cell, _ in profiles.gpu(1) if (cell.batch, cell.steps) == (512, 600)}
    assert found["jest"] == found["filtered"] == 0.123 != found["shuffled"]
