"""Rules that cannot be: hostile values, and settings that contradict each other, refused by field, value and limit."""

import numpy as np
import pytest
from selector_proto.v1 import selector_pb2 as pb
from support.model import WIDTH, samples
from support.plugins import FIRST, with_policies
from support.ranks import as_ranks
from support.refusals import EXHAUSTED, INVALID, PRECONDITION, assert_refused, edited
from support.rules import avoiding, bring, name, with_losses
from support.wire import embeddings, losses, raw, some_embeddings, some_losses

NAN, INF = float("nan"), float("inf")
EASY, HARD, NONE = pb.CRITERION_EASY_REFERENCE, pb.CRITERION_HARD_LEARNER, pb.CRITERION_NONE
SOFTMAX, EXCLUDE = pb.LOSS_SOFTMAX, pb.BAD_SAMPLES_EXCLUDE
COUNT = 40
PIXELS, TOKENS = samples(COUNT)
LEARNER, REFERENCE = some_embeddings(COUNT)
LOSSES = np.linspace(0, 1, COUNT, dtype=np.float32)


def embedded(**fields):
    return embeddings(LEARNER, REFERENCE, **fields)


def sent(**fields):
    return raw(PIXELS, TOKENS, **fields)


def brought(fingerprint="f" * 64, width=WIDTH, bad=None, count=COUNT, **fields):
    image, text = np.random.default_rng(0).standard_normal((2, count, width)).astype(np.float32)
    if bad is not None:
        text[3, 2] = bad
    return bring(sent(**fields), (image, text, 10.0, -5.0), fingerprint)


def recent(request, rows=3, width=8, bad=None, text_width=None):
    image, text = np.ones((rows, width), np.float32), np.ones((rows, text_width or width), np.float32)
    if bad is not None:
        image[rows - 1, 1] = bad
    return avoiding(request, image, text)


def huge(request):
    """Recent picks that are 10^9 by what they say of themselves."""
    return edited(recent(request), lambda s: s.recent.image.shape.__setitem__(0, 10**9))


