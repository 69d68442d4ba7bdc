"""Rules as a trainer asks for them: refused where they are set, sent as they are, and answered by what can be true."""

import asyncio

import numpy as np
import pytest
import torch
from selector_client import AsyncSelector, ModelEmbeddings, RemoteError, SelectingLoader, Selection, Selector, Settings
from selector_client.loading.batch_layout import default_take, default_view
from selector_client.selecting.candidates import Candidates
from selector_client.selecting.selection import Prefiltered
from selector_proto.v1 import selector_pb2 as pb
from support.model import embed, samples
from support.processes import free_port
from support.rules import arrays_of, avoiding, bring, with_losses
from support.wire import raw, some_embeddings

NAN = float("nan")
COUNT = 40
PIXELS, TOKENS = samples(COUNT)
LEARNER, REFERENCE = some_embeddings(COUNT)
LOSSES = np.linspace(0, 2, COUNT, dtype=np.float32)
MIXED = {"policy": "joint", "pair_criterion": "easy-reference"}
EASY = pb.CRITERION_EASY_REFERENCE


def known(model, fingerprint="") -> ModelEmbeddings:
    return ModelEmbeddings(*model, fingerprint=fingerprint)


# What is set


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"criterion": "none"}, "criterion is 'none'; a candidate by itself must count"),
        ({"pair_criterion": "mixed"}, "pair_criterion is 'mixed'; must be one of learnability,"),
        ({"pair_criterion": "none", "loss": "softmax"}, "pair_criterion is 'none' beside criterion 'learnability'"),
        ({"return_losses": True, "loss": "softmax"}, "return_losses is set; a candidate by itself"),
        *(
            ({"prefilter": value}, f"prefilter is {value}; must be 1 to 1e6")
            for value in (0.99, 0, -1, NAN, float("inf"))
        ),
        *(
            ({name: value}, f"{name} is {value}; must lie between 0 and 1")
            for name in ("explore", "max_similarity")
            for value in (0, 1, 1.5, -0.1, NAN)
        ),
        ({"prefilter": 2.5, "criterion": "hard-learner"}, "prefilter is 2.5; the criteria must look at the reference"),
        (
            {"max_similarity": 0.9, "criterion": "hard-learner", "pair_criterion": "none"},
            "max_similarity is 0.9; the criteria must look at the reference",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_where_they_are_set(fields, words):
    with pytest.raises(ValueError, match="^" + words.replace("(", r"\(")):
        Settings(**fields)


@pytest.mark.parametrize(
    ("fields", "recommended"),
    [
        ({}, True),
        ({"gain": 3.0, "prefilter": 4.0, "pair_criterion": "none"}, True),
        ({"policy": "joint"}, False),
        ({"policy": "uniform"}, False),
        ({"criterion": "easy-reference"}, False),
        ({"loss": "sigmoid"}, True),
        ({"loss": "softmax"}, False),
    ],
)
def test_without_a_policy_the_server_chooses_the_rule(fields, recommended):
    settings = Settings(**fields)
    assert settings.header().recommended == recommended
    assert settings.shortlists == ("prefilter" in fields)


def test_the_rule_chosen_and_the_published_one(plain_server):
    def picks(**settings):
        with Selector(plain_server.address, seed=5, on_error="raise", **settings) as selector:
            return selector.select_embeddings(known(LEARNER), known(REFERENCE))

    best = picks()
    assert best.prefiltered == Prefiltered(COUNT, 0, COUNT // 2)
    assert best.indices.tolist() == picks(gain=1.0, prefilter=2.5, **MIXED).indices.tolist()
    published = picks(policy="joint")
    assert published.prefiltered is None
    assert published.indices.tolist() == picks(policy="joint", gain=100.0).indices.tolist() != best.indices.tolist()


def test_settings_become_the_fields_of_a_request():
    header = Settings(**MIXED, prefilter=2.5, max_similarity=0.9, explore=0.1, return_losses=True).header()
    assert (header.criterion, header.pair_criterion) == (pb.CRITERION_LEARNABILITY, EASY)
    assert (header.prefilter, header.max_similarity, header.explore, header.return_losses) == (2.5, 0.9, 0.1, True)
    plain = Settings().header()
    new = ("pair_criterion", "prefilter", "max_similarity", "explore", "return_losses", "recent")
    assert not {field.name for field, _ in plain.ListFields()} & set(new), "as clients sent before"


@pytest.mark.parametrize(
    ("own", "pairs", "learner", "reference"),
    [
        ("learnability", None, True, True),
        ("easy-reference", None, False, True),
        ("hard-learner", "none", True, False),
        ("easy-reference", "hard-learner", True, True),
    ],
)
def test_which_model_looks_at_candidates(own, pairs, learner, reference):
    settings = Settings(criterion=own, pair_criterion=pairs)
    assert (settings.needs("learner"), settings.needs("reference")) == (learner, reference)


# What is sent


def test_samples_travel_with_what_the_reference_makes_of_them(server, bundles):
    seen = arrays_of(embed(bundles.reference, PIXELS, TOKENS))
    with Selector(server.address, seed=3, on_error="raise", prefilter=2.5, return_losses=True, **MIXED) as selector:
        own = selector.connect().reference.fingerprint
        picks = selector.select(PIXELS, TOKENS, reference=known(seen, own))
        with pytest.raises(RemoteError, match=f"this server's reference is {own}"):
            selector.select(PIXELS, TOKENS, reference=known(seen, "0" * 64))
    fields = {"pair_criterion": EASY, "prefilter": 2.5, "return_losses": True, "seed": picks.seed}
    reply = server.select(bring(raw(PIXELS, TOKENS, **fields), seen, own))
    assert picks.indices.tolist() == list(reply.indices)
    assert picks.prefiltered == Prefiltered(known=COUNT, unknown=0, left_out=20)
    assert picks.learner_losses.tolist() == pytest.approx(list(reply.learner_losses))
    assert picks.reference_losses.tolist() == pytest.approx(list(reply.reference_losses))
    assert picks.learner_losses.dtype == np.float32


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_learner_losses_and_recent_picks_travel(plain_server, kind):
    image, text, scale, bias = REFERENCE
    seen = ModelEmbeddings(kind(image), kind(text), scale, bias)
    fields = {"max_similarity": 0.9, "explore": 0.25}
    with Selector(plain_server.address, on_error="raise", **MIXED, **fields) as selector:
        first = selector.select_embeddings(None, seen, learner_losses=kind(LOSSES))
        recent = ModelEmbeddings(kind(image[first.indices]), kind(text[first.indices]), 1.0)
        second = selector.select_embeddings(None, seen, learner_losses=kind(LOSSES), recent=recent)
        nothing = ModelEmbeddings(np.zeros((0, 8), np.float32), np.zeros((0, 8), np.float32), 1.0)
        selector.select_embeddings(None, seen, learner_losses=kind(LOSSES), recent=nothing)
    request = with_losses(LOSSES, REFERENCE, pair_criterion=EASY, seed=first.seed, **fields)
    assert first.indices.tolist() == list(plain_server.select(request).indices)
    request = with_losses(LOSSES, REFERENCE, pair_criterion=EASY, seed=second.seed, **fields)
    request = avoiding(request, image[first.indices], text[first.indices])
    assert second.indices.tolist() == list(plain_server.select(request).indices)
    assert first.explored == second.explored == 2
    assert not set(first.indices) & set(second.indices)


def test_the_selector_for_asyncio_takes_the_same(plain_server):
    async def picks():
        async with AsyncSelector(plain_server.address, on_error="raise", seed=3, max_similarity=0.9, **MIXED) as one:
            beside = await one.select_embeddings(
                None, known(REFERENCE), learner_losses=LOSSES, recent=known([z[:2] for z in REFERENCE[:2]] + [1.0, 0.0])
            )
            return beside.indices.tolist(), beside.seed

    indices, seed = asyncio.run(picks())
    fields = {"pair_criterion": EASY, "max_similarity": 0.9, "seed": seed}
    request = avoiding(with_losses(LOSSES, REFERENCE, **fields), REFERENCE[0][:2], REFERENCE[1][:2])
    assert indices == list(plain_server.select(request).indices)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Candidates.embeddings(known(LEARNER), None, LOSSES), "give learner or learner_losses, not both"),
        (lambda: Candidates.embeddings(None, known(REFERENCE), LOSSES[1:]), "same number of rows, not .40, 40, 39"),
        (lambda: Candidates.samples(PIXELS, TOKENS, reference=known(REFERENCE)), "reference.fingerprint is ''"),
        (
            lambda: Candidates.samples(PIXELS[:9], TOKENS[:9], reference=known(REFERENCE, "x")),
            "reference has 40 entries, images has 9",
        ),
        (
            lambda: Candidates.embeddings(known(LEARNER), None).with_recent(
                ModelEmbeddings(LEARNER[0], LEARNER[1][:3], 1.0)
            ),
            "recent.text has 3 entries, recent.image has 40",
        ),
    ],
)
def test_parts_that_do_not_fit_together(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_without_a_sidecar_candidates_with_bad_embeddings_are_left_out():
    image, losses = REFERENCE[0].copy(), LOSSES.copy()
    image[::2], losses[1] = np.nan, np.inf
    with Selector(f"127.0.0.1:{free_port()}", filter_ratio=0.6, prefilter=2.0, explore=0.5, seed=1) as selector:
        with_samples = selector.select(PIXELS, TOKENS, reference=known((image, *REFERENCE[1:]), "x"))
        assert with_samples.fallback == "unavailable"
        assert sorted(set(with_samples.indices % 2)) == [1]
        assert (with_samples.explored, with_samples.prefiltered, with_samples.learner_losses) == (0, None, None)
        by_loss = selector.select_embeddings(None, known(REFERENCE), learner_losses=losses)
        assert 1 not in by_loss.indices
        assert by_loss.excluded["value"].indices.tolist() == [1]


# What is answered


def answer(**fields):
    return Selection.from_response(pb.SelectResponse(indices=[3, 1, 2, 0], **fields), 20, 4)


def test_what_a_sidecar_says_of_a_rule_is_read():
    said = answer(
        explored=4,
        prefiltered=pb.Prefiltered(known=18, unknown=2, left_out=16),
        learner_losses=[1, 2, 3, 4],
    )
    assert (said.explored, said.prefiltered) == (4, Prefiltered(18, 2, 16))
    assert said.learner_losses.tolist() == [1, 2, 3, 4]
    assert said.reference_losses is None
    assert answer().prefiltered is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"explored": 5}, "5 uniform picks of 4"),
        ({"explored": 2**32 - 1}, "4294967295 uniform picks"),
        ({"learner_losses": [1, 2, 3]}, "3 learner_losses of 4 picks"),
        ({"reference_losses": [1] * 5}, "5 reference_losses of 4 picks"),
        ({"learner_losses": [1, 2, 3, NAN]}, "learner_losses that are not finite"),
        ({"prefiltered": pb.Prefiltered(known=19, unknown=2)}, "19 known, 2 unknown and 0 left out of 20 candidates"),
        ({"prefiltered": pb.Prefiltered(known=5, left_out=6)}, "5 known, 0 unknown and 6 left out"),
        ({"prefiltered": pb.Prefiltered(known=20, left_out=17)}, "17 left out of 20 candidates, 4 of them picked"),
        ({"prefiltered": pb.Prefiltered(known=2**32 - 1, unknown=1)}, "4294967295 known"),
    ],
)
def test_an_answer_that_cannot_be_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        answer(**fields)


