"""Everything that can be wrong with images, texts and tokens: the answer names field, value and limit."""

import io
import struct
import zlib

import grpc
import numpy as np
import pytest
from PIL import Image
from selector_proto.v1 import selector_pb2 as pb
from support.model import SIDE, samples
from support.refusals import EXHAUSTED, INVALID, PRECONDITION, assert_refused, edited
from support.wire import Request, error_info, raw

PIXELS, IDS = samples(20)


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


CASES = {
    # widths, dtypes, shapes
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
    # counts
    "empty images": (
        lambda: raw(PIXELS[:0], IDS[:0]),
        INVALID,
        "samples.pixels.shape is [0, 8, 8, 3]",
        "at least one",
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
    # what is there and what is not
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
    "JPEG 2000": (
        lambda: files(saved(Image.fromarray(PIXELS[0]), "JPEG2000")),
        INVALID,
        "samples.encoded_images[0] is",
        "JPEG, PNG, WebP, AVIF, GIF, BMP or TIFF",
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


@pytest.mark.parametrize("case", CASES)
def test_bad_samples_are_refused_by_name_and_the_next_request_served(limited, case):
    assert_refused(limited, *CASES[case])


def test_mutated_images_are_refused_or_decoded_but_never_break_the_server(limited):
    """Single bytes changed anywhere in real files of each format."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    for kind in ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF"):
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


def test_raw_samples_without_models(plain_server):
    for criterion, model in ((1, "learner"), (2, "reference"), (3, "learner")):
        error = plain_server.refuse(raw(PIXELS, IDS, criterion=criterion))
        assert error.code().name == PRECONDITION
        assert error.details().startswith(f"samples is {pb.Criterion.Name(criterion).removeprefix('CRITERION_')}")
        assert model in error_info(error)["limit"]
    uniform = plain_server.select(raw(PIXELS, IDS, policy="uniform"))
    assert len(uniform.indices) == 4, "uniform needs no model"
