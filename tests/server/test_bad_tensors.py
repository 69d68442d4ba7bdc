"""Everything that can be wrong with numbers, sizes and names in a request: the answer names field, value and limit."""

import itertools

import numpy as np
import pytest
from selector_proto.v1 import selector_pb2 as pb
from support.refusals import EXHAUSTED, INVALID, PRECONDITION, assert_refused, edited
from support.wire import BFLOAT16, Request, bfloat16_bits, embeddings, losses, some_embeddings, some_losses

NAN, INF = float("nan"), float("inf")


def embedded(change=lambda models: None, dtype=None, **fields) -> Request:
    """Embeddings of 40 candidates, writable arrays, changed before they are packed."""
    models = [[image.copy(), text.copy(), scale, bias] for image, text, scale, bias in some_embeddings()]
    change(models)
    return embeddings(*models, dtype=dtype, **fields)


def with_value(model, part, where, value):
    def change(models):
        models[model][part][where] = value

    return embedded(change)


def with_logit(position, value):
    def change(models):
        models[0][position] = value

    return embedded(change)


def with_shapes(learner=(40, 8), text=(40, 8)):
    zeros = [np.zeros(shape, np.float32) for shape in (learner, text)]
    return embeddings((*zeros, 1.0, 0.0), some_embeddings()[1])


def bfloat16_nan():
    def change(models):
        models[0][0][1, 1] = NAN
        for model in models:
            model[:2] = [bfloat16_bits(z) for z in model[:2]]

    return embedded(change, dtype=BFLOAT16)


def float16_infinity():
    def change(models):
        for model in models:
            model[:2] = [z.astype(np.float16) for z in model[:2]]
        models[1][0][0, 0] = INF

    return embedded(change)


def loss_tensor(**fields):
    """Losses whose learner tensor says something else than it has."""
    return edited(some_losses(), lambda s: s.losses.learner.MergeFrom(pb.Tensor(**fields)))


def loss_shape(*shape):
    def edit(selection):
        selection.losses.learner.shape[:] = shape

    return edited(some_losses(), edit)


