"""Slices: exact counts of what is frequent, bounded, and what of them is on /metrics."""

from collections import Counter

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from support.model import WORDS
from support.processes import eventually
from support.rules import COUNT, PIXELS, TOKENS
from support.wire import Request

from selector_server.inspection.slices import CAPTIONS, Slices, tag_counts, word_counts
from selector_server.inspection.stores import tag_text
from selector_server.telemetry.slice_metrics import NAMES, SliceMetrics


def test_tags_of_either_kind_are_counted():
    picks = np.array([0, 3])
    assert tag_counts(np.array([5, 5, -1, 7]), picks, tag_text) == ({"5": 2, "-1": 1, "7": 1}, {"5": 1, "7": 1})
    tags = [b"a", b"", b"a", "grün".encode()]
    assert tag_counts(tags, picks, tag_text) == ({"a": 2, "grün": 1}, {"a": 1, "grün": 1})


def test_a_caption_counts_once_for_each_of_its_words():
    captions = [b"A red red house, 12 Cats", "Größe ist 大小".encode(), b"\xff\xfe", b"red"]
    candidates, picked = word_counts(captions, np.array([0]))
    assert candidates == {"red": 2, "house": 1, "cats": 1, "größe": 1, "ist": 1, "大小": 1}
    assert picked == {"red": 1, "house": 1, "cats": 1}


def test_of_very_many_captions_some_are_looked_at():
    captions = [b"even" if row % 2 == 0 else b"odd" for row in range(3 * CAPTIONS)]
    candidates, picked = word_counts(captions, np.arange(len(captions)))
    assert candidates == picked == {"even": CAPTIONS // 2, "odd": CAPTIONS // 2}


def test_a_million_names_take_no_more_room_and_sums_stay_exact():
    slices = Slices(most=50)
    for start in range(0, 10_000, 10):
        names = [f"n{number}" for number in range(start, start + 10)]
        slices.add(Counter([*names, "often"]), Counter([names[0], "often"]))
    assert len(slices.candidates) <= 100 + 11
    shown, others = slices.most_frequent(20)
    assert len(shown) == 20
    assert shown[0] == ("often", 1000, 1000)
    assert sum(count for _, count, _ in shown) + others[0] == 11_000
    assert sum(picked for *_, picked in shown) + others[1] == 2000


def test_series_are_bounded_and_their_names_harm_nothing():
    registry = CollectorRegistry()
    metrics = SliceMetrics(registry)
    metrics.add("tag", Counter({"often": 9, 'a "quoted\n\u202e tag': 3}), Counter({"often": 4}))
    metrics.add("tag", Counter(f"n{number}" for number in range(1000)), Counter(["n5"]))
    text = generate_latest(registry).decode()
    assert 'selector_slice_candidates_total{kind="tag",slice="often"} 9.0' in text
    assert 'selector_slice_picked_total{kind="tag",slice="often"} 4.0' in text
    lines = [line for line in text.splitlines() if line.startswith('selector_slice_candidates_total{kind="tag"')]
    assert len(lines) == NAMES + 1
    assert sum(float(line.rpartition(" ")[2]) for line in lines) == 9 + 3 + 1000
    assert "\u202e" not in text


@pytest.mark.parametrize("metrics", ["true", "false"])
def test_a_sidecar_counts_slices_only_where_it_was_told_to(sidecar, bundles, metrics):
    flags = {"inspect": "true", "inspect_content": "true", "inspect_metrics": metrics}
    server = sidecar(bundles.flags | flags)
    request = Request()
    request.selection.samples.pixels.CopyFrom(request.add(PIXELS))
    captions = [" ".join(WORDS[token] for token in row).encode() for row in TOKENS]
    request.selection.samples.strings.CopyFrom(request.pack([b"Zebra " + caption for caption in captions]))
    request.selection.tag_strings.CopyFrom(request.pack([b"crawl"] * COUNT))
    picks = len(server.select(request).indices)

    def sums(kind, name):
        found = server.metrics()
        return [found(f"selector_slice_{of}_total", kind=kind, slice=name) for of in ("candidates", "picked")]

    if metrics == "true":
        assert eventually(lambda: sums("word", "zebra") if None not in sums("word", "zebra") else None) == [
            COUNT,
            picks,
        ]
        assert sums("tag", "crawl") == [COUNT, picks]
    else:
        server.select(request)
        assert sums("tag", "crawl") == [None, None]
