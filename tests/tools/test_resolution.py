"""The resolution study, at sizes that say nothing."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from selector_proto.resize import patch_matrix, resize_matrix
from selector_tools import cli
from selector_tools.bench.comparison import compare
from selector_tools.bench.synthetic import candidates
from selector_tools.datasets import icons
from selector_tools.datasets.dataset import Dataset, Pictures
from selector_tools.study.flexi_vit import DROPPED, FULL, LOW, PATCH_8, SIDE_16, FlexiSigLip
from torch.nn.functional import interpolate

from selector_server.sampling import Draw, Plan, chunk_sizes

WORDS = 50
PLAN = Plan(chunk_sizes(60, 4), 100.0, Draw.SAMPLE, 0)


@pytest.fixture
def learner() -> FlexiSigLip:
    torch.manual_seed(0)
    return FlexiSigLip(WORDS)


def pictures(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(1))


def test_the_same_scores_compare_as_the_same() -> None:
    scores = candidates(300, 16, 0)
    assert compare(scores, scores, PLAN) == pytest.approx(dict.fromkeys(("loss", "own", "joint", "overlap", "kept"), 1))


def test_other_scores_compare_as_worse() -> None:
    scores, others = candidates(300, 16, 0), candidates(300, 16, 1)
    found = compare(scores, replace(scores, learner=others.learner), PLAN)
    assert abs(found["loss"]) < 0.2
    assert all(found[key] < 0.9 for key in ("own", "joint", "overlap", "kept"))


def test_low_resolution_is_the_same_model_built_for_it_with_mapped_weights(learner: FlexiSigLip) -> None:
    built = FlexiSigLip(WORDS, (PATCH_8,), PATCH_8)
    weights = learner.state_dict()
    kernel = patch_matrix((4, 4), (8, 8), "bilinear", False).astype(np.float32)
    positions = resize_matrix((8, 8), (4, 4), "bilinear", True).astype(np.float32)
    weights["embed.weight"] = (weights["embed.weight"].reshape(-1, 16) @ torch.tensor(kernel.T)).reshape(-1, 1, 8, 8)
    weights["positions"] = torch.tensor(positions) @ weights["positions"]
    built.load_state_dict(weights)
    learner.seen = (PATCH_8,)
    torch.testing.assert_close(learner.encode_image(pictures(6)), built.encode_image(pictures(6)))


def test_a_co_trained_batch_is_half_full_and_half_at_patch_8(learner: FlexiSigLip) -> None:
    images = pictures(6)
    full = learner.encode_image(images)
    learner.seen = (PATCH_8,)
    low = learner.encode_image(images)
    learner.seen = (FULL, PATCH_8)
    torch.testing.assert_close(learner.encode_image(images), torch.cat([full[:3], low[3:]]))


def test_gradients_of_low_resolution_reach_the_stored_kernel(learner: FlexiSigLip) -> None:
    learner.seen = (PATCH_8,)
    learner.encode_image(pictures(2)).square().sum().backward()
    assert learner.embed.weight.grad is not None
    assert learner.embed.weight.grad.abs().min() > 0


def test_at_patch_8_a_patch_that_was_sized_up_gives_the_small_ones_products(learner: FlexiSigLip) -> None:
    small = pictures(4)[..., :16, :16]
    patches = small.unfold(2, 4, 4).unfold(3, 4, 4).reshape(-1, 1, 4, 4)
    large = interpolate(patches, (8, 8), mode="bilinear")
    low, same = (learner._kernel(form).flatten(1).T for form in (PATCH_8, SIDE_16))
    torch.testing.assert_close(large.flatten(1) @ low, patches.flatten(1) @ same, atol=1e-4, rtol=1e-4)


def test_dropping_keeps_sixteen_tokens_and_sees_only_them(learner: FlexiSigLip) -> None:
    assert [form.tokens for form in (FULL, *LOW)] == [64, 16, 16, 16]
    assert all(form.flops < 0.25 * FULL.flops for form in LOW)
    learner.seen = (DROPPED,)
    images = pictures(2)
    before = learner.encode_image(images)
    images[..., 4:8, :] = 0  # a row of patches that is dropped
    torch.testing.assert_close(learner.encode_image(images), before)
    images[..., :4, :4] = 0
    assert not torch.allclose(learner.encode_image(images), before)


def test_the_verb_prints_one_json_object(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(icons, "load", tiny_data)
    flags = ["--super-batch", "160", "--super-batches", "2", "--steps", "1", "2", "--reference-steps", "2", "--json"]
    assert cli.main(["bench", "resolution", *flags]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {"setting", "flops", "tokens", "reference_zero_shot", "seconds", "threads", "versions"} <= set(result)
    assert result["random_overlap"] == pytest.approx(0.2)
    assert result["flops"]["full"] == 1
    for learner in ("full only", "co-trained"):
        assert list(result["learners"][learner]["after"]) == ["1", "2"]
        figures = result["learners"][learner]["after"]["2"]
        assert set(figures["zero_shot"]) == set(figures["scoring_seconds"]) == {"full", *(form.name for form in LOW)}
        assert set(figures["against_full"]) == {*(form.name for form in LOW), "reference alone", "other noise"}
        for form in LOW:
            row = figures["against_full"][form.name]
            assert set(row) == {"loss", "own", "joint", "overlap", "kept"}
            assert all(set(cell) == {"mean", "error"} for cell in row.values())


@pytest.mark.parametrize(
    ("flags", "mistake"),
    [
        (["--filter-ratio", "0"], "--filter-ratio"),
        (["--super-batch", "100"], "--super-batch"),
        (["--super-batches", "1"], "--super-batches"),
        (["--super-batches", "100"], "--super-batches"),
        (["--steps", "0", "5"], "--steps"),
        (["--steps", "5", "3"], "--steps"),
        (["--reference-steps", "0"], "--reference-steps"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_mistakes_print_one_line_and_exit_2(flags: list[str], mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "resolution", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert mistake in err


def tiny_data() -> Dataset:
    """Random pictures with random words."""
    rng = np.random.default_rng(0)

    def pictures(count: int) -> Pictures:
        words = tuple(f"word{number}" for number in rng.integers(0, 20, count))
        return Pictures(rng.integers(0, 256, (count, 32, 32)).astype(np.uint8), words, words, ("a",) * count)

    evaluation = pictures(40)
    names = tuple(sorted(set(evaluation.concepts)))
    labels = np.array([names.index(word) for word in evaluation.concepts], np.int64)
    return Dataset(pictures(600), pictures(200), evaluation, names, labels)
