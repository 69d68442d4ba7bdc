"""Image files of every format that is served: what comes out, what is refused and why, and what it may cost."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from selector_server.encoding import image_files
from selector_server.encoding.avif_bounds import avif_pixels
from selector_server.errors import Exclusion, InvalidRequest, LimitExceeded

COLOUR = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8))
OTHER = COLOUR.rotate(180)
LIMIT = 32 << 20


def saved(image, kind, **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def decoded(file, mode="RGB", most_pixels=LIMIT):
    with image_files.opened(file, "it", most_pixels) as image:
        return np.asarray(image_files.colours(image, mode))


def size(file, most_pixels=LIMIT):
    with image_files.opened(file, "it", most_pixels) as image:
        return image.size


def refused(file, kind, exclusion, match, most_pixels=LIMIT):
    with pytest.raises(kind, match=match) as caught:
        decoded(file, most_pixels=most_pixels)
    assert caught.value.exclusion is exclusion
    assert caught.value.field == "it"


# What comes out


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_format_comes_out_as_pillow_converts_it(kind, mode):
    file = saved(COLOUR, kind)
    assert np.array_equal(decoded(file, mode), np.asarray(Image.open(io.BytesIO(file)).convert(mode)))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF"])
def test_the_first_frame_or_page_counts(kind):
    file = saved(COLOUR, kind, save_all=True, append_images=[OTHER] * 3)
    alone = saved(COLOUR, kind)
    assert np.abs(decoded(file).astype(int) - decoded(alone)).max() <= (0 if kind in ("PNG", "TIFF") else 40)


@pytest.mark.parametrize("how", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group3", "group4"])
def test_ordinary_compressions_of_tiff(how):
    file = saved(COLOUR.convert("1") if how.startswith("group") else COLOUR, "TIFF", compression=how)
    assert np.array_equal(decoded(file), np.asarray(Image.open(io.BytesIO(file)).convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_colours_come_out_as_before_and_nothing_is_warned_of(mode):
    """Transparency is dropped: what lies under it shows."""
    image = COLOUR.convert("RGBA" if mode == "RGBA" else mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(77)
    how = {"transparency": bytes(range(256))} if mode == "P" else {}
    file = saved(image, "JPEG" if mode == "CMYK" else "PNG", **how)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(decoded(file), expected)
    if mode == "RGBA":
        assert np.array_equal(decoded(file), np.asarray(COLOUR))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_the_orientation_in_exif_is_not_applied_but_by_tiff(kind):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    assert decoded(saved(COLOUR, kind, exif=exif)).shape == ((16, 12, 3) if kind == "TIFF" else (12, 16, 3))


# Deep grey


DEEP = np.linspace(0, 65535, 60).reshape(6, 10).astype(np.uint16)


@pytest.mark.parametrize(
    "file",
    [
        saved(Image.fromarray(DEEP), "PNG"),
        saved(Image.fromarray(DEEP), "TIFF"),
        saved(Image.fromarray(DEEP), "TIFF", compression="tiff_adobe_deflate"),
        saved(Image.fromarray(DEEP.astype(">u2")), "TIFF"),
        saved(Image.fromarray(~DEEP), "TIFF", tiffinfo={262: 0}),
    ],
    ids=["PNG", "TIFF", "deflated TIFF", "big-endian TIFF", "TIFF whose 0 is white"],
)
def test_grey_of_16_bits_is_scaled_not_cut_off(file):
    """Pillow's own conversion makes all above 255 white: 99.6 % of the values."""
    expected = np.round(DEEP / 257).astype(np.uint8)
    assert np.array_equal(decoded(file, "L"), expected)
    assert np.array_equal(decoded(file), np.repeat(expected[..., None], 3, axis=2))


