"""Everything that can be wrong with a request: the answer names field, value and limit, and the server goes on."""

import io
import itertools
import struct
import time
import zlib

import grpc
import numpy as np
import pytest
from PIL import Image
from selector_proto.v1 import selector_pb2 as pb
from support.model import SIDE, samples
from support.processes import SlowClient
from support.wire import (
    BFLOAT16,
    Request,
    bfloat16_bits,
    embeddings,
    error_info,
    losses,
    raw,
    some_embeddings,
    some_losses,
)

INVALID, EXHAUSTED, PRECONDITION = "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"
PIXELS, IDS = samples(20)
NAN, INF = float("nan"), float("inf")
LIMITS = {
    "max_payload_bytes": 1 << 20,
    "max_super_batch": 200,
    "max_width": 64,
    "max_chunks": 32,
    "max_image_bytes": 20_000,
    "max_image_pixels": 4096,
    "max_text_bytes": 100,
    "max_pending_requests": 1,
    "max_inflight_bytes": 2 << 20,
    "receive_seconds": 1.0,
    "run": "the-run",
}


@pytest.fixture(scope="module")
def limited(start_sidecars, bundles):
    """A server with both models and small limits."""
    with start_sidecars() as start:
        yield start(bundles.flags | LIMITS)


def assert_goes_on(server):
    assert len(server.select(some_losses()).indices) == 4


# Requests with one thing wrong each


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


def edited(request, edit) -> Request:
    edit(request.selection)
    return request


def loss_tensor(**fields):
    """Losses whose learner tensor says something else than it has."""
    return edited(some_losses(), lambda s: s.losses.learner.MergeFrom(pb.Tensor(**fields)))


def loss_shape(*shape):
    def edit(selection):
        selection.losses.learner.shape[:] = shape

    return edited(some_losses(), edit)


def pixel_shape(*shape):
    def edit(selection):
        selection.samples.pixels.shape[:] = shape

    return edited(raw(PIXELS, IDS), edit)


def files(*contents, texts=None, **fields) -> Request:
    request = Request()
    request.selection.samples.encoded_images.CopyFrom(request.pack(contents))
    if texts is None:
        request.selection.samples.tokens.CopyFrom(request.add(IDS[: len(contents)]))
    else:
        request.selection.samples.strings.CopyFrom(request.pack(texts))
    return request.set(**({"sub_batch_size": 1} | fields))


def saved(image, kind) -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


GOOD = saved(Image.fromarray(PIXELS[0]), "PNG")