TENSOR = pb.Tensor(dtype=pb.DATA_TYPE_I32, shape=[20])
CASES = {
    # not finite
    "nan in learner images": (
        lambda: with_value(0, 0, (2, 3), NAN),
        INVALID,
        "embeddings.learner.image is nan at [2, 3]",
        "finite",
    ),
    "infinity in learner texts": (
        lambda: with_value(0, 1, (0, 0), INF),
        INVALID,
        "embeddings.learner.text is inf at [0, 0]",
        "finite",
    ),
    "minus infinity in reference images": (
        lambda: with_value(1, 0, (39, 7), -INF),
        INVALID,
        "embeddings.reference.image is -inf at [39, 7]",
        "finite",
    ),
    "nan in reference texts": (
        lambda: with_value(1, 1, (5, 5), NAN),
        INVALID,
        "embeddings.reference.text is nan at [5, 5]",
        "finite",
    ),
    "nan in bf16": (bfloat16_nan, INVALID, "embeddings.learner.image is nan at [1, 1]", "finite"),
    "infinity in fp16": (float16_infinity, INVALID, "embeddings.reference.image is inf at [0, 0]", "finite"),
    "nan loss": (lambda: losses(np.full(20, NAN, np.float32)), INVALID, "losses.learner is nan at [0]", "finite"),
    "nan scale": (lambda: with_logit(2, NAN), INVALID, "embeddings.learner.logit_scale is nan", "positive"),
    "zero scale": (lambda: with_logit(2, 0.0), INVALID, "embeddings.learner.logit_scale is 0.0", "positive"),
    "negative scale": (lambda: with_logit(2, -3.0), INVALID, "embeddings.learner.logit_scale is -3.0", "positive"),
    "infinite scale": (lambda: with_logit(2, INF), INVALID, "embeddings.learner.logit_scale is inf", "at most"),
    "scale that overflows": (
        lambda: with_logit(2, 1e300),
        INVALID,
        "embeddings.learner.logit_scale is 1e+300",
        "at most",
    ),
    "missing scale": (
        lambda: edited(embedded(), lambda s: s.embeddings.learner.ClearField("logit_scale")),
        INVALID,
        "embeddings.learner.logit_scale is missing",
        "positive",
    ),
    "nan bias": (lambda: with_logit(3, NAN), INVALID, "embeddings.learner.logit_bias is nan", "finite"),
    "bias that overflows": (
        lambda: with_logit(3, -1e300),
        INVALID,
        "embeddings.learner.logit_bias is -1e+300",
        "at most",
    ),
    "nan gain": (lambda: some_losses(gain=NAN), INVALID, "gain is nan", "positive"),
    "zero gain": (lambda: some_losses(gain=0.0), INVALID, "gain is 0.0", "positive"),
    "negative gain": (lambda: some_losses(gain=-1.0), INVALID, "gain is -1.0", "positive"),
    "infinite gain": (lambda: some_losses(gain=INF), INVALID, "gain is inf", "at most"),
    "gain that overflows": (
        lambda: embedded(gain=1e308, criterion=pb.CRITERION_EASY_REFERENCE),
        INVALID,
        "gain is 1e+308",
        "at most",
    ),
    # widths, dtypes, shapes
    "text of another width": (
        lambda: with_shapes((40, 8), (40, 9)),
        INVALID,
        "embeddings.learner.text.shape is [40, 9]",
        "[40, 8]",
    ),
    "too wide": (lambda: with_shapes((40, 65)), EXHAUSTED, "embeddings.learner.image.shape is [40, 65]", "64"),
    "no width": (lambda: with_shapes((40, 0)), EXHAUSTED, "embeddings.learner.image.shape is [40, 0]", "1 to 64"),
    "embeddings of another rank": (
        lambda: with_shapes((40, 4, 2)),
        INVALID,
        "embeddings.learner.image.shape is [40, 4, 2]",
        "[40, any]",
    ),
    "integers for embeddings": (
        lambda: edited(embedded(), lambda s: s.embeddings.learner.image.MergeFrom(pb.Tensor(dtype=pb.DATA_TYPE_I32))),
        INVALID,
        "embeddings.learner.image.dtype is I32",
        "FP32 or FP16 or BF16",
    ),
    "no dtype": (
        lambda: edited(some_losses(), lambda s: s.losses.learner.ClearField("dtype")),
        INVALID,
        "losses.learner.dtype is UNSPECIFIED",
        "FP32",
    ),
    "unknown dtype": (lambda: loss_tensor(dtype=99), INVALID, "losses.learner.dtype is 99", "FP32"),
    "negative dimension": (lambda: loss_shape(-20), INVALID, "losses.learner.shape is [-20]", "at least one"),
    "hundred thousand dimensions": (
        lambda: loss_shape(20, *itertools.repeat(1, 100_000)),
        INVALID,
        "losses.learner.shape is [20, 1, 1",
        "must be [20]",
    ),
    "offset past the payload": (
        lambda: loss_tensor(offset=150),
        INVALID,
        "losses.learner.offset is 150",
        "ends at byte 230 of 160",
    ),
    "offset that overflows": (
        lambda: loss_tensor(offset=2**64 - 1),
        INVALID,
        "losses.learner.offset is 18446744073709551615",
        "of 160",
    ),
    # counts
    "empty batch": (lambda: losses(np.zeros(0, np.float32)), INVALID, "losses.learner.shape is [0]", "at least one"),
    "no shape": (lambda: loss_shape(), INVALID, "losses.learner.shape is []", "at least one"),
    "too many candidates": (
        lambda: losses(np.zeros(201, np.float32)),
        EXHAUSTED,
        "losses.learner.shape is [201]",
        "at most 200",
    ),
    "fewer rows in the reference": (
        lambda: embeddings(some_embeddings(40)[0], some_embeddings(39)[1]),
        INVALID,
        "embeddings.reference.image.shape is [39, 8]",
        "[40, any]",
    ),
    "fewer texts in the learner": (
        lambda: with_shapes((40, 8), (39, 8)),
        INVALID,
        "embeddings.learner.text.shape is [39, 8]",
        "[40, 8]",
    ),
    "fewer reference losses": (
        lambda: losses(np.zeros(20, np.float32), np.zeros(19, np.float32)),
        INVALID,
        "losses.reference.shape is [19]",
        "[20]",
    ),
    # how many to pick
    "b over B": (
        lambda: embedded(sub_batch_size=41),
        INVALID,
        "sub_batch_size is 41",
        "1 to the number of candidates, 40",
    ),
    "b is 0": (lambda: embedded(sub_batch_size=0), INVALID, "sub_batch_size is 0", "1 to the number of candidates, 40"),
    "N over b": (lambda: embedded(chunks=9), INVALID, "chunks is 9", "at most the number of picks, 8"),
    **{
        f"f is {ratio}": (
            lambda ratio=ratio: embedded(filter_ratio=ratio),
            INVALID,
            f"filter_ratio is {float(ratio)}",
            "between 0 and 1",
        )
        for ratio in (0.0, 1.0, -0.5, 1.5, NAN, INF)
    },
    "f leaves none": (lambda: embedded(filter_ratio=0.99), INVALID, "filter_ratio is 0.99", "no pick of 40"),
    # names and enums
    "unknown policy": (
        lambda: embedded(policy="jiont"),
        INVALID,
        "policy is 'jiont'",
        "independent, joint, uniform",
    ),
    "endless policy": (lambda: embedded(policy="x" * 100_000), INVALID, "policy is 'xxx", "joint"),
    "joint needs pairs": (lambda: some_losses(policy="joint"), INVALID, "policy is 'joint'", "needs pairs"),
    "unknown criterion": (lambda: embedded(criterion=99), INVALID, "criterion is 99", "CRITERION_LEARNABILITY"),
    "unknown draw": (lambda: some_losses(draw=99), INVALID, "draw is 99", "DRAW_TOP_K"),
    "too many chunks": (
        lambda: some_losses(200, filter_ratio=0.5, chunks=33),
        EXHAUSTED,
        "chunks is 33",
        "at most 32",
    ),
    "unknown loss": (lambda: some_losses(loss=99), INVALID, "loss is 99", "LOSS_SIGMOID, LOSS_SOFTMAX"),
    "long request id": (lambda: some_losses(request_id="x" * 129), INVALID, "request_id is 'xxx", "128"),
    "request id that forges log lines": (
        lambda: some_losses(request_id="a\nb"),
        INVALID,
        "request_id is 'a\\nb'",
        "printable",
    ),
    "a rank without others": (lambda: some_losses(rank=1), INVALID, "rank is 1", "must be below world_size, 0"),
    "world size": (
        lambda: some_losses(world_size=2),
        EXHAUSTED,
        "world_size is 2",
        "max_pending_requests of this server, 1",
    ),
    "tags": (lambda: some_losses(19, tags=TENSOR), INVALID, "tags.shape is [20]", "must be [19]"),
    # what is there and what is not
    "nothing to choose from": (
        lambda: Request().set(seed=1),
        INVALID,
        "candidates is missing",
        "samples, embeddings or losses",
    ),
    "no learner embeddings": (
        lambda: embeddings(None, some_embeddings()[1]),
        INVALID,
        "embeddings.learner is missing",
        "LEARNABILITY",
    ),
    "no reference embeddings": (
        lambda: embeddings(some_embeddings()[0], None),
        INVALID,
        "embeddings.reference is missing",
        "LEARNABILITY",
    ),
    "no texts in the learner": (
        lambda: edited(embedded(), lambda s: s.embeddings.learner.ClearField("text")),
        INVALID,
        "embeddings.learner.text.dtype is UNSPECIFIED",
        "FP32",
    ),
    "no reference losses": (
        lambda: losses(np.zeros(20, np.float32)),
        INVALID,
        "losses.reference is missing",
        "LEARNABILITY",
    ),
    # payload
    "payload shorter than declared": (
        lambda: some_losses(payload_bytes=161),
        INVALID,
        "payload is 160 bytes",
        "payload_bytes says 161",
    ),
    "payload longer than declared": (
        lambda: some_losses(payload_bytes=159),
        INVALID,
        "payload is over 160 bytes",
        "payload_bytes says 159",
    ),
    "payload over the limit": (
        lambda: some_losses(payload_bytes=(1 << 20) + 1),
        EXHAUSTED,
        "payload_bytes is 1048577",
        "at most 1048576",
    ),
    "absurd payload": (
        lambda: some_losses(payload_bytes=2**64 - 1),
        EXHAUSTED,
        "payload_bytes is 18446744073709551615",
        "at most 1048576",
    ),
    # state
    "another run": (lambda: some_losses(run="other"), PRECONDITION, "run is 'other'", "'the-run'"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_numbers_sizes_and_names_are_refused_by_name_and_the_next_request_served(limited, case):
    assert_refused(limited, *CASES[case])


def test_no_refusal_costs_the_server_its_health_or_its_log_a_traceback(limited):
    """After everything above."""
    assert limited.health() == "SERVING"
    assert limited.pending() == 0
    assert "Traceback" not in limited.text, limited.text
    assert limited.metrics()("selector_requests_total", method="Select", code="INTERNAL") is None
    assert limited.metrics()("selector_requests_total", method="Select", code="INVALID_ARGUMENT") > 50
