"""`selector bench training --pool`: a user's pool and model, through a real sidecar and a real server."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from selector_client.publishing.model_state import Naming
from selector_tools import cli
from selector_tools.datasets.pairs import Pairs
from selector_tools.reference.training import CRITERIA, batch_loss
from selector_tools.study.own.comparing import SELECTING
from selector_tools.study.own.learner import OwnLearner
from selector_tools.study.own.pool import fewer, split
from selector_tools.study.own.retrieval import Retrieval
from selector_tools.study.rules import rule
from support.fits import with_module
from support.model import SIDE, TOKENS, TwoTower, source

from selector_server.errors import SetupError
from selector_server.sampling import Criterion, Embedded, Loss
from selector_server.sampling.scores import check_criteria

CODE = """
import torch
from support.model import TwoTower


def tiny():
    return TwoTower(3)


class OneTower(torch.nn.Module):
    def encode_image(self, images):
        return images.flatten(1)
"""
MODEL = ["--module", "own_models:tiny", "--image-size", "8", "--max-tokens", str(TOKENS), "--vocabulary", "64"]
SMALL = [*MODEL, "--steps", "24", "--batch", "32", "--learning-rate", "0.01", "--seeds", "2", "--threads", "2"]


def pairs(count: int, seed: int = 0) -> Pairs:
    """Pictures that are the mean of two patterns, each with the words of both: all captions are right."""
    patterns = np.random.default_rng(99).integers(0, 200, (64, SIDE, SIDE, 3))
    rng = np.random.default_rng(seed)
    words = rng.integers(1, 64, (count, 2))
    pixels = patterns[words].mean(axis=1) + rng.integers(0, 55, (count, SIDE, SIDE, 3))
    tokens = np.zeros((count, TOKENS), np.int64)
    tokens[:, :2] = words
    return Pairs(pixels.astype(np.uint8), tokens)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = pairs(1000)
    np.savez(tmp_path / "pool.npz", images=made.pixels, tokens=made.tokens)
    return with_module(tmp_path, monkeypatch, "own_models", CODE)


def bench(*flags: object) -> int:
    return cli.main(["bench", "training", *map(str, flags)])


@pytest.mark.usefixtures("forked_benchmarks")
@pytest.mark.timeout(600)  # it starts seven sidecars
def test_where_there_is_nothing_to_gain_the_page_says_so(place, bundles, capsys) -> None:
    flags = [*SMALL, "--pool", "pool.npz", "--reference", bundles.reference_path, "--budget-minutes", "60"]
    assert bench(*flags, "--out", "out", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    page = (place / "out" / "report.md").read_text()
    assert told["verdict"] in ("none", "worse")  # captions are all right, and the reference is untrained
    assert "**No gain** was found" in page
    assert "The reference knows next to nothing" in page
    assert (place / "out" / "report.svg").read_text().startswith("<?xml")
    assert (told["steps"], told["seeds"]) == (24, 2)
    assert list(told["arms"]) == ["buffer", "shuffled", "filtered", "independent", "mixed_prefilter", "jest"]
    assert sum(told["pairs"][name] for name in ("train", "validation", "test")) == 1000
    saved = json.loads((place / "out" / "report.json").read_text())
    assert saved["headline"] == told["headline"]
    assert len(saved["runs"]) == 12
    for run in saved["runs"]:
        selects = run["cell"]["rule"] in ("independent", "mixed_prefilter", "jest")
        # What the sidecar scored by are the weights that were published, and it answered every time.
        assert run["versions"] >= 3 if selects else run["versions"] == 0
        assert run["fallbacks"] == 0
        assert run["counts"]["trained"] == 24 * 32
        assert run["counts"]["embedded"] == 0  # all were in the cache
        assert (run["sidecar_cpu_seconds"] > 0) == selects
        assert run["flops"] > 0


def wrong(capsys: pytest.CaptureFixture[str], *flags: object) -> str:
    assert bench(*flags) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    return told.removeprefix("selector bench training: ")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--profile", "cpu"], "--profile is cpu; there is a --pool; leave it out"),
        (["--jobs", "3"], "--jobs is 3; there is a --pool; leave it out"),
        (["--seeds", "1"], "--seeds is 1; must be at least 2: one has no error"),
        (["--steps", "10"], "--steps is 10; must be 24 to 1000000"),
        (["--batch", "100"], "--batch is 100; makes super-batches of 500; they must be a multiple of 32, such as 512"),
        (["--batch", "65536"], "--batch is 65536; makes super-batches of 327680; at most 65536"),
        (["--filter-ratio", "0.5"], "--filter-ratio is 0.5; must be above 0.6 and at most 0.95"),
        (["--budget-minutes", "0"], "--budget-minutes is 0.0; must be above 0 and at most 1e6"),
        (["--learning-rate", "nan"], "--learning-rate is nan; must be above 0 and at most 10"),
        (["--reference", "r", "--curated", "c"], "--curated is c; there is a --reference; leave one of the two out"),
        (["--out", "."], "--out is .; must not exist yet"),
        (["--max-tokens", "0"], "--max-tokens is 0; must be 1 to 16777216"),
    ],
)
def test_a_wrong_flag_is_named_with_its_limit(place, capsys, flags, told) -> None:
    assert wrong(capsys, *MODEL, "--pool", "pool.npz", "--out", "out", *flags) == told
    assert not (place / "out").exists()


def test_flags_of_a_pool_are_refused_without_one_and_a_pool_without_a_model(place, capsys) -> None:
    assert wrong(capsys, "--filter-ratio", "0.9") == "--filter-ratio is 0.9; only --pool takes it"
    assert wrong(capsys, *MODEL) == "--module is own_models:tiny; only --pool takes it"
    told = "--pool is pool.npz; needs a model: one of --open-clip, --transformers and --module"
    assert wrong(capsys, "--pool", "pool.npz", "--out", "out") == told


def test_a_model_without_both_towers_and_missing_files_are_named(place, capsys) -> None:
    pool = ["--pool", "pool.npz", "--out", "out"]
    told = wrong(capsys, *pool, *MODEL, "--module", "own_models:OneTower")
    assert told.endswith("returns a OneTower; must return a torch module with encode_image and encode_text")
    assert wrong(capsys, *MODEL, "--pool", "nope.npz", "--out", "out").startswith("--pool is nope.npz; is not there")
    curated = wrong(capsys, *MODEL, *pool, "--batch", "32", "--curated", "nope.npz")
    assert curated.startswith("--curated is nope.npz; is not there")
    told = wrong(capsys, *MODEL, *pool, "--reference", "nope")
    assert told.startswith("reference is nope; must be a folder with a manifest.json")


def test_a_reference_that_takes_something_else_is_refused(place, capsys, bundles) -> None:
    flags = ["--pool", "pool.npz", "--out", "out", *MODEL, "--vocabulary", "80", "--reference", bundles.reference_path]
    assert wrong(capsys, *flags).endswith("takes 6 tokens of 64; must be 6 of 80, as the model does")


def test_a_pool_that_is_too_small_is_told_what_it_lacks(place, capsys) -> None:
    flags = [*MODEL, "--pool", "pool.npz", "--reference"]
    few = pairs(300)
    with pytest.raises(
        SetupError, match=r"too small: 10% of its 300 usable pairs are .. for the validation; at least 64"
    ):
        split(few, "few.npz", 160, 0, aside=False)
    with pytest.raises(SetupError, match="are left to train on; must be at least 1,311 for super-batches of 1,280"):
        split(pairs(1000), "pool.npz", 1280, 0, aside=True)
    assert wrong(capsys, *flags[:-1], "--batch", "256", "--out", "out").startswith("--pool is pool.npz; too small: ")


def test_a_loss_that_is_no_number_is_told_with_the_rate(place, capsys) -> None:
    import own_models

    made = pairs(1000)
    setting = [*SMALL, "--pool", "pool.npz", "--out", "out"]
    with pytest.MonkeyPatch.context() as patch:

        def broken() -> TwoTower:
            module = TwoTower(3)
            module.words.weight.data[made.tokens[0, 0]] = torch.nan
            return module

        patch.setattr(own_models, "tiny", broken)
        assert wrong(capsys, *setting) == "learning rate is 0.01; the loss at step 1 is nan; take a lower one"
    assert not (place / "out").exists()


def test_a_budget_that_allows_nothing_is_told_what_is_needed(place, capsys) -> None:
    told = wrong(capsys, *SMALL, "--pool", "pool.npz", "--out", "out", "--budget-minutes", "0.001")
    assert told.startswith("--budget-minutes is 0.001; 2 seeds of 24 steps need about ")
    assert not (place / "out").exists()


def test_no_picture_both_trains_and_judges() -> None:
    made = pairs(2000)
    rows = np.random.default_rng(1).integers(0, 1000, 2000)  # most are there twice or more often
    parts = split(Pairs(made.pixels[rows], made.tokens[::-1]), "pool", 160, 0, aside=True)
    assert parts.aside is not None
    seen = [{image.tobytes() for image in part.pixels} for part in (parts.train, parts.validation, parts.test)]
    seen.append({image.tobytes() for image in parts.aside.pixels})
    assert sum(map(len, seen)) == len(set.union(*seen))
    assert sum(map(len, (parts.train.pixels, parts.validation.pixels, parts.test.pixels, parts.aside.pixels))) == 2000
    again = split(Pairs(made.pixels[rows], made.tokens[::-1]), "pool", 160, 0, aside=True)
    np.testing.assert_array_equal(parts.test.pixels, again.test.pixels)


def test_every_rule_goes_with_the_models_loss() -> None:
    def criterion(name: str | None) -> Criterion | None:
        return None if name is None else Criterion[name.upper().replace("-", "_")]

    assert SELECTING.keys() == CRITERIA.keys()
    for loss, rules in SELECTING.items():
        for settings in (rule(name).settings for name in rules):
            own = criterion(settings.get("criterion", "learnability"))
            assert own is not None
            check_criteria(own, criterion(settings.get("pair_criterion")), Loss(loss))


def test_fewer_pairs_are_runs_of_neighbours_in_their_order() -> None:
    count = 1000
    numbered = Pairs(np.zeros((count, 1, 1, 1), np.uint8), np.arange(count)[:, None])
    rows = fewer(numbered, 100, seed=0).tokens[:, 0].reshape(-1, 32)
    assert rows.shape == (4, 32)
    assert (np.diff(rows, axis=1) == 1).all()
    assert (np.diff(rows[:, 0]) > 0).all()
    assert fewer(numbered, 1000, seed=0) is numbered


def test_both_directions_are_judged() -> None:
    made = Pairs(np.zeros((3, 1, 1, 1), np.uint8), np.arange(3)[:, None])
    judge = Retrieval(made, "test")
    assert judge.chance == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    image = torch.eye(3)
    text = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.8, 0.0], [0.0, 0.0, 1.0]])
    found = judge.by(Embedded(image, text, 1.0, 0.0))
    # Each image finds its caption, but caption 1 is nearer to image 0.
    assert (found.image_to_text, found.text_to_image) == (1.0, pytest.approx(2 / 3))
    assert found.rank == pytest.approx((3 + 2.5) / 6)
    with pytest.raises(SetupError, match="3 pairs of the test; have one and the same caption"):
        Retrieval(Pairs(made.pixels, np.zeros((3, 1), np.int64)), "test")


def test_what_is_published_has_the_bundles_names_and_the_loss_is_the_models() -> None:
    model = source("tiny", TwoTower(3))
    learner = OwnLearner(model)
    published = Naming(None, "", "").state(learner).tensors
    assert published.keys() == dict(model.state).keys()
    made = pairs(8)
    pixels, tokens = torch.from_numpy(made.pixels), torch.from_numpy(made.tokens)
    module = model.module
    image, text = module.encode_image(model.normalised(pixels)), module.encode_text(tokens)
    assert learner.loss(pixels, tokens).item() == pytest.approx(batch_loss(model, image, text).item())
    learner.loss(pixels, tokens).backward()
    assert all(parameter.grad is None for parameter in module.parameters())  # the user's own is left alone
