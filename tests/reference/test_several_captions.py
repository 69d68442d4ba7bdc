"""Pools whose images have several captions: pairs are called as a trainer's client calls them."""

import json

import numpy as np
import pytest
from selector_client import Selector
from selector_tools import cli
from selector_tools.pools.captions import Captions
from selector_tools.pools.opening import open_pool
from support.model import samples
from support.pools import arrays, png, text, write_tar

COUNT = 12
PIXELS, TOKENS = samples(COUNT)
_, OTHERS = samples(COUNT, seed=1)
# A list of two, a list with a gap, a list of one, and a text alone, in turns.
CAPTIONS = [
    [
        [text(TOKENS[row]), text(OTHERS[row])],
        [text(TOKENS[row]), None, text(OTHERS[row])],
        [text(TOKENS[row])],
        text(TOKENS[row]),
    ][row % 4]
    for row in range(COUNT)
]
ENDS = (["#0", "#1"], ["#0", "#2"], ["#0"], [""])
PAIRS = [f"{row:04}{end}" for row in range(COUNT) for end in ENDS[row % 4]]


def with_json(file):
    members = []
    for row in range(COUNT):
        told = json.dumps({"captions": CAPTIONS[row], "width": 8}).encode()
        members += [(f"{row:04}.png", png(PIXELS[row])), (f"{row:04}.json", told)]
    return write_tar(file, members)


def read(place, captions, size=5):
    return list(open_pool(str(place), "key", Captions.at(captions)).batches(size))


def fill(capsys, bundles, cache, pool, *more):
    command = [
        "cache",
        "fill",
        "--cache",
        cache,
        "--reference",
        bundles.reference_path,
        "--pool",
        pool,
        "--json",
        *more,
    ]
    assert cli.main([str(part) for part in command]) == 0
    return json.loads(capsys.readouterr().out)


def test_each_caption_of_a_list_is_a_pair(tmp_path):
    batches = read(with_json(tmp_path / "s.tar"), "json:captions")
    assert [name for batch in batches for name in batch.ids] == PAIRS
    assert [len(batch) for batch in batches] == [5, 5, 5, 3]
    first = batches[0]
    assert [words.decode() for words in first.texts] == [*CAPTIONS[0], *filter(None, CAPTIONS[1]), *CAPTIONS[2]]
    assert first.images[0] == first.images[1] == png(PIXELS[0])
    assert first.other_ids[:2] == ["s/0000#0", "s/0000#1"]


def test_each_line_is_a_pair_numbered_as_the_trainer_splits_them(tmp_path):
    lines = b"one\r\n\ntwo\nthree\n"
    members = [("1.png", png(PIXELS[0])), ("1.txt", lines), ("2.png", png(PIXELS[1])), ("2.txt", b"\n \n")]
    [batch] = read(write_tar(tmp_path / "s.tar", members), "txt-lines")
    assert (batch.ids, batch.texts) == (["1#0", "1#2", "1#3"], [b"one", b"two", b"three"])
    [(name, error)] = batch.bad
    assert (name, error.exclusion.value) == ("2", "missing")
    [whole] = read(tmp_path / "s.tar", "txt")
    assert (whole.ids, whole.texts[0]) == (["1", "2"], lines)


@pytest.mark.parametrize(
    ("content", "reason", "message"),
    [
        ({"captions": []}, "missing", "no caption in the entry captions of its .json"),
        ({"captions": [None]}, "missing", "no caption"),
        ({"caption": "w1"}, "missing", "no caption"),
        (["w1"], "missing", "no caption"),
        (
            {"captions": {"en": "w1"}},
            "format",
            "a dict in the entry captions of its .json; must be a text or a list of texts",
        ),
        ({"captions": ["w1", ["w2"]]}, "format", "a list in the entry captions of its .json"),
        (b"{", "unreadable", "must be JSON"),
        ({"captions": ["\udcff"]}, "text", "must be Unicode"),
        (None, "missing", "without text; has only .png; a pair is an image and a .json of one key"),
    ],
)
def test_samples_without_usable_captions_are_left_out(tmp_path, content, reason, message):
    members = [("1.png", png(PIXELS[0]))]
    if content is not None:
        members.append(("1.json", content if isinstance(content, bytes) else json.dumps(content).encode()))
    [batch] = read(write_tar(tmp_path / "s.tar", members), "json:captions")
    [(_, error)] = batch.bad
    assert (len(batch), error.exclusion.value) == (0, reason)
    assert message in f"{error.value}; {error.limit}"