# Loaders


def super_batch(**more):
    image, text, scale, bias = REFERENCE
    reference = {"image": image, "text": text, "logit_scale": scale, "logit_bias": bias, "fingerprint": "x"}
    return {"images": PIXELS, "texts": TOKENS, "reference": reference | more, "weight": np.arange(COUNT)}


def test_a_loader_sends_the_references_embeddings_of_a_super_batch(plain_server):
    settings = {"criterion": "easy-reference", "prefilter": 2.5, "seed": 4}
    with Selector(plain_server.address, on_error="raise", **settings) as selector:
        loader = SelectingLoader([super_batch()] * 2, selector)
        for batch in loader:
            rows, last = batch["weight"], loader.last
            assert last.prefiltered == Prefiltered(COUNT, 0, 20)
            np.testing.assert_array_equal(batch["reference"]["image"], REFERENCE[0][rows])
            assert batch["reference"]["fingerprint"] == "x"
    request = bring(raw(PIXELS, TOKENS, criterion=EASY, prefilter=2.5, seed=last.seed), REFERENCE, "x")
    assert rows.tolist() == list(plain_server.select(request).indices)


def test_the_view_of_a_super_batch_with_a_reference():
    shown = default_view(super_batch())
    assert list(shown) == ["images", "texts", "reference"]
    assert shown["reference"] == known(REFERENCE, "x")
    ready = known(REFERENCE, "x")
    assert default_view({"images": PIXELS, "texts": TOKENS, "reference": ready})["reference"] is ready
    with pytest.raises(TypeError, match="it may have image, text, logit_scale, logit_bias, fingerprint"):
        default_view(super_batch(scale=1.0))


def test_a_text_that_is_as_long_as_a_super_batch_is_no_column():
    taken = default_take({"images": PIXELS, "name": "x" * COUNT, "raw": b"x" * COUNT}, np.array([1, 2]), COUNT)
    assert (taken["name"], taken["raw"], len(taken["images"])) == ("x" * COUNT, b"x" * COUNT, 2)
