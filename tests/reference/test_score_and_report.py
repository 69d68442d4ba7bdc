"""`selector reference score` and `report`."""

import json

import numpy as np
import pytest
import torch
from selector_tools import cli
from selector_tools.export.bundle_writer import export_reference
from selector_tools.reference.rank_statistics import auc, average_ranks, rank_correlation
from selector_tools.reference.separation import Separation, losses, separate
from support.model import TEXT, TOKENS, WIDTH, WORDS, TwoTower, embed, samples, source, write_tokenizer
from support.pools import arrays, shard

from selector_server.sampling import Embedded


def selector(capsys, *command):
    assert cli.main(["reference", *(str(part) for part in command)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_its_definition(seed):
    rng = np.random.default_rng(seed)
    low, high = (rng.integers(0, 12, size).astype(float) + shift for size, shift in ((40, 0), (25, 2)))
    wins = sum((a < b) + 0.5 * (a == b) for a in low for b in high)
    assert auc(low, high) == pytest.approx(wins / 1000)
    assert auc(high, low) == pytest.approx(1 - wins / 1000)
    assert np.isnan(auc(low, high[:0]))


def test_ranks_share_ties_and_correlate():
    np.testing.assert_array_equal(average_ranks(np.array([3.0, 1.0, 3.0, 9.0])), [2.5, 1, 2.5, 4])
    values = np.random.default_rng(0).normal(size=50)
    assert rank_correlation(values, np.exp(values)) == pytest.approx(1)
    assert rank_correlation(values, -values) == pytest.approx(-1)
    assert np.isnan(rank_correlation(values, np.zeros(50)))


def test_scores_are_torchs_own_with_a_cache_and_without(capsys, tmp_path, bundles):
    expected = embed(bundles.reference, *samples(50))
    cosine = (expected.image * expected.text).sum(dim=1)
    loss = torch.nn.functional.softplus(-(expected.scale * cosine + expected.bias))
    ids = np.arange(100, 150)
    common = ["score", "--reference", bundles.reference_path, "--batch", 16]
    places = ["--pool", arrays(tmp_path / "p.npz", 50, ids=ids), "--out"]
    cached = ["--cache", tmp_path / "cache"]
    for name, more, close in (("a", [], 1e-5), ("b", cached, 2e-2), ("c", cached, 2e-2)):
        out = selector(capsys, *common, *places, tmp_path / f"{name}.npz", *more)
        assert out.startswith("50 pairs in ")
        found = np.load(tmp_path / f"{name}.npz")
        np.testing.assert_array_equal(found["ids"], ids)
        np.testing.assert_allclose(found["cosine"], cosine, atol=close)
        np.testing.assert_allclose(found["loss"], loss, atol=close * 20)
    b, c = (np.load(tmp_path / f"{name}.npz") for name in "bc")
    np.testing.assert_array_equal(b["loss"], c["loss"])
    status = cli.main(["cache", "stat", str(tmp_path / "cache"), "--json"])
    assert status == 0
    assert json.loads(capsys.readouterr().out)["references"][0]["entries"] == 50


def test_scores_of_shards_are_named_by_strings(capsys, tmp_path, bundles):
    shard(tmp_path / "s.tar", 5)
    selector(
        capsys,
        "score",
        *("--reference", bundles.reference_path, "--pool", tmp_path, "--out", tmp_path / "s.npz"),
    )
    assert np.load(tmp_path / "s.npz")["ids"].tolist() == [f"s/000{row}" for row in range(5)]


def embedded(pairs, seed=0):
    rows = torch.nn.functional.normalize(torch.randn(pairs, 8, generator=torch.manual_seed(seed)), dim=1)
    return Embedded(rows, rows.clone(), 10.0, -5.0)


def test_shuffled_captions_are_others_and_never_the_same_words():
    model = embedded(200)
    texts = [bytes([row % 3]) for row in range(200)]
    found = separate(model, texts, 0)
    np.testing.assert_allclose(found.true, losses(model))
    assert 0.5 < found.differs.mean() < 0.8
    assert separate(model, [b"x"] * 200, 0).differs.sum() == 0
    assert separate(model, [bytes([row]) for row in range(200)], 1).differs.all()
    assert found.auc > 0.99
    np.testing.assert_array_equal(found.shuffled, separate(model, texts, 0).shuffled)
    assert not np.array_equal(found.shuffled, separate(model, texts, 1).shuffled)


def test_words_are_counted_by_captions_and_judged_among_their_own():
    true, shuffled = np.array([0.0, 0.0, 5.0, 5.0]), np.array([1.0, 1.0, 1.0, 1.0])
    separation = Separation(true, shuffled, np.array([True, True, True, False]))
    found = separation.words(["Red red dog", "red dog", "blue dog", "blue cat"], 2)
    assert [(word.word, word.captions, word.auc) for word in found] == [
        ("red", 2, 1.0),
        ("dog", 3, pytest.approx(2 / 3)),
        ("blue", 2, 0.0),
    ]


class Words(TwoTower):
    """An image is of word i where its i-th pixel is lit; texts are bags of words: every concept is known exactly."""

    def __init__(self):
        super().__init__(0)
        table = torch.randn(len(WORDS), WIDTH, generator=torch.manual_seed(1))
        table[0] = 0  # padding says nothing
        self.table = torch.nn.Parameter(table)

    def encode_image(self, images):
        return (images[:, 0].flatten(1) + 1) / 2 @ self.table[: 8 * 8]

    def encode_text(self, tokens):
        return self.table[tokens].mean(dim=1)


@pytest.fixture(scope="module")
def knowing(tmp_path_factory):
    """The bundle of a model that knows every word."""
    folder = tmp_path_factory.mktemp("knowing")
    export_reference(source("words", Words().eval(), write_tokenizer(folder / "t.json")), folder / "reference")
    return folder / "reference"


def concepts(count=600, wrong=7):
    """Pictures of one word in w1 to w20, captioned with it; those captioned w7 show something else."""
    rng = np.random.default_rng(0)
    word = rng.integers(1, 21, count)
    shown = np.where(word == wrong, rng.integers(21, 40, count), word)
    images = np.zeros((count, 8, 8, 3), np.uint8)
    images[np.arange(count), shown // 8, shown % 8] = 255
    return images, word


def test_the_report_finds_the_concept_whose_captions_are_all_wrong(capsys, tmp_path, knowing):
    images, word = concepts()
    texts = np.array([f"w{w} w{w}" for w in word])
    np.savez(tmp_path / "p.npz", images=images, texts=texts)
    flags = ["--reference", knowing, "--pool", tmp_path / "p.npz", "--min-count", 15]
    out = selector(capsys, "report", *flags, "--out", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["pairs"] == 600
    assert report["auc"] > 0.9
    assert f"AUC {report['auc']:.3f} on 600 pairs" in out
    assert report["words"][-1]["word"] == "w7"
    assert report["words"][-1]["auc"] < 0.8  # in 16 dimensions, 19 wrong concepts against 20 are not all even
    assert report["words"][-1]["captions"] == (word == 7).sum()
    assert all(each["auc"] > 0.95 for each in report["words"][:-1])
    assert "least known words: w7" in out
    page = (tmp_path / "out" / "report.md").read_text()
    assert page.index("| w7 |") > page.index("| Least known |")
    plot = (tmp_path / "out" / "report.svg").read_text()
    assert "another's caption" in plot
    assert "http" not in plot.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")


def test_words_of_tokens_come_from_the_tokenizer_or_not_at_all(capsys, tmp_path, knowing):
    images, word = concepts()
    tokens = np.zeros((600, TOKENS), np.int64)
    tokens[:, 0] = word
    np.savez(tmp_path / "p.npz", images=images, tokens=tokens)
    flags = ["--pool", tmp_path / "p.npz", "--samples", 400]
    selector(capsys, "report", "--reference", knowing, *flags, "--out", tmp_path / "a")
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert report["pairs"] == 400
    assert {each["word"] for each in report["words"]} <= set(WORDS)
    export_reference(source("mute", Words().eval()), tmp_path / "mute")
    out = selector(capsys, "report", "--reference", tmp_path / "mute", *flags, "--out", tmp_path / "b")
    assert "no words: the pool has tokens only" in out
    assert json.loads((tmp_path / "b" / "report.json").read_text())["words"] is None
    assert "Left out" in (tmp_path / "b" / "report.md").read_text()


@pytest.mark.parametrize(
    ("command", "mistake"),
    [
        (["score", "--out", "scores.txt"], "--out"),
        (["score", "--out", "there.npz"], "--out"),
        (["score", "--out", "s.npz", "--cache-bytes", "-1"], "--cache-bytes"),
        (["score", "--out", "s.npz", "--batch", "0"], "--batch"),
        (["score"], "--out"),
        (["score", "--out", "s.npz", "--pool", "wide.npz"], "samples.pixels.shape"),
        (["score", "--out", "s.npz", "--pool", "odd.npz"], "ids must be 0 to 63"),
        (["report", "--out", "there.npz"], "--out"),
        (["report", "--out", "o", "--samples", "1"], "--samples"),
        (["report", "--out", "o", "--min-count", "1"], "--min-count"),
        (["report", "--out", "o", "--shuffle-seed", "-1"], "--shuffle-seed"),
        (["report", "--out", "o", "--pool", "nowhere"], "--pool"),
        (["report", "--out", "o", "--pool", "same.npz"], "one and the same caption"),
        (["report", "--out", "o", "--device", "tpu"], "--device"),
    ],
)
def test_mistakes_print_one_line_and_exit_2(capsys, tmp_path, monkeypatch, bundles, command, mistake):
    monkeypatch.chdir(tmp_path)
    arrays(tmp_path / "there.npz", 3)
    arrays(tmp_path / "wide.npz", 3, images=np.zeros((3, 8, 9, 3), np.uint8))
    arrays(tmp_path / "odd.npz", 3, tokens=np.full((3, 2), TEXT.vocabulary))
    arrays(tmp_path / "same.npz", 3, tokens=np.ones((3, 2), int))
    common = ["--reference", str(bundles.reference_path), "--pool", "there.npz"]
    try:
        status = cli.main(["reference", command[0], *common, *command[1:]])
    except SystemExit as exit_:
        status = exit_.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert mistake in err
    assert err.startswith(f"selector reference {command[0]}: ")
