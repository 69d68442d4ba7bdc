"""What replies say of how alike candidates are, against numpy's slow way over the same embeddings."""

from itertools import combinations

import numpy as np
import pytest
from selector_proto.v1 import selector_pb2 as pb
from support.model import embed, samples
from support.processes import eventually
from support.ranks import models_of, together
from support.wire import embeddings, raw, some_embeddings, some_losses

COUNT = 40


def cosines(image):
    """All of them, float64 [B, B]."""
    rows = image.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def means(image, opened=None, share=None):
    """Of adjacent candidates that are open and in one share, and of all pairs of open ones."""
    of, share = cosines(image), share or len(image)
    opened = set(range(len(image)) if opened is None else opened)
    beside = [of[i, i + 1] for i in range(len(image) - 1) if {i, i + 1} <= opened and (i + 1) % share]
    return np.mean(beside), np.mean([of[pair] for pair in combinations(sorted(opened), 2)])


def duplicated(image, picks, opened=None):
    of, opened = cosines(image), range(len(image)) if opened is None else opened
    return np.mean([any(of[pick, other] > 0.95 for other in opened if other != pick) for pick in picks])


def assert_told(reply, image, opened=None, tolerance=1e-5):
    assert reply.HasField("locality")
    told = reply.locality
    assert (told.adjacent, told.random) == pytest.approx(means(image, opened), abs=tolerance)
    assert told.near_duplicates == pytest.approx(duplicated(image, reply.indices, opened))


def copied(model):
    """The model's embeddings, in which neighbours are alike, and the first two the same."""
    image = model[0].copy()
    image[1::2] = image[0::2] + 0.5 * image[1::2]
    image[1] = image[0]
    return (image, *model[1:])


@pytest.fixture
def models():
    learner, reference = some_embeddings(COUNT)
    return learner, copied(reference)


