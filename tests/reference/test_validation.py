"""Pairs that are held out, the AUC among them, and the end of training that it brings."""

import itertools
import json

import numpy as np
import pytest
import torch
from selector_tools import cli
from selector_tools.reference.augmentation import Augmentation
from selector_tools.reference.training import Recipe, fit, whole_pairs
from selector_tools.reference.validation import MOST, Look, Validation, held_out, reciprocal_ranks
from support.fits import task, with_module
from support.model import TOKENS, TwoTower, embed, source
from support.pools import arrays

from selector_server.encoding import bundle
from selector_server.encoding.reference_cache import integer_key
from selector_server.errors import SetupError
from selector_server.sampling import Embedded

CODE = "from support.model import TwoTower\n\n\ndef tiny():\n    return TwoTower(3)\n"
FIT = ["reference", "fit", "--module", "validation_models:tiny", "--image-size", "8", "--max-tokens", str(TOKENS)]
FIT += ["--vocabulary", "64", "--threads", "1", "--batch", "32", "--learning-rate", "0.01", "--pool", "p.npz"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    return with_module(tmp_path, monkeypatch, "validation_models", CODE)


def test_who_is_held_out_depends_on_id_and_seed_alone():
    keys = [integer_key(number) for number in range(5000)]
    rows = held_out(keys, 0.1, 7)
    assert 400 < rows.sum() < 600
    order = np.random.default_rng(0).permutation(5000)
    np.testing.assert_array_equal(held_out([keys[row] for row in order], 0.1, 7), rows[order])
    np.testing.assert_array_equal(held_out(keys[:900], 0.1, 7), rows[:900])
    other = held_out(keys, 0.1, 8)
    assert 20 < (rows & other).sum() < 90  # as if drawn anew
    assert not (held_out(keys, 0.05, 7) & ~rows).any()
    assert not held_out(keys, 0.0, 7).any()


def test_at_most_so_many_are_held_out():
    keys = [integer_key(number) for number in range(9000)]
    some, all_ = held_out(keys, 0.3, 0), held_out(keys, 0.5, 0)
    assert some.sum() == all_.sum() == MOST
    np.testing.assert_array_equal(some, all_)


def validation(count=100, recipe=None, every=1, patience=2, model=None):
    images, tokens = task(count)
    model = model or source("tiny", TwoTower(3))
    captions = [row.tobytes() for row in tokens]
    recipe = recipe or Recipe(100, 32, 1e-2)
    return Validation(model, whole_pairs(model, images, tokens), captions, recipe, every, patience)


class Scripted(Validation):
    """One whose ranks are given, with an error of 0.05, and whose model's bias says which step it was."""

    def __init__(self, ranks, steps=100, every=1, patience=2):
        self.module, self.script = TwoTower(3), iter(ranks)
        model = source("tiny", self.module)
        images, tokens = task(70)
        captions = [row.tobytes() for row in tokens]
        super().__init__(model, whole_pairs(model, images, tokens), captions, Recipe(steps, 32, 1e-2), every, patience)

    def _look(self, step):
        return Look(step, 0.9, next(self.script), 0.05)

    def run(self):
        """Where training ended, and the step whose weights the model has then."""
        for step in itertools.count(1):
            self.module.logit_bias.data.fill_(float(step))
            if self.stops(step) or step == self._recipe.steps:
                break
        self.restore()
        assert self.module.logit_bias.item() == self.kept.step
        return step, self.kept.step


def test_it_stops_after_looks_without_a_better_one_and_the_best_weights_come_back():
    assert Scripted([0.5, 0.7, 0.6, 0.64]).run() == (4, 2)
    assert Scripted([0.5, 0.4, 0.6, 0.5, 0.7, 0.6, 0.6]).run() == (7, 5)
    assert Scripted([0.9, 0.4, 0.6, 0.5, 0.7], steps=5, patience=0).run() == (5, 1)


def test_of_those_that_are_equal_within_the_error_the_last_is_kept_and_none_counts_as_better():
    assert Scripted([0.5, 1.0, 1.0, 1.0]).run() == (4, 4)
    assert Scripted([0.5, 0.7, 0.66, 0.6], patience=2).run() == (4, 3)
    assert Scripted([0.7, 0.66, 0.62, 0.58], patience=3).run() == (4, 2)  # not one error after the other


def test_it_looks_every_so_many_steps_and_after_the_last():
    found = Scripted([0.5, 0.6, 0.7, 0.8], steps=10, every=3)
    assert found.run() == (10, 10)
    assert [look.step for look in found.looks] == [3, 6, 9, 10]


def test_ranks_are_places_among_the_different_captions():
    rng = np.random.default_rng(2)
    image, table = rng.normal(size=(30, 4)), rng.normal(size=(8, 4))
    table[7] = table[6]  # two captions that the model cannot tell apart
    word = np.concatenate([np.arange(8), rng.integers(0, 8, 22)])
    embedded = Embedded(torch.from_numpy(image), torch.from_numpy(table[word]), 1.0, 0.0)
    found = reciprocal_ranks(embedded, [bytes([each]) for each in word])
    for row, mine in enumerate(word):
        cosines = [float(image[row] @ caption) for caption in table]
        higher = sum(each > cosines[mine] for each in cosines)
        equal = sum(each == cosines[mine] for each in cosines)
        assert found[row] == pytest.approx(1 / (higher + (1 + equal) / 2))


def test_the_auc_is_that_of_own_against_other_captions():
    images, tokens = task(300)
    module = TwoTower(3)
    model = source("tiny", module)
    fit(model, whole_pairs(model, images, tokens), Recipe(30, 32, 1e-2))
    found = validation(300, Recipe(1, 32, 1e-2), model=model)
    module.train()
    assert not found.stops(1)
    assert module.training
    seen = embed(module, images, tokens)
    cosines = (seen.image.double() @ seen.text.double().T).numpy()
    wrong = cosines[tokens[:, :1] != tokens[:, 0]]
    own = np.diag(cosines)[:, None]
    exact = (own > wrong).mean() + (own == wrong).mean() / 2
    assert 0.6 < exact < 0.999
    assert found.looks[0].auc == pytest.approx(exact, abs=0.015)  # some captions of each image stand for all of them


def test_what_is_held_out_is_seen_as_it_is_and_not_trained_on():
    images, tokens = task(200)
    model = source("tiny", TwoTower(3))
    pairs, seen = whole_pairs(model, images, tokens), {True: [], False: []}

    def embed_and_note(some, texts):
        seen[torch.is_grad_enabled()].append(some.clone())
        return pairs.embed(some, texts)

    noted = type(pairs)(images, tokens, embed_and_note)
    held = np.arange(200) < 70
    recipe = Recipe(2, 32, 1e-2, augmentation=Augmentation(2))
    judge = Validation(model, noted.at(held), [row.tobytes() for row in tokens[held]], recipe, 1, 0)
    fit(model, noted.at(~held), recipe, stops=judge.stops)
    looked = torch.cat(seen[False]).numpy()
    np.testing.assert_array_equal(looked, np.concatenate([images[held]] * 2))
    trained = {image.tobytes() for image in torch.cat(seen[True]).numpy()}
    assert len(trained) == 64
    assert len(trained & {image.tobytes() for image in images[~held]}) < 16  # of 25 moves one is none
    assert not trained & {image.tobytes() for image in images[held]}


def test_captions_that_are_all_the_same_tell_nothing():
    model = source("tiny", TwoTower(3))
    pairs = whole_pairs(model, *task(70))
    with pytest.raises(SetupError, match="--validation is 70 pairs; they have one and the same caption; set it to 0"):
        Validation(model, pairs, [b"x"] * 70, Recipe(1, 32, 1e-2), 1, 1)


def told(capsys, *more):
    assert cli.main([*FIT, *map(str, more)]) == 0
    return capsys.readouterr()


def test_the_command_holds_pairs_out_tells_their_auc_and_stops(capsys, place):
    images, tokens = task(1600)
    arrays(place / "p.npz", 1600, images=images, tokens=tokens)
    more = ["--steps", 400, "--patience", 3, "--validate-every", 10, "--json"]
    found = json.loads(told(capsys, *more, "--out", "a").out)
    validated = found["validation"]
    assert 64 <= validated["pairs"] < 110
    assert found["pairs"] + validated["pairs"] == 1600
    assert found["steps"] < 400
    assert found["steps"] == validated["looks"][-1]["step"]
    kept = {name: validated[name] for name in ("step", "auc", "mean_reciprocal_rank")}
    assert kept in validated["looks"]
    assert kept["auc"] > 0.95
    assert kept["mean_reciprocal_rank"] > 0.95
    judged = f"AUC {kept['auc']:.3f}, mean reciprocal rank {kept['mean_reciprocal_rank']:.3f}"
    judged += f" on {validated['pairs']:,} pairs held out"
    told_in_bundle = bundle.load(place / "a", "reference").manifest.source
    assert told_in_bundle.endswith(f"; trained on {found['pairs']:,} pairs for {kept['step']:,} steps; {judged}")
    order = np.random.default_rng(0).permutation(1600)
    arrays(place / "p.npz", 1600, images=images[order], tokens=tokens[order], ids=order)
    said = told(capsys, *more[:-1], "--out", "b")
    assert f"on {validated['pairs']:,} pairs held out, from step" in said.out
    assert "; stopped early, before 400" in said.out


def test_of_a_tiny_pool_nothing_is_held_out_unless_asked_for(capsys, place):
    images, tokens = task(400)
    arrays(place / "p.npz", 400, images=images, tokens=tokens)
    said = told(capsys, "--steps", 2, "--out", "a")
    [line] = [line for line in said.err.splitlines() if "validation" in line]
    assert line.startswith("selector reference fit: no validation: a share of 0.05 holds out ")
    assert line.endswith(" of 400 pairs; at least 64 tell how good it is")
    assert "trained on 400 pairs, 2 steps" in said.out
    assert "AUC" not in said.out
    said = told(capsys, "--steps", 2, "--out", "b", "--validation", 0)
    assert "validation" not in said.err
    found = json.loads(told(capsys, "--steps", 2, "--out", "c", "--validation", 0.3, "--json").out)
    assert found["pairs"] + found["validation"]["pairs"] == 400
    assert json.loads(told(capsys, "--steps", 2, "--out", "d", "--json").out)["validation"] is None
    assert bundle.load(place / "a", "reference").fingerprint == bundle.load(place / "b", "reference").fingerprint


def test_a_log_tells_the_auc_on_the_way(capsys, place, monkeypatch):
    from selector_tools import progress

    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
    images, tokens = task(1600)
    arrays(place / "p.npz", 1600, images=images, tokens=tokens)
    said = told(capsys, "--steps", 150, "--patience", 0, "--validate-every", 1, "--out", "a")
    assert any(line.startswith("train, loss ") and ", AUC 0." in line for line in said.err.splitlines())
