"""Requests that have candidates left out which cannot be used: each is named with its reason, and the others compete as
if they were alone with their own noise."""

import numpy as np
import pytest
import torch
from selector_proto.v1 import selector_pb2 as pb
from support.excluding import (
    COUNT,
    EXCLUDE,
    FILES,
    IDS,
    JPEG,
    PIXELS,
    TEXTS,
    encoded,
    excluded,
    exclusion,
    opened,
    picked,
    saved,
    tokens,
)
from support.model import POLICIES, TOKENS, plan
from support.refusals import INVALID, assert_goes_on
from support.wire import embeddings, losses, raw, some_embeddings, some_losses

from selector_server.sampling import Criterion, Embedded, PairScores, ScalarScores

# Each reason


CASES = {
    "a damaged JPEG": (lambda: encoded({3: JPEG[:300] + bytes(40)}), "UNREADABLE", "samples.encoded_images[3] is 340"),
    "a PNG that is cut off": (lambda: encoded({3: FILES[3][:60]}), "UNREADABLE", "samples.encoded_images[3] is 60"),
    "no image file": (lambda: encoded({3: b"not an image"}), "FORMAT", "samples.encoded_images[3] is 12 bytes"),
    "an image of many bytes": (
        lambda: encoded({3: bytes(20_001)}),
        "TOO_LARGE",
        "samples.encoded_images[3] is 20001 bytes; at most 20000 bytes",
    ),
    "an image of many pixels": (
        lambda: encoded({3: saved(PIXELS[3], size=(64, 65))}),
        "TOO_LARGE",
        "samples.encoded_images[3] is 65 x 64 pixels; at most 4096 pixels",
    ),
    "a text that is not UTF-8": (lambda: encoded(None, {3: b"\xff\xfe"}), "TEXT", "samples.strings[3] is not UTF-8"),
    "a text of many bytes": (
        lambda: encoded(None, {3: b"w" * 101}),
        "TOO_LARGE",
        "samples.strings[3] is 101 bytes; at most 100 bytes",
    ),
    "a token that the model does not know": (
        lambda: tokens({3: [1, 64, 1, 1, 1, 1]}),
        "VALUE",
        "samples.tokens[3] is 64; ids must be 0 to 63",
    ),
    "a negative token": (lambda: tokens({3: -7}), "VALUE", "samples.tokens[3] is -7; ids must be 0 to 63"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_used_is_left_out_and_the_others_compete(limited, bundles, case):
    build, reason, first = CASES[case]
    reply = limited.select(build())
    assert excluded(reply) == {reason: [3]}
    assert reply.exclusions[0].first.startswith(first)
    assert list(reply.indices) == picked(bundles, [3])
    assert reply.sub_batch_size == len(reply.indices) == 8


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("said", [pb.BAD_SAMPLES_UNSPECIFIED, pb.BAD_SAMPLES_REFUSE])
def test_a_request_that_does_not_say_so_is_refused_whole_as_before(limited, case, said):
    request = CASES[case][0]()
    request.selection.bad_samples = said
    assert limited.refuse(request).code().name in (INVALID, "RESOURCE_EXHAUSTED")
    assert_goes_on(limited)


@pytest.mark.parametrize("policy", ["joint", "independent", "uniform"])
def test_all_kinds_at_once_by_every_policy(server, bundles, policy):
    before = server.metrics()
    files = {0: JPEG[:200], 7: b"GARBAGE", 20: FILES[20][:50], 30: FILES[29]}
    texts = {7: b"\xff", 8: b"\xc3", 30: TEXTS[29]}
    reply = server.select(encoded(files, texts, policy=policy))
    closed = {"UNREADABLE": [0, 20], "FORMAT": [7], "TEXT": [8], "REPEATED": [30]}
    assert excluded(reply) == closed
    indices = [index for rows in closed.values() for index in rows]
    if policy == "uniform":
        scores = ScalarScores(torch.zeros(COUNT), opened(COUNT, indices))
        assert list(reply.indices) == POLICIES["uniform"].pick(scores, plan(8, 1, seed=5)).indices.tolist()
    else:
        assert list(reply.indices) == picked(bundles, indices, policy=policy)
        scores = bundles.scores(PIXELS, IDS).with_open(opened(COUNT, indices))
        assert reply.objective_uniform == pytest.approx(scores.uniform_total(8) / 8, rel=1e-4)
    after = server.metrics()
    for reason, rows in closed.items():
        label = {"reason": reason.lower()}
        counted = after("selector_excluded_total", **label) - before("selector_excluded_total", **label)
        assert counted == len(rows), reason
    assert after("selector_excluded_total", reason="missing") is not None, "every series is there from the start"


def test_the_log_names_the_first_of_each_reason_once_in_a_while(sidecar, bundles):
    server = sidecar(bundles.flags)
    for _ in range(3):
        server.select(encoded({3: b"x", 4: b"y"}, {9: b"\xff"}))
    lines = [line for line in server.text.splitlines() if "excluded as" in line]
    assert len(lines) == 2
    assert "excluded as format: 2 candidates, the first is 3: samples.encoded_images[3] is 1 bytes" in lines[0]
    assert "excluded as text: 1 candidates, the first is 9: samples.strings[9] is not UTF-8" in lines[1]


def test_longer_rows_of_tokens_may_be_padding_only(server, bundles):
    wide = np.zeros((COUNT, TOKENS + 3), np.int64)
    wide[:, :TOKENS] = IDS
    wide[4, TOKENS + 1] = 5
    reply = server.select(raw(PIXELS, wide, bad_samples=EXCLUDE, seed=5))
    assert excluded(reply) == {"TOO_LARGE": [4]}
    assert reply.exclusions[0].first == f"samples.tokens[4] is {TOKENS + 2} tokens; at most {TOKENS} tokens"
    assert list(reply.indices) == picked(bundles, [4])
    assert server.refuse(raw(PIXELS, wide)).code().name == INVALID


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("policy", ["joint", "independent"])
def test_embeddings_that_are_not_finite(plain_server, value, policy):
    learner, reference = some_embeddings(COUNT)
    learner[0][3, 2] = value
    reference[1][[5, 8]] = value
    reply = plain_server.select(embeddings(learner, reference, bad_samples=EXCLUDE, seed=5, policy=policy))
    assert excluded(reply) == {"VALUE": [3, 5, 8]}
    assert reply.exclusions[0].first.startswith("embeddings.learner.image is ")
    clean = some_embeddings(COUNT)
    models = [Embedded.normalise(*map(torch.from_numpy, model[:2]), *model[2:]) for model in clean]
    scores = PairScores(Criterion.LEARNABILITY, *models, open=opened(COUNT, [3, 5, 8]))
    want = POLICIES[policy].pick(scores, plan(8, 8 if policy == "joint" else 1, seed=5))
    assert list(reply.indices) == want.indices.tolist()
    assert reply.objective == pytest.approx(want.total / 8, rel=1e-4)
    error = plain_server.refuse(embeddings(learner, reference))
    assert error.details().startswith("embeddings.learner.image is ")


def test_losses_that_are_not_finite(plain_server):
    values = np.random.default_rng(0).random((2, COUNT), dtype=np.float32)
    values[0, 4], values[1, 9] = np.nan, np.inf
    reply = plain_server.select(losses(*values, bad_samples=EXCLUDE, seed=5))
    assert excluded(reply) == {"VALUE": [4, 9]}
    learner, reference = (torch.from_numpy(np.nan_to_num(side)).double() for side in values)
    scores = ScalarScores(learner - reference, opened(COUNT, [4, 9]))
    assert list(reply.indices) == POLICIES["independent"].pick(scores, plan(8, 1, seed=5)).indices.tolist()
    assert reply.objective_uniform == pytest.approx(scores.uniform_total(8) / 8)


# Repeats


@pytest.mark.parametrize("kind", ["integers", "strings"])
def test_a_resampled_webdataset_ends_with_ids_twice(server, bundles, kind):
    request = raw(PIXELS, IDS, bad_samples=EXCLUDE, seed=5)
    names = np.arange(COUNT) + 100
    names[[17, 30]], names[31] = names[2], names[3]
    if kind == "integers":
        request.selection.sample_ids.integers.CopyFrom(request.add(names))
    else:
        request.selection.sample_ids.strings.CopyFrom(request.pack([str(n).encode() for n in names]))
    reply = server.select(request)
    assert excluded(reply) == {"REPEATED": [17, 30, 31]}
    assert "candidate 2 has the same" in reply.exclusions[0].first
    assert list(reply.indices) == picked(bundles, [17, 30, 31])


def test_without_ids_exact_repeats_are_found_by_their_bytes(server, bundles):
    pixels, ids = PIXELS.copy(), IDS.copy()
    pixels[[11, 12]], ids[[11, 12]] = pixels[2], ids[2]
    pixels[20] = pixels[3]  # the same image with another text is another sample
    ids[21] = ids[4]
    closed = [11, 12]
    reply = server.select(raw(pixels, ids, bad_samples=EXCLUDE, seed=5))
    assert excluded(reply) == {"REPEATED": closed}
    assert reply.exclusions[0].first == "samples[11] is the same sample as samples[2]"
    assert list(reply.indices) == picked(bundles, closed, sides=(pixels, ids))
    files = server.select(encoded({11: FILES[2], 12: FILES[2]}, {11: TEXTS[2], 12: TEXTS[2], 21: TEXTS[4]}))
    assert excluded(files) == {"REPEATED": closed}
    named = raw(pixels, ids, bad_samples=EXCLUDE, seed=5)
    named.selection.sample_ids.integers.CopyFrom(named.add(np.arange(COUNT)))
    assert not server.select(named).exclusions, "the trainer says that they are different"
    assert not server.select(raw(pixels, ids, seed=5)).exclusions


# What the client excludes itself


def test_what_the_client_excludes_is_not_looked_at(server, bundles):
    request = encoded({3: b"", 4: bytes(100), 9: b"broken"}, {5: b"\xff" * 50})
    request.set(exclusions=[exclusion("MISSING", [3, 5], "no caption\nin 00012.tar/7"), exclusion("FORMAT", [4])])
    reply = server.select(request)
    assert excluded(reply) == {"MISSING": [3, 5], "FORMAT": [4, 9]}
    words = {pb.ExclusionReason.Name(one.reason): one.first for one in reply.exclusions}
    assert words["EXCLUSION_REASON_MISSING"] == "no caption in 00012.tar/7"
    assert list(reply.indices) == picked(bundles, [3, 4, 5, 9])


def test_placeholders_may_be_alike_not_finite_or_no_tokens(server, plain_server, bundles):
    pixels, ids = PIXELS.copy(), IDS.astype(np.int64)
    pixels[[3, 9]], ids[[3, 9]] = 0, 10_000
    request = raw(pixels, ids, bad_samples=EXCLUDE, seed=5, exclusions=[exclusion("MISSING", [3, 9])])
    request.selection.sample_ids.integers.CopyFrom(
        request.add(np.where(np.isin(np.arange(COUNT), [3, 9, 20]), 7, np.arange(COUNT) + 50))
    )
    reply = server.select(request)
    assert excluded(reply) == {"MISSING": [3, 9]}, "candidate 20 is the only one of its id that competes"
    assert list(reply.indices) == picked(bundles, [3, 9])
    learner, reference = some_embeddings(COUNT)
    learner[0][3] = np.nan
    request = embeddings(learner, reference, bad_samples=EXCLUDE, exclusions=[exclusion("MISSING", [3])])
    assert excluded(plain_server.select(request)) == {"MISSING": [3]}
    uniform = some_losses(COUNT, policy="uniform", bad_samples=EXCLUDE, exclusions=[exclusion("TEXT", range(16))])
    assert set(plain_server.select(uniform).indices) <= set(range(16, COUNT))


HOSTILE = {
    "twice in one list": ([exclusion("TEXT", [3, 3])], "exclusions[0].indices is 3 after 3; must be ascending"),
    "descending": ([exclusion("TEXT", [3, 9, 4])], "exclusions[0].indices is 4 after 9; must be ascending"),
    "twice in two lists": (
        [exclusion("TEXT", [3]), exclusion("FORMAT", [2, 3])],
        "exclusions[1].indices is 3; no candidate may be excluded twice",
    ),
    "no candidate": (
        [exclusion("TEXT", [3]), exclusion("FORMAT", [19, 20])],
        "exclusions[1].indices is 20; must be below the number of candidates, 20",
    ),
    "far beyond": ([exclusion("TEXT", [2**32 - 1])], "exclusions[0].indices is 4294967295; must be below"),
    "no reason": ([pb.Exclusion(indices=[1])], "exclusions[0].reason is 0; must be one of EXCLUSION_REASON_MISSING"),
    "an unknown reason": ([pb.Exclusion(reason=99, indices=[1])], "exclusions[0].reason is 99; must be one of"),
    "many words": ([exclusion("TEXT", [1], "w" * 301)], "exclusions[0].first is 301 characters; at most 300"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_exclusions_that_make_no_sense(plain_server, case):
    exclusions, message = HOSTILE[case]
    error = plain_server.refuse(some_losses(bad_samples=EXCLUDE, exclusions=exclusions))
    assert error.code().name == INVALID
    assert message in error.details()
    assert_goes_on(plain_server)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bad_samples": 7}, "bad_samples is 7; must be one of BAD_SAMPLES_UNSPECIFIED"),
        ({"max_excluded_share": 0.3}, "max_excluded_share is set; needs bad_samples EXCLUDE"),
        ({"exclusions": [exclusion("TEXT", [1])]}, "exclusions is set; needs bad_samples EXCLUDE"),
        ({"bad_samples": EXCLUDE, "max_excluded_share": 0.0}, "max_excluded_share is 0.0; must be above 0"),
        ({"bad_samples": EXCLUDE, "max_excluded_share": 1.1}, "max_excluded_share is 1.1; must be above 0"),
        ({"bad_samples": EXCLUDE, "max_excluded_share": float("nan")}, "max_excluded_share is nan; must be above 0"),
    ],
)
def test_settings_that_make_no_sense(plain_server, fields, message):
    error = plain_server.refuse(some_losses(**fields))
    assert error.code().name == INVALID
    assert message in error.details()