@pytest.mark.parametrize("policy", ["joint", "independent"])
@pytest.mark.parametrize("criterion", [pb.CRITERION_LEARNABILITY, pb.CRITERION_EASY_REFERENCE])
def test_embeddings_tell_it(patient, models, policy, criterion):
    request = embeddings(*models, seed=1, policy=policy, criterion=criterion, sub_batch_size=COUNT // 2)
    reply = patient.select(request)
    assert_told(reply, models[1][0])
    assert reply.locality.adjacent > reply.locality.random + 0.2


def test_the_share_of_near_duplicates_is_of_the_picks(patient, models):
    reply = patient.select(embeddings(*models, seed=1, sub_batch_size=COUNT))
    assert 0 < reply.locality.near_duplicates < 1
    assert reply.locality.near_duplicates == pytest.approx(duplicated(models[1][0], range(COUNT)))


def test_it_is_not_told_where_no_reference_looked(patient, models):
    hard = embeddings(models[0], seed=1, criterion=pb.CRITERION_HARD_LEARNER)
    for request in (hard, some_losses(), embeddings(*models, policy="uniform")):
        assert not patient.select(request).HasField("locality")


def test_a_candidate_that_cannot_be_used_is_nobodys_neighbour(patient, models):
    models[1][0][[3, 10, 11]] = np.nan
    reply = patient.select(embeddings(*models, seed=1, bad_samples=pb.BAD_SAMPLES_EXCLUDE))
    opened = np.setdiff1d(np.arange(COUNT), [3, 10, 11])
    assert_told(reply, np.nan_to_num(models[1][0], nan=1.0), opened)
    models[1][0][1::2] = np.nan
    few = embeddings(*models, seed=1, bad_samples=pb.BAD_SAMPLES_EXCLUDE, max_excluded_share=0.9)
    assert not patient.select(few).HasField("locality"), "no two neighbours are left"


def test_a_prefilter_tells_it_of_what_it_saw(patient, models):
    fields = {"seed": 1, "sub_batch_size": 4, "prefilter": 3.0}
    reply = patient.select(embeddings(*models, **fields))
    assert reply.prefiltered.left_out == COUNT - 12
    told, (_, reference) = reply.locality, models
    assert (told.adjacent, told.random) == pytest.approx(means(reference[0]), abs=1e-5)
    own = (reference[0] * reference[1]).sum(1) / np.prod([np.linalg.norm(side, axis=1) for side in reference[:2]], 0)
    left = np.argsort(-own)[:12]
    assert told.near_duplicates == pytest.approx(duplicated(reference[0], reply.indices, left))


def test_a_shortlist_tells_nothing_for_its_neighbours_are_none(patient, models):
    request = embeddings(*models, seed=1)
    request.selection.positions.CopyFrom(request.add(np.arange(0, 3 * COUNT, 3)))
    assert not patient.select(request).HasField("locality")


def with_ids(request):
    request.selection.sample_ids.integers.CopyFrom(request.add(np.arange(COUNT)))
    return request


def test_samples_tell_it_with_a_cache_with_a_prefilter_and_with_references_that_they_bring(sidecar, bundles, tmp_path):
    server = sidecar(bundles.flags | {"cache": tmp_path / "cache"})
    pixels, tokens = samples(COUNT)
    pixels[1::2] = pixels[0::2] // 2 + pixels[1::2] // 2
    reference = embed(bundles.reference, pixels, tokens)
    image = reference.image.numpy()
    fields = {"seed": 1, "sub_batch_size": 8}
    assert_told(server.select(raw(pixels, tokens, **fields)), image, tolerance=1e-4)
    assert server.metrics()("selector_image_cosine_mean", of="adjacent") == pytest.approx(means(image)[0], abs=1e-4)
    fresh = server.select(with_ids(raw(pixels, tokens, **fields)))
    assert_told(fresh, image, tolerance=1e-3)
    again = with_ids(raw(pixels, tokens, **fields))
    eventually(lambda: server.select(again).cached_references == COUNT)
    assert server.select(again).locality == fresh.locality
    filtered = server.select(with_ids(raw(pixels, tokens, prefilter=2.0, **fields)))
    assert filtered.prefiltered.left_out == COUNT - 16
    brings = raw(pixels, tokens, prefilter=2.0, **fields)
    part = brings.selection.samples.reference
    part.embeddings.image.CopyFrom(brings.add(3 * image))
    part.embeddings.text.CopyFrom(brings.add(reference.text.numpy()))
    part.embeddings.logit_scale, part.fingerprint = 20.0, server.info().reference.fingerprint
    for reply in (filtered, server.select(brings)):
        assert (reply.locality.adjacent, reply.locality.random) == pytest.approx(means(image), abs=1e-3)
    metrics = server.metrics()
    assert metrics("selector_image_cosine_mean", of="random") == pytest.approx(means(image)[1], abs=1e-3)
    assert metrics("selector_near_duplicate_picks_ratio") == server.select(brings).locality.near_duplicates


@pytest.mark.parametrize("prefilter", [None, 2.0])
def test_ranks_are_told_of_all_candidates_without_neighbours_across_ranks(patient, prefilter):
    models = [(learner, copied(reference)) for learner, reference in models_of(2, COUNT)]
    fields = {} if prefilter is None else {"prefilter": prefilter}
    replies = together(patient, [embeddings(*pair, seed=1, **fields) for pair in models])
    image = np.concatenate([reference[0] for _, reference in models])
    assert replies[0].locality == replies[1].locality
    told = replies[0].locality
    if prefilter is None:
        assert (told.adjacent, told.random) == pytest.approx(means(image, share=COUNT), abs=1e-5)
        picks = [rank * COUNT + pick for rank, reply in enumerate(replies) for pick in reply.indices]
        assert told.near_duplicates == pytest.approx(duplicated(image, picks))
    else:
        wanted = np.mean([means(reference[0]) for _, reference in models], axis=0)
        assert (told.adjacent, told.random) == pytest.approx(wanted, abs=1e-5), "each rank's prefilter saw its own"
