"""Texts of a request, by tokenisers of four kinds; and the tokenizer.json of a bundle."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fuzz.frames import each, joined, split
from fuzz.models import byte_pairs, learner, reference, unigrams, word_pieces, words
from fuzz.mutate_json import tree
from fuzz.mutation import raw
from fuzz.target import Decode, Target
from selector_server.encoding.decoder import Decoder
from selector_server.encoding.preprocess import load_tokenizer
from selector_server.errors import BundleError, SelectorError

_TEXTS = [
    "w1 w2  w3\tw4",
    "",
    " ",
    "W63é e\u0301 ﬁ Ⅷ",
    "漢字 \u202eabc",
    "\0\x7f\u00ad",
    "w12 w1w2w3 9",
    "\U0001f468\u200d\U0001f469",
    "a" * 300,
]


@contextmanager
def texts(_: Path) -> Iterator[Decode]:
    with Decoder(1) as decoder:
        models = [learner(decoder), reference(decoder)]
        models += [replace(models[1], tokenizer=one, text=models[0].text) for one in (unigrams(), word_pieces())]

        def decode(data: bytes) -> str:
            items = split(data)
            for model in models:
                tokens = model.tokens(items)
                assert tokens.shape == (len(items), model.text.max_tokens)
                assert tokens.min(initial=0) >= 0
                assert tokens.max(initial=0) < model.text.vocabulary
            return ""

        yield decode


def text_seeds() -> list[bytes]:
    return [joined(one.encode() for one in _TEXTS), *(joined([one.encode()]) for one in _TEXTS)]


@contextmanager
def tokenizers(folder: Path) -> Iterator[Decode]:
    file = folder / "tokenizer.json"
    with Decoder(1) as decoder:
        model = learner(decoder)

        def decode(data: bytes) -> str:
            file.write_bytes(data)
            replace(model, tokenizer=load_tokenizer(file)).tokens([one.encode() for one in _TEXTS])
            return ""

        yield decode


def tokenizer_seeds() -> list[bytes]:
    return [make().to_str().encode() for make in (words, byte_pairs, unigrams, word_pieces)]


_BYTES = (
    b"w1",
    b" ",
    "é".encode(),
    "\u0301".encode() * 50,
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xff",
    "\U0001f469".encode(),
)
TARGETS = (
    Target("texts", "UTF-8 texts to token ids", texts, text_seeds, each([raw(*_BYTES)]), (SelectorError,)),
    Target(
        "tokenizer",
        "tokenizer.json of a bundle",
        tokenizers,
        tokenizer_seeds,
        tree("ByteLevel", "Replace", "Split", "BPE"),
        (BundleError, SelectorError),
    ),
)