def png_header(width, height) -> bytes:
    """A PNG that promises a size and holds nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def lengths(values, dtype=np.int32) -> Request:
    def edit(request):
        tensor = request.add(np.array(values, dtype))
        request.selection.samples.encoded_images.lengths.CopyFrom(tensor)

    request = files(GOOD, GOOD)
    edit(request)
    return request


def ids(values) -> Request:
    return raw(PIXELS[:2], np.array(values), sub_batch_size=1)


def reserved(**fields) -> Request:
    return some_losses(**fields)


def of_size(**fields):
    """A choice of size for 40 candidates."""
    return embedded(**fields)


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
    "float pixels": (
        lambda: raw(PIXELS.astype(np.float32), IDS),
        INVALID,
        "samples.pixels.dtype is FP32",
        "U8",
    ),
    "float tokens": (
        lambda: raw(PIXELS, IDS.astype(np.float32)),
        INVALID,
        "samples.tokens.dtype is FP32",
        "I32 or I64",
    ),
    "pixels of another size": (
        lambda: raw(np.zeros((20, 4, 4, 3), np.uint8), IDS),
        INVALID,
        "samples.pixels.shape is [20, 4, 4, 3]",
        "[B, 8, 8, 3]",
    ),
    "grey pixels": (
        lambda: raw(PIXELS[..., :1], IDS),
        INVALID,
        "samples.pixels.shape is [20, 8, 8, 1]",
        "[B, 8, 8, 3]",
    ),
    "negative dimension": (lambda: loss_shape(-20), INVALID, "losses.learner.shape is [-20]", "at least one"),
    "negative inner dimension": (
        lambda: pixel_shape(20, -8, -8, 3),
        INVALID,
        "samples.pixels.shape is [20, -8, -8, 3]",
        "must be",
    ),
    "dimensions that overflow": (
        lambda: pixel_shape(20, 2**62, 2**62, 3),
        INVALID,
        "samples.pixels.",
        "",
    ),
    "empty tensor of dimensions that overflow": (
        lambda: pixel_shape(20, 2**62, 2**62, 0),
        INVALID,
        "samples.pixels.shape is [20, 4611686018427387904",
        "",
    ),
    "dimensions that wrap to a small product": (
        lambda: pixel_shape(20, 2**32, 2**32, 16),
        INVALID,
        "samples.pixels.",
        "",
    ),
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
    "empty images": (
        lambda: raw(PIXELS[:0], IDS[:0]),
        INVALID,
        "samples.pixels.shape is [0, 8, 8, 3]",
        "at least one",
    ),
    "no shape": (lambda: loss_shape(), INVALID, "losses.learner.shape is []", "at least one"),
    "too many candidates": (
        lambda: losses(np.zeros(201, np.float32)),
        EXHAUSTED,
        "losses.learner.shape is [201]",
        "at most 200",
    ),
    "fewer texts than images": (
        lambda: raw(PIXELS, IDS[:19]),
        INVALID,
        "samples.tokens.shape is [19, 6]",
        "[20, any]",
    ),
    "fewer strings than files": (
        lambda: files(GOOD, GOOD, texts=[b"w1"]),
        INVALID,
        "samples.strings.lengths.shape is [1]",
        "[2]",
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
        lambda: of_size(sub_batch_size=41),
        INVALID,
        "sub_batch_size is 41",
        "1 to the number of candidates, 40",
    ),
    "b is 0": (lambda: of_size(sub_batch_size=0), INVALID, "sub_batch_size is 0", "1 to the number of candidates, 40"),
    "N over b": (lambda: of_size(chunks=9), INVALID, "chunks is 9", "at most the number of picks, 8"),
    **{
        f"f is {ratio}": (
            lambda ratio=ratio: of_size(filter_ratio=ratio),
            INVALID,
            f"filter_ratio is {float(ratio)}",
            "between 0 and 1",
        )
        for ratio in (0.0, 1.0, -0.5, 1.5, NAN, INF)
    },
    "f leaves none": (lambda: of_size(filter_ratio=0.99), INVALID, "filter_ratio is 0.99", "no pick of 40"),
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
    # reserved for later
    "a rank without others": (lambda: reserved(rank=1), INVALID, "rank is 1", "must be below world_size, 0"),
    "world size": (
        lambda: reserved(world_size=2),
        EXHAUSTED,
        "world_size is 2",
        "max_pending_requests of this server, 1",
    ),
    "tags": (lambda: reserved(tags=TENSOR), INVALID, "tags is set", "unset"),
    # what is there and what is not
    "nothing to choose from": (
        lambda: Request().set(seed=1),
        INVALID,
        "candidates is missing",
        "samples, embeddings or losses",
    ),
    "no images": (
        lambda: edited(raw(PIXELS, IDS), lambda s: s.samples.ClearField("pixels")),
        INVALID,
        "samples.images is missing",
        "pixels or encoded_images",
    ),
    "no texts": (
        lambda: edited(raw(PIXELS, IDS), lambda s: s.samples.ClearField("tokens")),
        INVALID,
        "samples.texts is missing",
        "tokens or strings",
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
    # tokens and texts
    "token outside the vocabulary": (lambda: ids([[1, 2], [3, 64]]), INVALID, "samples.tokens is 64", "0 to 63"),
    "negative token": (lambda: ids([[1, -7], [3, 0]]), INVALID, "samples.tokens is -7", "0 to 63"),
    "huge token": (lambda: ids([[1, 2**62], [3, 0]]), INVALID, f"samples.tokens is {2**62}", "0 to 63"),
    "too many tokens": (lambda: ids([[1] * 7] * 2), INVALID, "samples.tokens.shape is [2, 7]", "at most 6"),
    "not UTF-8": (
        lambda: files(GOOD, GOOD, texts=[b"fine", b"\xff\xfe"]),
        INVALID,
        "samples.strings[1] is not UTF-8",
        "",
    ),
    "long text": (
        lambda: files(GOOD, texts=[b"w" * 101]),
        INVALID,
        "samples.strings.lengths is 101",
        "0 to 100",
    ),
    # images
    "not an image": (lambda: files(GOOD, b"not an image"), INVALID, "samples.encoded_images[1] is 12 bytes", "JPEG"),
    "empty file": (lambda: files(b"", GOOD), INVALID, "samples.encoded_images[0] is 0 bytes", "PNG"),
    "cut PNG": (
        lambda: files(GOOD, GOOD[:60]),
        INVALID,
        "samples.encoded_images[1] is 60 bytes",
        "PNG",
    ),
    "cut JPEG": (
        lambda: files(saved(Image.fromarray(PIXELS[0]), "JPEG")[:200]),
        INVALID,
        "samples.encoded_images[0] is 200 bytes",
        "JPEG",
    ),
    "GIF": (
        lambda: files(saved(Image.fromarray(PIXELS[0]), "GIF")),
        INVALID,
        "samples.encoded_images[0] is",
        "JPEG, PNG, WEBP",
    ),
    "many pixels": (
        lambda: files(saved(Image.new("RGB", (64, 65)), "PNG")),
        EXHAUSTED,
        "samples.encoded_images[0] is 65 x 64 pixels",
        "at most 4096 pixels",
    ),
    "decompression bomb": (
        lambda: files(GOOD, png_header(5_000, 5_000)),
        EXHAUSTED,
        "samples.encoded_images[1] is 5000 x 5000 pixels",
        "at most 4096 pixels",
    ),
    "huge decompression bomb": (
        lambda: files(GOOD, png_header(50_000, 50_000)),
        EXHAUSTED,
        "samples.encoded_images[1] is ",
        "at most 4096 pixels",
    ),
    "large file": (
        lambda: files(bytes(20_001)),
        INVALID,
        "samples.encoded_images.lengths is 20001",
        "0 to 20000 bytes",
    ),
    "negative length": (lambda: lengths([-1, 5]), INVALID, "samples.encoded_images.lengths is -1", "0 to 20000"),
    "lengths that overflow": (
        lambda: lengths([2**62, 2**62], np.int64),
        INVALID,
        f"samples.encoded_images.lengths is {2**62}",
        "0 to 20000",
    ),
    "lengths that do not add up": (
        lambda: lengths([len(GOOD), len(GOOD) - 1]),
        INVALID,
        f"samples.encoded_images.data is {2 * len(GOOD)} bytes",
        f"add up to {2 * len(GOOD) - 1}",
    ),
    # state
    "another run": (lambda: some_losses(run="other"), PRECONDITION, "run is 'other'", "'the-run'"),
    "weights that are not there yet": (
        lambda: raw(PIXELS, IDS, min_weights_version=3),
        PRECONDITION,
        "min_weights_version is 3",
        "version 0 is served",
    ),
    "trainer step that overflows": (
        lambda: raw(PIXELS, IDS, trainer_step=2**64 - 1),
        INVALID,
        "trainer_step is 18446744073709551615",
        "at most 9223372036854775807",
    ),
}
REASONS = {
    INVALID: {"INVALID_REQUEST", "MALFORMED"},
    EXHAUSTED: {"LIMIT_EXCEEDED"},
    PRECONDITION: {"NOT_POSSIBLE", "STALE_WEIGHTS"},
}


@pytest.mark.parametrize("case", CASES)
def test_bad_request_is_refused_by_name_and_the_next_one_served(limited, case):
    build, code, named, limit = CASES[case]
    error = limited.refuse(build())
    assert error.code().name == code, error.details()
    assert error.details().startswith(named)
    info = error_info(error)
    assert limit in info["limit"]
    assert info["limit"].strip()
    assert info["reason"] in REASONS[code]
    assert error.details() == f"{info['field']} is {info['value']}; {info['limit']}"
    assert len(error.details()) < 1000
    assert_goes_on(limited)


# Streams that break the rules


def test_stream_without_messages_or_selection(limited):
    selection = some_losses().messages()[0].selection
    for messages in ([], [pb.SelectRequest(payload=b"x")], [pb.SelectRequest(), pb.SelectRequest(selection=selection)]):
        error = limited.refuse(messages)
        assert (error.code().name, error.details()) == (
            INVALID,
            "selection is missing; the first message must carry it",
        )
        assert error_info(error)["field"] == "selection"
    assert_goes_on(limited)


def test_selection_sent_twice(limited):
    first = some_losses().messages()[0]
    error = limited.refuse([pb.SelectRequest(selection=first.selection), first])
    assert (error.code().name, error.details()) == (
        INVALID,
        "selection is set again; only the first message may carry it",
    )
    assert_goes_on(limited)


def test_endless_stream_is_cut_at_the_declared_length(limited):
    first = some_losses().messages()[0]
    sent = itertools.count()

    def messages():
        yield first
        for _ in range(10_000):
            next(sent)
            yield pb.SelectRequest(payload=bytes(100_000))

    error = limited.refuse(messages())
    assert (error.code().name, error.details()) == (INVALID, "payload is over 100160 bytes; payload_bytes says 160")
    assert next(sent) < 10_000
    assert_goes_on(limited)


def test_message_over_4_mib(plain_server):
    request = losses(np.zeros(1_100_000, np.float32), np.zeros(1_100_000, np.float32))
    request.cut = 5 << 20
    error = plain_server.refuse(request)
    assert error.code().name == EXHAUSTED
    assert "4194304" in error.details()
    assert_goes_on(plain_server)


def test_later_message_over_4_mib(plain_server):
    request = losses(np.zeros(1_000_000, np.float32), np.zeros(1_000_000, np.float32))
    first, second = request.messages()[0], pb.SelectRequest(payload=bytes(5 << 20))
    error = plain_server.refuse([first, second])
    assert error.code().name == EXHAUSTED
    assert "4194304" in error.details()
    assert_goes_on(plain_server)


@pytest.mark.parametrize(
    "messages",
    [
        [b"\xff\xff\xff\xff"],
        [some_losses(policy="QQQQ").messages()[0].SerializeToString().replace(b"QQQQ", b"\xff\xff\xff\xff")],
        [pb.SelectRequest(selection=some_losses(payload_bytes=9).selection).SerializeToString(), b"\xff"],
    ],
    ids=["no message", "policy that is not UTF-8", "broken later message"],
)
def test_bytes_that_are_no_message(limited, messages):
    call = limited.channel.stream_unary("/selector.v1.SelectorService/Select")
    with pytest.raises(grpc.RpcError) as caught:
        call(iter(messages), timeout=10)
    assert caught.value.code().name == INVALID
    assert caught.value.details() == "message is unreadable; must be a selector.v1.SelectRequest"
    assert_goes_on(limited)


# Clients that take a permit and keep it


def test_overload_is_refused_at_once_and_ends_with_its_cause(sidecar):
    server = sidecar({"max_pending_requests": 2, "max_inflight_bytes": 500, "receive_seconds": 600})
    first = SlowClient(server)
    server.wait_pending(1)
    # Bytes: 160 are under way.
    error = server.refuse(some_losses(45))
    assert (error.code().name, error.details()) == (EXHAUSTED, "payload bytes of all requests is 532; at most 500")
    assert error_info(error)["reason"] == "OVERLOADED"
    assert_goes_on(server)
    # Requests: two are under way.
    second = SlowClient(server)
    server.wait_pending(2)
    started = time.monotonic()
    error = server.refuse(some_losses())
    assert time.monotonic() - started < 2, "refused, not queued"
    assert (error.code().name, error.details()) == (EXHAUSTED, "pending requests is 2; at most 2")
    assert error_info(error)["reason"] == "OVERLOADED"
    assert server.health() == "SERVING"
    # A permit comes back when its request is answered, when its client leaves, and when its deadline passes.
    assert len(first.finish().indices) == 4
    assert_goes_on(server)
    second.leave()
    server.wait_pending(0)
    late = SlowClient(server, timeout=0.3)
    with pytest.raises(grpc.RpcError) as caught:
        late.call.result()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    server.wait_pending(0)
    late.leave()
    assert server.metrics()("selector_inflight_bytes") == 0
    assert_goes_on(server)


def test_a_client_that_goes_silent_loses_its_permit(limited):
    started = time.monotonic()
    slow = SlowClient(limited)
    with pytest.raises(grpc.RpcError) as caught:
        slow.call.result(timeout=20)
    error = caught.value
    slow.leave()
    assert 0.9 < time.monotonic() - started < 10
    assert error.code().name == "DEADLINE_EXCEEDED"
    assert error.details() == "stream is silent; the next message must come within 1.0 s"
    assert error_info(error)["reason"] == "TOO_LATE"
    assert_goes_on(limited)


def test_raw_samples_without_models(plain_server):
    for criterion, model in ((1, "learner"), (2, "reference"), (3, "learner")):
        error = plain_server.refuse(raw(PIXELS, IDS, criterion=criterion))
        assert error.code().name == PRECONDITION
        assert error.details().startswith(f"samples is {pb.Criterion.Name(criterion).removeprefix('CRITERION_')}")
        assert model in error_info(error)["limit"]
    uniform = plain_server.select(raw(PIXELS, IDS, policy="uniform"))
    assert len(uniform.indices) == 4, "uniform needs no model"


def test_no_refusal_costs_the_server_its_health_or_its_log_a_traceback(limited):
    """After everything above."""
    assert limited.health() == "SERVING"
    assert limited.pending() == 0
    assert "Traceback" not in limited.text, limited.text
    assert limited.metrics()("selector_requests_total", method="Select", code="INTERNAL") is None
    assert limited.metrics()("selector_requests_total", method="Select", code="INVALID_ARGUMENT") > 50


def test_mutated_images_are_refused_or_decoded_but_never_break_the_server(limited):
    """Single bytes changed anywhere in real files of each format."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    for kind in ("PNG", "JPEG", "WEBP"):
        whole = saved(image, kind)
        for _ in range(60):
            broken = bytearray(whole)
            for position in rng.integers(0, len(whole), 3):
                broken[position] = rng.integers(0, 256)
            try:
                assert len(limited.select(files(bytes(broken))).indices) == 1
            except grpc.RpcError as error:
                assert error.code().name in (INVALID, EXHAUSTED), error.details()
                assert error.details().startswith("samples.encoded_images[0] is ")