def png(width, height, depth, colour, rows):
    """A PNG that Pillow cannot write."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)], ids=["RGB", "LA", "RGBA"])
def test_colour_of_16_bits_is_right_to_one_of_255(colour, channels):
    """Pillow keeps the upper byte."""
    file = png(10, 6, 16, colour, [np.repeat(row[:, None], channels, 1).astype(">u2").tobytes() for row in DEEP])
    assert np.abs(decoded(file)[..., 0] - DEEP / 257).max() <= 1


# Large JPEGs


def jpeg_of(width, height, **how):
    """A JPEG whose header says another size than it has."""
    file = bytearray(saved(COLOUR, "JPEG", **how))
    at = max(file.find(b"\xff\xc0"), file.find(b"\xff\xc2"))
    file[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(file)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (8192, 4096, (8192, 4096)),  # as many as ever were decoded: in full
        (8192, 4097, (4096, 2049)),
        (8000, 6000, (4000, 3000)),
        (12000, 9000, (6000, 4500)),
        (16320, 12240, (4080, 3060)),
        (40000, 30000, (5000, 3750)),
        (65535, 600, (32768, 300)),
    ],
    ids=["32 Mi", "a row more", "48 MP", "108 MP", "200 MP", "1200 MP", "panorama"],
)
def test_large_jpegs_are_decoded_at_a_reduced_size(width, height, expected):
    assert size(jpeg_of(width, height)) == expected
    assert size(jpeg_of(width, height), most_pixels=LIMIT * 8) == expected, "no setting changes what comes out"


def test_a_jpeg_of_48_megapixels_looks_as_it_should():
    image = Image.linear_gradient("L").resize((8000, 6000))
    found = decoded(saved(image, "JPEG", quality=90), "L")
    assert found.shape == (3000, 4000)
    assert np.abs(found.astype(int) - np.asarray(image.reduce(2))).max() <= 6


def test_even_reduced_a_jpeg_has_a_limit():
    refused(jpeg_of(65000, 65000), LimitExceeded, Exclusion.TOO_LARGE, "65000 x 65000 pixels; at most 33554432 pixels")
    refused(jpeg_of(2000, 1000), LimitExceeded, Exclusion.TOO_LARGE, "1000 x 2000 pixels", most_pixels=1 << 20)
    refused(saved(Image.new("1", (8000, 6000)), "PNG"), LimitExceeded, Exclusion.TOO_LARGE, "6000 x 8000 pixels")


def test_a_large_progressive_jpeg_counts_what_its_decoder_keeps():
    match = "9000 x 12000 pixels; at most 67108864 pixels for one that is progressive"
    assert size(jpeg_of(8000, 6000, progressive=True)) == (4000, 3000)
    refused(jpeg_of(12000, 9000, progressive=True), LimitExceeded, Exclusion.TOO_LARGE, match)
    scans = jpeg_of(8000, 6000, progressive=True) + b"\xff\xda" * 101
    refused(scans, InvalidRequest, Exclusion.UNREADABLE, "more than 100 scans")


# What is refused


def rle(pixels):
    header = struct.pack("<IiiHHIIiiII", 40, 4, 1, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    palette = bytes(1024)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(pixels), 0, 0, 54 + 1024) + header + palette + pixels


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50)
UNSERVED = {
    "an animated AVIF": saved(COLOUR, "AVIF", save_all=True, append_images=[OTHER]),
    "of 32 bits or signed, mode F: numbers without a known black and white": saved(Image.new("F", (4, 4)), "TIFF"),
    "of 32 bits or signed, mode I": saved(Image.new("I", (4, 4)), "TIFF"),
    "TIFF of mode LAB": saved(Image.new("LAB", (4, 4)), "TIFF"),
    "a TIFF of compression 34925": saved(COLOUR, "TIFF", compression="lzma"),
    "a BMP file that is run-length coded": rle(b"\x04\x01\0\x01"),
    "must be a JPEG, PNG, WebP, AVIF, GIF, BMP or TIFF file: it begins with b'.*heic": HEIC,
    "begins with b'.*jP": saved(COLOUR, "JPEG2000"),
    "begins with b'%!PS": saved(COLOUR, "EPS"),
    "begins with b.<svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
}


@pytest.mark.parametrize("match", UNSERVED)
def test_what_is_not_served_is_said_by_name(match):
    refused(UNSERVED[match], InvalidRequest, Exclusion.FORMAT, match)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("part", [0.3, 0.7])
def test_a_file_that_is_cut_off_is_unreadable(kind, part):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    file = saved(image, kind)
    refused(file[: int(len(file) * part)], InvalidRequest, Exclusion.UNREADABLE, r"bytes; must be a JPEG, PNG")


def test_an_empty_file_is_a_missing_one():
    refused(b"", InvalidRequest, Exclusion.MISSING, "it is 0 bytes; .* it is empty")


def test_without_avif_in_pillow_its_files_are_refused_by_name(monkeypatch):
    file = saved(COLOUR, "AVIF")
    monkeypatch.setattr(image_files, "AvifImagePlugin", None)
    refused(
        file, InvalidRequest, Exclusion.FORMAT, r"this is AVIF, for which Pillow .* has no decoder; 11\.3 and newer"
    )


# What a small file would unfold to


def gif_bomb():
    """A screen of a few pixels, and a frame whose removal would be prepared for."""
    frame = b"\x21\xf9\x04\x08\0\0\0\0" + b"\x2c" + struct.pack("<4HB", 0, 0, 60000, 60000, 0) + b"\x08\0;"
    return b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0, 0, 0) + frame


def tiff(tags):
    """A TIFF of these (tag, kind, count, value)."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4 + 70_000)