def test_rows_of_several_texts(tmp_path):
    texts = np.array([["a", "b"], ["c", ""], ["", ""], ["", "d"], ["e", "f"]])
    ids = np.array([7, 8, 9, 10, 7])
    pool = arrays(tmp_path / "p.npz", 5, tokens=None, texts=texts, ids=ids)
    batches = read(pool, "txt", size=3)
    assert [batch.ids for batch in batches] == [["7#0", "7#1", "8#0"], ["10#1"]]
    assert [words for batch in batches for words in batch.texts] == [b"a", b"b", b"c", b"d"]
    pixels, _ = samples(5)
    assert (batches[0].images == pixels[[0, 0, 1]]).all()
    assert (batches[1].images == pixels[[3]]).all()
    bad = [(str(name), error.exclusion.value) for batch in batches for name, error in batch.bad]
    assert bad == [("9", "missing"), ("7#0", "repeated"), ("7#1", "repeated")]
    assert [batch.captions for batch in batches] == [["a", "b", "c"], ["d"]]


@pytest.mark.parametrize("ids", [[f"{row:04}" for row in range(COUNT)], [*range(COUNT)]], ids=["texts", "numbers"])
def test_a_sidecar_finds_whatever_caption_its_trainer_draws(capsys, tmp_path, bundles, sidecar, ids):
    cache, captions = tmp_path / "cache", CAPTIONS
    if isinstance(ids[0], str):
        done = fill(
            capsys, bundles, cache, with_json(tmp_path / "s.tar"), "--ids", "key", "--captions", "json:captions"
        )
    else:
        captions = [[text(TOKENS[row]), text(OTHERS[row])] for row in range(COUNT)]
        done = fill(capsys, bundles, cache, arrays(tmp_path / "p.npz", COUNT, tokens=None, texts=np.array(captions)))
    assert done["encoded"] == (len(PAIRS) if isinstance(ids[0], str) else 2 * COUNT)
    server, drawn = sidecar(bundles.flags | {"cache": cache}), set()
    for seed in range(5):
        with Selector(server.address, sub_batch_size=COUNT // 2, seed=seed, on_error="raise") as selector:
            found = selector.select([png(one) for one in PIXELS], captions, ids=ids)
        assert (found.cached_references, found.excluded) == (COUNT, {})
        drawn |= set(found.captions.tolist())
    assert len(drawn) > 1


def test_scores_are_of_each_pair_by_its_name(capsys, tmp_path, bundles):
    command = ["reference", "score", "--reference", bundles.reference_path, "--pool", with_json(tmp_path / "s.tar")]
    command += ["--out", tmp_path / "scores.npz", "--ids", "key", "--captions", "json:captions"]
    assert cli.main([str(part) for part in command]) == 0
    assert np.load(tmp_path / "scores.npz")["ids"].tolist() == PAIRS


@pytest.mark.parametrize("place", ["json", "json:", "lines", ""])
def test_other_places_are_refused(capsys, tmp_path, place):
    with pytest.raises(SystemExit):
        cli.main(["cache", "fill", "--cache", "c", "--reference", "r", "--pool", "p", "--captions", place])
    assert "is no place of captions; must be txt, txt-lines or json:ENTRY" in capsys.readouterr().err
