"""What the numbers mean: each finding where it is true, and none where it is not."""

from dataclasses import replace

import numpy as np
import pytest
from selector_proto.v1 import inspection_pb2 as pb
from selector_proto.v1 import selector_pb2
from support.observations import RULE, observation

from selector_server.engine.task import ServedWeights
from selector_server.inspection.observation import Fate
from selector_server.inspection.verdicts import verdicts
from selector_server.sampling.locality import Locality

GOOD, ODD, BAD = pb.VERDICT_LEVEL_GOOD, pb.VERDICT_LEVEL_ODD, pb.VERDICT_LEVEL_BAD


def seen(count=8, **changes):
    """Selections in which nothing is wrong, but for these changes."""
    return [observation(100, number=number + 1, picks=20, excluded=1, **changes) for number in range(count)]


def refused(state, reason="canary: cosine is 0.2; must be 0.99"):
    return selector_pb2.UnservedWeights(version=9, state=state, reason=reason)


def served(**changes):
    return replace(ServedWeights(3, 400, 2.0, 4, stale=False), **changes)


def worthless(one):
    """The same, whose picks are the worst."""
    fates = np.where(one.fates == Fate.EXCLUDED, one.fates, Fate.DROPPED).astype(np.uint8)
    fates[np.argsort(np.nan_to_num(one.scores, nan=np.inf))[:20]] = Fate.PICKED
    return replace(one, fates=fates)


def only(found):
    [verdict] = found
    assert verdict.finding[0] == verdict.finding[0].upper()
    assert verdict.finding.endswith(".")
    return verdict.level, verdict.finding


def test_nothing_is_wrong():
    level, finding = only(verdicts(seen()))
    assert level == GOOD
    assert finding.startswith("Selection works: picks score 0.")
    assert verdicts(seen())[0].advice == ""


def test_uniform_picks_are_what_the_trainer_asks_for():
    plain = seen(learner=None, reference=None, scores=None, locality=None, shuffled_loss=None, weights=None)
    assert only(verdicts(plain)) == (GOOD, "Picks are drawn uniformly, as the trainer asks.")


def test_nothing_was_selected():
    assert only(verdicts([])) == (ODD, "Nothing was selected yet.")


@pytest.mark.parametrize(
    ("given", "level", "words"),
    [
        (
            lambda: (seen(locality=Locality(0.5, 0.2, 0.3)),),
            BAD,
            "neighbours are alike: their mean cosine is 0.50, that of others 0.20; 30% of the picks have a near",
        ),
        (lambda: (seen(locality=Locality(0.21, 0.2, 0.25)),), ODD, "25% of the picks have a near-duplicate beside"),
        (
            lambda: (seen(weights=served()), refused(selector_pb2.SYNC_STATE_REJECTED)),
            BAD,
            "Newest weights refused since step 400: canary: cosine is 0.2; must be 0.99.",
        ),
        (lambda: (seen(), refused(selector_pb2.SYNC_STATE_DISCONNECTED)), BAD, "The store of weights is not reached"),
        (lambda: (seen(), refused(selector_pb2.SYNC_STATE_PINNED)), ODD, "Weights are pinned since step 100"),
        (lambda: (seen(weights=served(stale=True)),), BAD, "older than the trainer accepts: 4 steps behind, 2 s old."),
        (lambda: (seen(weights=served(lag_steps=1001)),), ODD, "Weights are old: 1001 steps behind"),
        (lambda: (seen(weights=served(lag_steps=None, age_seconds=4000.0)),), ODD, "Weights are old: 4000 s old."),
        (lambda: (seen(shuffled_loss=2.1),), BAD, "The reference knows none of these captions: their mean loss is"),
        (lambda: (list(map(worthless, seen())),), BAD, "Picks score no better than the pool: -"),
        (
            lambda: ([observation(100, number=number, picks=20, excluded=9) for number in range(8)],),
            ODD,
            "9% of the candidates are excluded, most of them as unreadable (72).",
        ),
        (lambda: (seen(), None, 7), ODD, "7 batches were drawn uniformly, because no selection came; none lately."),
        (
            lambda: ([replace(one, fallbacks=3 * one.number) for one in seen(5)], None, 15),
            BAD,
            "71% of the last batches were drawn uniformly",
        ),
        (lambda: (seen(rule=RULE | {"gain": "5000"}),), ODD, "The gain, 5000, is so high that the draw takes the best"),
        (lambda: (seen(rule=RULE | {"gain": "0.001"}),), ODD, "The gain, 0.001, is so low that scores hardly count"),
    ],
    ids=[
        "shuffling", "duplicates", "refused", "disconnected", "pinned", "stale", "lag", "age", "reference", "worthless",
        "excluded", "fallbacks before", "fallbacks now", "high gain", "low gain",
    ],
)  # fmt: skip
def test_what_is_wrong(given, level, words):
    found = verdicts(*given())
    told, finding = only(found)
    assert told == level
    assert words in finding
    assert found[0].advice


def test_a_softmax_reference_may_have_losses_below_nothing():
    """Its own losses are negative logits: those of captions that fit lie far below those of others."""
    shift = [replace(one, reference=one.reference - 30, scores=one.scores + 30, shuffled_loss=-12.0) for one in seen()]
    assert only(verdicts(shift))[0] == GOOD
    lost = [replace(one, shuffled_loss=float(np.nanmean(one.reference))) for one in shift]
    assert "knows none of these captions" in only(verdicts(lost))[1]


def test_the_usual_gain_is_not_told_of():
    assert only(verdicts(seen(rule=RULE | {"gain": "100"})))[0] == GOOD


def test_the_most_serious_comes_first():
    found = verdicts(seen(locality=Locality(0.21, 0.2, 0.4), shuffled_loss=2.0))
    assert [one.level for one in found] == [BAD, ODD]


def test_what_happened_long_ago_does_not_count():
    found = verdicts(seen(1, locality=Locality(0.9, 0.1, 0.9)) + seen(32))
    assert only(found)[0] == GOOD


def test_all_excluded_but_the_picks():
    """Where nothing was left to compare with, there is nothing to say."""
    assert verdicts([observation(6, picks=5, excluded=1)])
    assert verdicts([observation(5, picks=5, excluded=0, scores=np.zeros(5, np.float32))])
