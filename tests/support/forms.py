"""Candidates made of samples in some form, and what would be sent of them."""

from selector_client.selecting.candidates import Candidates
from selector_client.selecting.columns import Advertised, Terms
from selector_proto.tensors import BYTES, INTEGERS, read, read_bytes

from support.model import samples

PIXELS, TOKENS = samples(4)
FILES = [b"file 0", b"file 1", b"file 2", b"file 3"]


def made(images=FILES, texts=("a", "b", "c", "d"), ids=None, *, strict=False, seed=0, **limits) -> Candidates:
    return Candidates.samples(images, texts, ids, Terms(strict, seed, Advertised(**limits)))


def payload(candidates):
    return memoryview(b"".join(candidates.payload.parts()))


def texts_of(candidates):
    packed = candidates.header.samples.strings
    return [text.decode() for text in read_bytes(packed, payload(candidates), "texts", candidates.size, 1 << 20)]


def tokens_of(candidates):
    return read(candidates.header.samples.tokens, payload(candidates), "tokens", INTEGERS, [None, None]).tolist()


def files_of(candidates):
    packed = candidates.header.samples.encoded_images
    return read_bytes(packed, payload(candidates), "images", candidates.size, 1 << 24)


def pixels_of(candidates):
    return read(candidates.header.samples.pixels, payload(candidates), "pixels", BYTES, [None] * 4)


def ids_of(candidates):
    ids = candidates.header.sample_ids
    if ids.WhichOneof("ids") == "integers":
        return read(ids.integers, payload(candidates), "ids", INTEGERS, [None]).tolist()
    return [one.decode() for one in read_bytes(ids.strings, payload(candidates), "ids", candidates.size, 1 << 20)]


def excluded(candidates):
    return {reason: (one.indices.tolist(), one.first) for reason, one in candidates.exclusions.found().items()}
