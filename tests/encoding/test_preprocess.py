"""Files and texts to a model's input, as its trainer brings them there."""

import io
import threading
import time

import numpy as np
import pytest
from PIL import Image
from support.model import TEXT, write_tokenizer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from selector_server.encoding.bundle import ImageInput, TextInput
from selector_server.encoding.decoder import Decoder
from selector_server.encoding.preprocess import Limits, Preprocessor
from selector_server.engine.request import Request
from selector_server.errors import Abandoned, Exclusion, InvalidRequest, LimitExceeded, NotPossible, Unavailable


@pytest.fixture(scope="module")
def pool():
    with Decoder(2) as pool:
        yield pool


@pytest.fixture
def preprocessor(pool, tmp_path):
    tokenizer = Tokenizer.from_file(str(write_tokenizer(tmp_path / "tokenizer.json")))

    def make(text=TEXT, decoded_bytes=1 << 30, **image):
        spec = ImageInput(**({"height": 16, "width": 16, "channels": 3} | image))
        return Preprocessor(spec, text, tokenizer, "digest", Limits(1 << 20, decoded_bytes), pool)

    return make


def photo(height, width, seed=0):
    """A smooth picture of three colours, as PNG."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [np.sin(x / (3 + seed) + k) * np.cos(y / (4 + k)) * 127 + 128 for k in range(3)]
    image = Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue(), image


@pytest.mark.parametrize("size", [(16, 16), (40, 31), (31, 40), (17, 90), (12, 9)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_squash_and_crop_are_torchvisions(preprocessor, size, interpolation):
    """The oracle is what torchvision's Resize and CenterCrop do, in Pillow's words."""
    file, image = photo(*size)
    how = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    squashed = preprocessor(interpolation=interpolation).pixels([file])[0]
    assert np.array_equal(squashed, np.asarray(image.resize((16, 16), how)))
    high, wide = size
    scaled = (16, int(16 * high / wide)) if wide <= high else (int(16 * wide / high), 16)
    left, top = round((scaled[0] - 16) / 2), round((scaled[1] - 16) / 2)
    cropped = image.resize(scaled, how).crop((left, top, left + 16, top + 16))
    assert np.array_equal(preprocessor(interpolation=interpolation, fit="crop").pixels([file])[0], np.asarray(cropped))


def test_many_files_keep_their_order(preprocessor):
    files = [photo(20, 20, seed)[0] for seed in range(50)]
    together = preprocessor().pixels(files)
    assert all(np.array_equal(together[i], preprocessor().pixels([file])[0]) for i, file in enumerate(files))
    assert len({row.tobytes() for row in together}) == 50


def test_a_bad_file_among_many_is_named(preprocessor):
    files = [photo(20, 20)[0]] * 40
    files[33] = files[33][:200]
    with pytest.raises(InvalidRequest, match=r"samples\.encoded_images\[33\] is 200 bytes"):
        preprocessor().pixels(files)


def test_room_for_decoded_images_is_bounded_before_it_is_taken(preprocessor):
    with pytest.raises(LimitExceeded, match="768000000 bytes decoded; at most 1000000"):
        preprocessor(decoded_bytes=10**6).pixels([b""] * 10**6)


def words(count):
    return " ".join(f"w{i + 1}" for i in range(count)).encode()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ({}, [1, 2, 3, 4]),
        ({"end_token": 63}, [1, 2, 3, 63]),
        ({"end_token": 63, "max_tokens": 8}, [1, 2, 3, 4, 5, 6, 0, 0]),
        ({"max_tokens": 6, "pad_token": 9}, [1, 2, 3, 4, 5, 6]),
        ({"max_tokens": 7, "pad_token": 9}, [1, 2, 3, 4, 5, 6, 9]),
    ],
)
def test_long_texts_are_cut_and_short_ones_filled(preprocessor, text, wanted):
    spec = TextInput(**({"max_tokens": 4, "vocabulary": 64} | text))
    assert preprocessor(text=spec).tokens([words(6)]).tolist() == [wanted]


def test_long_texts_are_refused_where_the_bundle_says_so(preprocessor):
    spec = TextInput(max_tokens=4, vocabulary=64, too_long="refuse")
    with pytest.raises(InvalidRequest, match=r"samples\.strings\[1\] is 5 tokens; at most 4 tokens"):
        preprocessor(text=spec).tokens([words(4), words(5)])


@pytest.mark.parametrize("size", [(1, 65535), (65535, 1), (1, 3000)])
def test_a_hair_of_a_picture_does_not_unroll(preprocessor, size):
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "PNG")
    with pytest.raises(LimitExceeded, match="at most 1048576 pixels once its shorter side is the model's"):
        preprocessor(height=224, width=224, fit="crop").pixels([file.getvalue()])
    assert preprocessor(height=224, width=224).pixels([file.getvalue()]).shape == (1, 224, 224, 3)


def test_work_that_nobody_waits_for_ends(preprocessor):
    caller = Request()
    threading.Timer(0.05, caller.leave).start()
    started = time.monotonic()
    with pytest.raises(Abandoned, match="nobody waits"):
        preprocessor().pixels([photo(500, 500)[0]] * 5000, caller.check)
    assert time.monotonic() - started < 10


def test_a_closed_decoder_stops_at_once(preprocessor):
    decoder = Decoder(1)
    running = threading.Event()

    def slow(index):
        running.set()
        time.sleep(0.05)

    caught = []

    def work():
        try:
            decoder.run(slow, 1000)
        except Unavailable as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    running.wait(5)
    decoder.close()
    thread.join(5)
    assert len(caught) == 1
    with pytest.raises(Unavailable, match="stopping"):
        decoder.run(slow, 3)


def test_many_long_texts_are_tokenised_in_parts(preprocessor):
    spec = TextInput(max_tokens=4, vocabulary=64)
    texts = [b"w5 " * 10_000, b"w6"] * 60
    assert preprocessor(text=spec).tokens(texts).tolist() == [[5, 5, 5, 5], [6, 0, 0, 0]] * 60


# Samples that cannot be used, one by one


def told():
    """What is told of bad samples, and a function that is told."""
    seen: dict[int, tuple[Exclusion, str]] = {}
    return seen, lambda index, error: seen.update({index: (error.exclusion, str(error))})


def test_a_bad_file_is_told_and_the_others_are_decoded(preprocessor):
    good, image = photo(16, 16)
    seen, bad = told()
    pixels = preprocessor().pixels([good, b"", good[:60], good, b"broken"], bad=bad, rows=np.array([0, 1, 2]))
    assert seen.keys() == {1, 2}
    assert seen[2][1].startswith("samples.encoded_images[2] is 60 bytes")
    assert np.array_equal(pixels[0], np.asarray(image))
    assert not pixels[1:].any(), "row 3 was not asked for"
    with pytest.raises(InvalidRequest, match=r"samples.encoded_images\[4\]"):
        preprocessor().pixels([good, good, good, good, b"broken"], rows=np.array([0, 4]))


def test_the_bound_on_all_files_is_nobodys_alone(preprocessor):
    seen, bad = told()
    with pytest.raises(LimitExceeded, match="bytes decoded"):
        preprocessor(decoded_bytes=1000).pixels([photo(16, 16)[0]] * 2, bad=bad)
    assert preprocessor(decoded_bytes=1000).pixels([photo(16, 16)[0]] * 2, bad=bad, rows=np.array([1])).any()
    assert not seen


def test_bad_texts_are_told_and_the_others_tokenised(preprocessor):
    make = preprocessor(TEXT.model_copy(update={"max_tokens": 2, "too_long": "refuse"}))
    seen, bad = told()
    tokens = make.tokens([b"w1 w2", b"\xff", b"w1 w2 w3", b"w4", b"\xff"], bad=bad, rows=np.array([0, 1, 2, 3]))
    assert tokens.tolist() == [[1, 2], [0, 0], [0, 0], [4, 0], [0, 0]]
    assert {index: reason for index, (reason, _) in seen.items()} == {1: Exclusion.TEXT, 2: Exclusion.TOO_LARGE}
    assert seen[2][1] == "samples.strings[2] is 3 tokens; at most 2 tokens"


def test_bad_tokens_are_told_and_the_others_padded(preprocessor):
    seen, bad = told()
    ids = np.zeros((5, TEXT.max_tokens + 2), np.int32)
    ids[:, 0] = [1, 2, 64, 3, -1]
    ids[1, -1] = 9
    tokens = preprocessor().tokens(ids, bad=bad, rows=np.array([0, 1, 2, 3]))
    assert tokens[:, 0].tolist() == [1, 0, 0, 3, 0]
    assert {index: reason for index, (reason, _) in seen.items()} == {1: Exclusion.TOO_LARGE, 2: Exclusion.VALUE}
    assert seen[1][1] == f"samples.tokens[1] is {TEXT.max_tokens + 2} tokens; at most {TEXT.max_tokens} tokens"


def test_a_text_that_the_tokenizer_fails_at_is_that_texts_alone(pool):
    """One without a token for unknown words fails at any text that has one, and at all that come with it."""
    strange = Tokenizer(WordLevel({"w1": 1, "w2": 2}, unk_token="[UNK]"))
    spec = ImageInput(height=16, width=16, channels=3)
    make = Preprocessor(spec, TEXT, strange, "digest", Limits(1 << 20, 1 << 30), pool)
    seen, bad = told()
    tokens = make.tokens([b"w1", b"w3", b"w2"], bad=bad)
    assert tokens[:, 0].tolist() == [1, TEXT.pad_token, 2]
    assert [(index, reason) for index, (reason, _) in seen.items()] == [(1, Exclusion.TEXT)]
    with pytest.raises(NotPossible, match="tokenizer is failing"):
        make.tokens([b"w1", b"w3", b"w2"])
