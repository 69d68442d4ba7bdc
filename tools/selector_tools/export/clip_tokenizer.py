"""Makes CLIP's byte-pair tokenizer, as a tokenizer.json has it, of the vocabulary that open_clip brings."""

import gzip
from collections.abc import Mapping
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel

_START, _END = "<start_of_text>", "<end_of_text>"
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# ftfy removes terminals' escape codes, control characters other than white space, and byte order marks. Those of
# ISO 8859-1 it reads as Windows-1252.
_CONTROL = r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b\x0e-\x1f\x7f\x{206a}-\x{206f}\x{feff}\x{fff9}-\x{fffc}]"
# open_clip cleans texts by ftfy and by two rounds of html.unescape; these are the parts that captions meet.
_CLEAN: Mapping[str, str] = {
    "\u2018": "'",
    "\u2019": "'",
    "\u201a": "'",
    "\u201b": "'",
    "\u201c": '"',
    "\u201d": '"',
    "\u201e": '"',
    "\u201f": '"',
    "\ufb00": "ff",
    "\ufb01": "fi",
    "\ufb02": "fl",
    "\ufb03": "ffi",
    "\ufb04": "ffl",
    "&nbsp;": " ",
    "&lt;": "<",
    "&gt;": ">",
    "&quot;": '"',
    "&apos;": "'",
    "&#39;": "'",
    "&#039;": "'",
    "&#x27;": "'",
    "&#34;": '"',
}
_WINDOWS: Mapping[str, str] = {
    chr(code): letter for code in range(0x80, 0xA0) if (letter := bytes([code]).decode("cp1252", "ignore"))
}
_BYTES = 256
_LAST_MERGE = 49152 - _BYTES - 2 + 1


def clip_tokenizer(vocabulary: Path) -> Tokenizer:
    """Returns the tokenizer of `vocabulary`, open_clip's bpe_simple_vocab_16e6.txt.gz. Its ids are those of open_clip's
    SimpleTokenizer, but for texts that only ftfy repairs (mojibake, full-width letters), rare HTML entities, and a
    Greek final sigma."""
    lines = gzip.decompress(vocabulary.read_bytes()).decode().split("\n")[1:_LAST_MERGE]
    merges = [(first, second) for first, second in (line.split() for line in lines)]
    letters = _byte_letters()
    words = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges] + [_START, _END]
    ids = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [
            # Twice: "&amp;amp;lt;" is what two careless exports make of "<".
            *(normalizers.Replace("&amp;", "&") for _ in range(2)),
            *(normalizers.Replace(old, new) for old, new in {**_WINDOWS, **_CLEAN}.items()),
            normalizers.Replace(Regex(_CONTROL), ""),
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}", special_tokens=[(_START, ids[_START]), (_END, ids[_END])]
    )
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in (_START, _END)])
    return tokenizer


def _byte_letters() -> list[str]:
    """Returns the letter that stands for each byte, in the order of CLIP's ids: printable bytes first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = _BYTES - len(printable)
    return [chr(code) for code in printable] + [chr(_BYTES + index) for index in range(others)]
