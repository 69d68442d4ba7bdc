"""`selector reference fit`."""

import dataclasses
import itertools
import math

import pytest
import torch
from selector_tools import cli
from selector_tools.reference.augmentation import Augmentation
from selector_tools.reference.training import CRITERIA, Recipe, _schedule, fit, whole_pairs
from support.fits import task, with_module
from support.model import TOKENS, WORDS, TwoTower, embed, source, write_tokenizer
from support.pools import arrays, png, write_tar

from selector_server.encoding import bundle
from selector_server.errors import SetupError

CODE = """
from support.model import TwoTower


def tiny():
    return TwoTower(3)


def frozen():
    return TwoTower(3).requires_grad_(False)
"""
COMMON = ["--module", "fit_models:tiny", "--image-size", "8", "--max-tokens", str(TOKENS), "--vocabulary", "64"]
COMMON += ["--threads", "1", "--batch", "32", "--learning-rate", "0.01"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    return with_module(tmp_path, monkeypatch, "fit_models", CODE)


def trained(model, images, tokens, recipe, **more):
    return fit(model, whole_pairs(model, images, tokens), recipe, **more)


def auc_of(capsys, reference, pool, out):
    command = ["reference", "report", "--reference", reference, "--pool", pool, "--out", out, "--threads", "1"]
    assert cli.main([str(part) for part in command]) == 0
    return float(capsys.readouterr().out.split()[1])


def test_a_learnable_task_is_learnt_and_seen_on_fresh_samples(capsys, place):
    (images, tokens), (new, words) = task(400, 0), task(300, 1)
    arrays(place / "curated.npz", 400, images=images, tokens=tokens)
    arrays(place / "fresh.npz", 300, images=new, tokens=words)
    aucs = []
    for steps in (1, 150):
        flags = [*COMMON, "--pool", "curated.npz", "--out", f"reference-{steps}", "--steps", str(steps)]
        assert cli.main(["reference", "fit", *flags]) == 0
        assert f"trained on 400 pairs, {steps} steps" in capsys.readouterr().out
        aucs.append(auc_of(capsys, f"reference-{steps}", "fresh.npz", f"report-{steps}"))
    assert aucs[0] < 0.7
    assert aucs[1] > 0.9


def test_shards_with_a_tokenizer_train_the_same_and_bad_images_are_named(capsys, place):
    images, tokens = task(64, 0)
    members = [("bad.png", b"not an image"), ("bad.txt", b"w1")]
    for row in range(64):
        members += [(f"{row}.png", png(images[row])), (f"{row}.txt", WORDS[tokens[row, 0]].encode())]
    write_tar(place / "s.tar", members)
    arrays(place / "p.npz", 64, images=images, tokens=tokens)
    write_tokenizer(place / "tokenizer.json")
    for pool, out in (("s.tar", "a"), ("p.npz", "b")):
        flags = [*COMMON, "--pool", pool, "--out", out, "--steps", "5", "--tokenizer", "tokenizer.json", "--seed", "4"]
        assert cli.main(["reference", "fit", *flags]) == 0
        assert ("s/bad: 12 bytes; must be a JPEG" in capsys.readouterr().err) == (pool == "s.tar")
    fingerprints = [bundle.load(place / name, "reference").fingerprint for name in "ab"]
    assert fingerprints[0] == fingerprints[1]


def test_the_seed_decides_and_the_bundle_has_the_trained_scale(place):
    images, tokens = task(64, 0)
    recipe, modules = Recipe(20, 16, 1e-2), []
    for seed in (0, 0, 1):
        module = TwoTower(3)
        trained(source("tiny", module), images, tokens, dataclasses.replace(recipe, seed=seed))
        modules.append(module)
    assert not modules[0].training
    a, b, c = (embed(module, images, tokens).image for module in modules)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert modules[0].logit_bias.item() != -10.0


def test_augmentation_is_drawn_by_the_seed_and_changes_no_other_draw():
    images, tokens = task(64, 0)
    seen = {}
    for name, shift, seed in (("off", 0, 0), ("shift", 2, 0), ("again", 2, 0), ("other", 2, 1)):
        model = source("tiny", TwoTower(3))
        pairs, batches = whole_pairs(model, images, tokens), []

        def embed_and_note(images, texts, pairs=pairs, batches=batches):
            batches.append((images.clone(), texts))
            return pairs.embed(images, texts)

        recipe = Recipe(3, 16, 1e-2, seed=seed, augmentation=Augmentation(shift))
        fit(model, dataclasses.replace(pairs, embed=embed_and_note), recipe)
        seen[name] = batches
    assert all(torch.equal(a[1], b[1]) for a, b in zip(seen["off"], seen["shift"], strict=True))
    assert not any(torch.equal(a[0], b[0]) for a, b in zip(seen["off"], seen["shift"], strict=True))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(seen["shift"], seen["again"], strict=True))
    assert not torch.equal(seen["shift"][0][0], seen["other"][0][0])


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_losses_are_their_definitions(loss):
    logits = torch.randn(6, 6, generator=torch.manual_seed(0))
    rows = [[float(value) for value in row] for row in logits]
    if loss == "sigmoid":
        terms = [math.log1p(math.exp((-1 if i == j else 1) * rows[i][j])) for i in range(6) for j in range(6)]
        expected = sum(terms) / 6
    else:
        down = [math.log(sum(math.exp(rows[i][j]) for i in range(6))) - rows[j][j] for j in range(6)]
        across = [math.log(sum(map(math.exp, row))) - row[i] for i, row in enumerate(rows)]
        expected = (sum(down) + sum(across)) / 12
    assert float(CRITERIA[loss](logits, torch.arange(6))) == pytest.approx(expected, rel=1e-5)


