"""CLIP's tokenizer.json against open_clip's own tokenizer."""

import random
from pathlib import Path

import pytest
from selector_tools.export.torchvision import make_importable

make_importable()
import open_clip  # noqa: E402
from selector_tools.export.clip_tokenizer import clip_tokenizer  # noqa: E402

TEXTS = [
    "",
    "   ",
    "a photo of a cat",
    "A Photo, of 2 DOGS!!",
    "it's they're I've don't we'll he'd I'm CAN'T don't''''s 's",
    "1234 5,000.50 %$#@! a_b-c/d\\e|f",
    "  spaced\t\tout \n text  \u00a0end",
    "x" * 300,
    "café naïve über ÀÉÎÕÜ ñ STRASSE ß e\u0301 Привет МИР İstanbul",
    "日本語テキスト 中文 مرحبا हिन्दी",
    "emoji 😀🎉👩‍👩‍👧 ❤️ ½ ² Ⅷ ① ™ © €",
    "tom &amp; jerry &lt;b&gt; &quot;q&quot; &#39;s &amp;lt; &amp;amp; x",
    "\u201ccurly\u201d \u2018quotes\u2019 don\u2019t \u2013 \u2014 …",
    "ﬁne ﬂow oﬀ oﬃce",
    "<start_of_text> hi <end_of_text>",
    "e-mail: someone@example.org, https://example.org/?q=a+b&c=d#e",
]
# What only ftfy, html's full table or Python's own lower() do.
DIFFERENT = ["\uff26\uff55\uff4c\uff4c", "&copy; 2020", "ΣΑΣ", "schÃ¶n"]


@pytest.fixture(scope="module")
def both():
    ours = clip_tokenizer(Path(open_clip.tokenizer.default_bpe()))
    return ours, open_clip.get_tokenizer("ViT-B-16")


def ids(theirs, text):
    return [theirs.sot_token_id, *theirs.encode(text), theirs.eot_token_id]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_open_clip(both, text):
    ours, theirs = both
    assert ours.encode(text).ids == ids(theirs, text)
    assert ours.get_vocab_size() == theirs.vocab_size == 49408


def test_byte_order_marks_and_control_characters_are_those_of_open_clip(both):
    """Captions that were read with another encoding, or copied from a terminal."""
    ours, theirs = both
    odd = [*range(0x20), *range(0x7F, 0xA1), 0xAD, 0x200B, 0x2028, 0x2029, 0x201A, 0x201E, 0xFEFF, 0xFFFD]
    texts = ["\x1b[31mred\x1b[0m dog", "\x1b[1;31mred", "\ufeff\ufeffa\r\nb", "don\x92t"]
    for code in (*odd, *range(0x206A, 0x2070), *range(0xFFF9, 0xFFFD)):
        texts += [f"a{chr(code)}b", f"{chr(code)}a dog", f"a {chr(code)} b{chr(code)}"]
    for text in texts:
        assert ours.encode(text).ids == ids(theirs, text), repr(text)


def test_random_texts(both):
    ours, theirs = both
    rng = random.Random(0)
    letters = [chr(code) for code in range(32, 127)]
    for _ in range(1000):
        text = "".join(rng.choice(letters) for _ in range(rng.randint(1, 40)))
        assert ours.encode(text).ids == ids(theirs, text), repr(text)


@pytest.mark.parametrize("text", DIFFERENT)
def test_the_known_differences_are_still_there(both, text):
    """If one of these is gone, the docstring and docs/export.md may say less."""
    ours, theirs = both
    assert ours.encode(text).ids != ids(theirs, text)