SHARE = "must lie between 0 and 1, both excluded"
CASES = {
    # shares and multiples
    **{
        f"prefilter of {value}": (
            lambda value=value: embedded(prefilter=value),
            INVALID,
            f"prefilter is {value}",
            "must be 1 to 1e+06",
        )
        for value in (0.999, 0.0, -1.0, NAN, INF, -INF, 1e300)
    },
    **{
        f"{field} of {value}": (
            lambda field=field, value=value: embedded(**{field: value}),
            INVALID,
            f"{field} is {value}",
            SHARE,
        )
        for field in ("explore", "max_similarity")
        for value in (0.0, 1.0, 1.5, -0.1, NAN, INF)
    },
    # criteria
    "a criterion of none": (lambda: embedded(criterion=NONE), INVALID, "criterion is CRITERION_NONE", "LEARNABILITY"),
    "an unknown pair criterion": (
        lambda: embedded(pair_criterion=99),
        INVALID,
        "pair_criterion is 99",
        "CRITERION_NONE",
    ),
    "softmax with pairs of their own": (
        lambda: embedded(pair_criterion=EASY, loss=SOFTMAX),
        INVALID,
        "pair_criterion is EASY_REFERENCE",
        "sigmoid loss only",
    ),
    "softmax without pairs": (
        lambda: sent(pair_criterion=NONE, loss=SOFTMAX),
        INVALID,
        "pair_criterion is NONE",
        "sigmoid loss only",
    ),
    "softmax losses given back": (
        lambda: embedded(return_losses=True, loss=SOFTMAX),
        INVALID,
        "return_losses is set",
        "softmax",
    ),
    # prefilter
    "a prefilter of samples without names": (
        lambda: sent(prefilter=2.5),
        INVALID,
        "prefilter is 2.5",
        "needs sample_ids or samples.reference",
    ),
    "a prefilter without a cache": (
        lambda: name(sent(prefilter=2.5), range(COUNT)),
        PRECONDITION,
        "prefilter is 2.5",
        "start the server with --cache",
    ),
    "a prefilter by a rule that does not look at the reference": (
        lambda: embedded(prefilter=2.5, criterion=HARD),
        INVALID,
        "prefilter is 2.5",
        "criterion HARD_LEARNER",
    ),
    "a prefilter of losses by the learner alone": (
        lambda: losses(LOSSES, LOSSES, prefilter=2.5, criterion=HARD),
        INVALID,
        "prefilter is 2.5",
        "criterion HARD_LEARNER",
    ),
    # similarity
    "losses that are alike": (
        lambda: losses(LOSSES, LOSSES, max_similarity=0.5),
        INVALID,
        "max_similarity is 0.5",
        "losses do not tell",
    ),
    "similarity to nobody": (
        lambda: embedded(max_similarity=0.5, criterion=HARD, pair_criterion=NONE),
        INVALID,
        "max_similarity is 0.5",
        "criterion HARD_LEARNER with pairs by NONE",
    ),
    # recent picks
    "recent picks without a bound": (lambda: recent(embedded()), INVALID, "recent is set", "needs max_similarity"),
    "recent picks of ranks": (
        lambda: as_ranks([recent(embedded(max_similarity=0.5))], world_size=1)[0].set(world_size=2, group="g"),
        EXHAUSTED,
        "world_size is 2",
        "max_pending_requests",
    ),
    "a billion recent picks": (
        lambda: huge(embedded(max_similarity=0.5)),
        EXHAUSTED,
        "recent.image.shape is [1000000000, 8]",
        "at most 200",
    ),
    "more recent picks than candidates are taken": (
        lambda: recent(embedded(max_similarity=0.5), rows=201),
        EXHAUSTED,
        "recent.image.shape is [201, 8]",
        "at most 200",
    ),
    "no recent picks": (
        lambda: recent(embedded(max_similarity=0.5), rows=0),
        INVALID,
        "recent.image.shape is [0, 8]",
        "at least one",
    ),
    "recent picks that are not numbers": (
        lambda: recent(embedded(max_similarity=0.5), bad=NAN),
        INVALID,
        "recent.image is nan at [2, 1]",
        "finite",
    ),
    "recent picks of another width": (
        lambda: recent(embedded(max_similarity=0.5), width=9),
        INVALID,
        "recent.image.shape is [3, 9]",
        "the reference's width is 8",
    ),
    "recent picks of two widths": (
        lambda: recent(embedded(max_similarity=0.5), text_width=9),
        INVALID,
        "recent.text.shape is [3, 9]",
        "[3, 8]",
    ),
    "recent picks wider than anything": (
        lambda: recent(embedded(max_similarity=0.5), width=65),
        EXHAUSTED,
        "recent.image.shape is [3, 65]",
        "width must be 1 to 64",
    ),
    "recent picks of another width than the server's reference": (
        lambda: recent(sent(max_similarity=0.5)),
        INVALID,
        "recent.image.shape is [3, 8]",
        f"the reference's width is {WIDTH}",
    ),
    "recent picks that are no tensor": (
        lambda: edited(embedded(max_similarity=0.5), lambda s: s.recent.SetInParent()),
        INVALID,
        "recent.image.shape is []",
        "at least one",
    ),
    # what the reference makes of samples
    "embeddings of another reference": (
        lambda: brought("0" * 64),
        PRECONDITION,
        f"samples.reference.fingerprint is {'0' * 64}",
        "this server's reference is ",
    ),
    "embeddings of no reference": (lambda: brought(""), INVALID, "samples.reference.fingerprint is ''", "1 to 128"),
    "an endless fingerprint": (
        lambda: brought("f" * 100_000),
        INVALID,
        "samples.reference.fingerprint is 'fff",
        "1 to 128",
    ),
    "a fingerprint that forges log lines": (
        lambda: brought("f\nERROR"),
        INVALID,
        "samples.reference.fingerprint is 'f\\nERROR'",
        "printable",
    ),
    # losses in the learner's place
    "the learner twice": (
        lambda: edited(
            with_losses(LOSSES, REFERENCE, pair_criterion=EASY),
            lambda s: s.embeddings.learner.CopyFrom(s.embeddings.reference),
        ),
        INVALID,
        "embeddings.learner_losses is set",
        "embeddings.learner is set, too",
    ),
    "losses for pairs": (
        lambda: with_losses(LOSSES, REFERENCE),
        INVALID,
        "embeddings.learner_losses is set",
        "pairs by LEARNABILITY",
    ),
    "losses by softmax": (
        lambda: with_losses(LOSSES, REFERENCE, criterion=EASY, loss=SOFTMAX),
        INVALID,
        "embeddings.learner_losses is set",
        "softmax",
    ),
    "fewer losses than candidates": (
        lambda: with_losses(LOSSES[1:], REFERENCE, pair_criterion=EASY),
        INVALID,
        "embeddings.learner_losses.shape is [39]",
        "[40]",
    ),
    "a loss that is not a number": (
        lambda: with_losses(np.where(np.arange(COUNT) == 4, np.nan, LOSSES).astype(np.float32), REFERENCE).set(
            pair_criterion=EASY
        ),
        INVALID,
        "embeddings.learner_losses is nan at [4]",
        "finite",
    ),
    "losses and nothing for pairs": (
        lambda: with_losses(LOSSES, None, pair_criterion=EASY),
        INVALID,
        "embeddings.reference is missing",
        "EASY_REFERENCE",
    ),
    "no learner for pairs of it": (
        lambda: embeddings(None, REFERENCE, criterion=EASY, pair_criterion=HARD),
        INVALID,
        "embeddings.learner is missing",
        "EASY_REFERENCE with pairs by HARD_LEARNER",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_rules_that_cannot_be_are_refused_by_name_and_the_next_request_served(limited, case):
    assert_refused(limited, *CASES[case])


@pytest.fixture(scope="module")
def fingerprint(limited):
    return limited.info().reference.fingerprint


OWN = {
    "not a number": ({"bad": NAN}, INVALID, "samples.reference.embeddings.text is nan at [3, 2]", "finite"),
    "infinite": ({"bad": INF}, INVALID, "samples.reference.embeddings.text is inf at [3, 2]", "finite"),
    "too few": ({"count": 39}, INVALID, "samples.reference.embeddings.image.shape is [39, 16]", "[40, any]"),
    "too wide": ({"width": 65}, EXHAUSTED, "samples.reference.embeddings.image.shape is [40, 65]", "1 to 64"),
}


@pytest.mark.parametrize("case", OWN)
def test_what_a_reference_cannot_have_made_of_samples(limited, fingerprint, case):
    fields, *wanted = OWN[case]
    assert_refused(limited, lambda: brought(fingerprint, **fields), *wanted)


def test_a_reference_does_not_make_embeddings_of_another_width(limited, fingerprint):
    named = f"samples.reference.embeddings.image.shape is [40, {WIDTH + 1}]"
    limit = f"the width of this server's reference is {WIDTH}"
    assert_refused(limited, lambda: brought(fingerprint, width=WIDTH + 1), INVALID, named, limit)


def test_candidates_with_bad_embeddings_are_left_out_if_the_request_says_so(limited, fingerprint):
    reply = limited.select(brought(fingerprint, bad=NAN, bad_samples=EXCLUDE, seed=1))
    assert [(one.reason, list(one.indices)) for one in reply.exclusions] == [(pb.EXCLUSION_REASON_VALUE, [3])]
    assert 3 not in reply.indices


def test_ranks_have_no_recent_picks(patient):
    requests = as_ranks([recent(embedded(max_similarity=0.5)) for _ in range(2)])
    error = patient.refuse(requests[0])
    assert error.code().name == INVALID
    assert error.details() == "recent is set; 2 ranks that select as one have none"


def test_samples_that_nobody_here_can_score(plain_server):
    """Whatever else the request asks for."""
    for request in (
        recent(sent(max_similarity=0.5)),
        brought(),
        name(sent(prefilter=2.0), range(COUNT)),
        sent(pair_criterion=EASY, explore=0.5, return_losses=True),
    ):
        error = plain_server.refuse(request)
        assert error.code().name == PRECONDITION
        assert "start the server with --learner" in error.details()


@pytest.mark.parametrize("field", ["explore", "max_similarity"])
def test_a_policy_of_another_package_draws_in_a_way_of_its_own(sidecar, tmp_path, field):
    server = sidecar(env=with_policies(tmp_path, FIRST, first="First"))
    error = server.refuse(embedded(policy="first", **{field: 0.5}))
    assert error.code().name == INVALID
    assert error.details() == f"{field} is 0.5; policy 'first' draws in a way of its own; leave it unset"
    assert len(server.select(embedded(policy="first", prefilter=2.0)).indices) == 8


def test_uniform_takes_no_notice_of_what_keeps_candidates_out(limited):
    plain = limited.select(embedded(policy="uniform", seed=3))
    for fields in ({"prefilter": NAN}, {"max_similarity": 7.0}, {"explore": -1.0}):
        reply = limited.select(embedded(policy="uniform", seed=3, **fields))
        assert list(reply.indices) == list(plain.indices)
        assert reply.explored == 0
        assert not reply.HasField("prefiltered")


def test_no_refusal_was_an_internal_error(limited):
    """After everything above."""
    assert limited.health() == "SERVING"
    assert "Traceback" not in limited.text, limited.text
    assert limited.metrics()("selector_requests_total", method="Select", code="INTERNAL") is None
    assert len(limited.select(some_losses()).indices) == 4