def test_softmax_trains_without_a_bias():
    images, tokens = task(64, 0)
    module, seen = TwoTower(3), []
    logit = source("x", module).logit.model_copy(update={"bias_parameter": None})
    model = source("x", module, loss="softmax", logit=logit)
    assert trained(model, images, tokens, Recipe(40, 32, 1e-2), on_step=seen.append) == 40
    assert len(seen) == 40
    assert seen[-1] < seen[0] / 2


def test_a_loss_that_references_are_not_trained_with_is_refused_by_name():
    images, tokens = task(64, 0)
    with pytest.raises(SetupError, match="--loss is other; a reference is trained with one of sigmoid, softmax"):
        trained(source("x", TwoTower(3), loss="other"), images, tokens, Recipe(1, 32, 1e-2))


def test_the_rate_rises_then_falls_to_nearly_nothing():
    recipe = Recipe(100, 2, 1.0)
    rates = [_schedule(step, recipe) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[5:]))
    assert 0 < rates[-1] < 0.001
    assert _schedule(0, Recipe(1, 2, 1.0)) == 1.0


def test_a_diverging_training_ends_at_once():
    images, tokens = task(64, 0)
    module = TwoTower(3)
    module.words.weight.data[1] = float("nan")
    with pytest.raises(SetupError, match="loss at step 1 is nan"):
        trained(source("x", module), images, tokens, Recipe(5, 64, 1e-2))


@pytest.mark.parametrize(
    ("more", "mistake"),
    [
        (["--steps", "0"], "--steps"),
        (["--batch", "1"], "--batch"),
        (["--batch", "65"], "--batch is 65; the pool holds 64"),
        (["--learning-rate", "0"], "--learning-rate"),
        (["--learning-rate", "nan"], "--learning-rate"),
        (["--weight-decay", "-1"], "--weight-decay"),
        (["--memory-bytes", "1000"], "at most 1000"),
        (["--device", "tpu"], "--device"),
        (["--out", "p.npz"], "--out"),
        (["--pool", "nowhere"], "--pool"),
        (["--module", "fit_models"], "--module"),
        (["--module", "fit_models:frozen"], "require a gradient"),
        (["--logit-scale", "nothing"], "--logit-scale"),
        (["--seed", "-1"], "--seed"),
        (["--shift", "-1"], "--shift is -1; must be 0 or more"),
        (["--shift", "8"], "--shift is 8; must be less than the image's side, 8 pixels"),
        (["--shift", "0.5"], "--shift"),
        (["--crop", "0"], "--crop is 0.0; must be above 0"),
        (["--crop", "1.1"], "--crop is 1.1"),
        (["--crop", "nan"], "--crop is nan"),
        (["--validation", "-0.1"], "--validation is -0.1; must be 0 to 0.5"),
        (["--validation", "0.6"], "--validation is 0.6"),
        (["--validation", "nan"], "--validation is nan"),
        (["--validation", "0.5"], "--validation is 0.5; holds out 3"),
        (["--validate-every", "0"], "--validate-every is 0"),
        (["--patience", "-1"], "--patience is -1"),
        (["--text-tower", "x"], "--text-tower is x; only --image-tower needs it"),
        (["--timm", "x"], "--timm is x; only --image-tower needs it"),
        (["--role", "learner"], "--role"),
    ],
)
def test_mistakes_print_one_line_and_exit_2(capsys, place, more, mistake):
    images, tokens = task(64, 0)
    arrays(place / "p.npz", 64, images=images, tokens=tokens)
    try:
        status = cli.main(["reference", "fit", *COMMON, "--pool", "p.npz", "--out", "reference", *more])
    except SystemExit as exit_:
        status = exit_.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    *progress, line = err.splitlines()
    assert all(each.startswith("selector reference fit: ") for each in progress)
    assert mistake in line
    assert not (place / "reference").exists()