PLAIN = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
DEFLATED = [(259, 3, 1, 8) if tag[0] == 259 else tag for tag in PLAIN]


def avif_bomb():
    """The container says 64 x 64, the picture in it has 4096 x 4096."""
    file = bytearray(saved(Image.new("RGB", (4096, 4096), (200, 30, 40)), "AVIF", speed=10))
    at = file.find(b"ispe")
    file[at + 8 : at + 16] = struct.pack(">II", 64, 64)
    return bytes(file)


@pytest.mark.parametrize(
    ("file", "kind", "match"),
    [
        (avif_bomb(), LimitExceeded, "16777216 pixels inside of AVIF"),
        (gif_bomb(), LimitExceeded, "3600000000 pixels inside of GIF"),
        (b"GIF89a\xff\xff\xff\xff\0\0\0\x2c\0\0\0\0\1\0\1\0\0\2", LimitExceeded, "4294836225 pixels inside of GIF"),
        (tiff([*DEFLATED, (322, 4, 1, 60000), (323, 4, 1, 60000)]), LimitExceeded, "3600000000 pixels inside of TIFF"),
        (tiff([*PLAIN, (273, 1, 70_000, 8)]), InvalidRequest, "more than 65536 strips or tiles"),
        (tiff([*PLAIN, *((tag, 1, 60_000, 8) for tag in (700, 701))]), InvalidRequest, "more than the file does"),
        (png(50_000, 50_000, 8, 2, [b""]), LimitExceeded, "50000 x 50000 pixels"),
        (saved(Image.new("1", (1100, 1000)), "GIF"), LimitExceeded, "1100000 pixels inside of GIF"),
        (saved(Image.new("1", (1100, 1000)), "BMP"), LimitExceeded, "1000 x 1100 pixels"),
        (saved(Image.new("1", (1100, 1000)), "TIFF", compression="group4"), LimitExceeded, "1000 x 1100 pixels"),
    ],
)
def test_bombs_are_known_before_anything_is_allocated(file, kind, match):
    exclusion = Exclusion.TOO_LARGE if kind is LimitExceeded else Exclusion.UNREADABLE
    refused(file, kind, exclusion, match, most_pixels=1 << 20)


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4", "4:0:0"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_the_size_of_an_avif_is_read_from_the_picture_in_it(subsampling, mode):
    assert avif_pixels(saved(Image.new(mode, (501, 333)), "AVIF", subsampling=subsampling)) == 501 * 333


# What the first decoder made


@pytest.mark.parametrize(
    ("file", "alike"),
    [
        (saved(COLOUR, "JPEG"), True),
        (saved(COLOUR, "PNG"), True),
        (saved(COLOUR.convert("P"), "PNG"), True),
        (saved(COLOUR, "WEBP"), True),
        (jpeg_of(8192, 4096), True),
        (jpeg_of(8192, 4097), False),
        (saved(Image.fromarray(DEEP), "PNG"), False),
        (saved(COLOUR, "GIF"), False),
        (saved(COLOUR, "AVIF"), False),
        (b"none", False),
    ],
)
def test_which_files_the_first_decoder_decoded_alike(file, alike):
    assert image_files.decoded_alike(file) is alike
