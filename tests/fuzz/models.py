"""What two models take: the learner small pictures and words, the reference other ones of both."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from selector_server.encoding.bundle import ImageInput, TextInput
from selector_server.encoding.decoder import Decoder
from selector_server.encoding.preprocess import Limits, Preprocessor

LIMITS = Limits(image_pixels=1 << 18, decoded_bytes=1 << 22)
WORDS = ["[UNK]", *(f"w{i}" for i in range(1, 64))]


def words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def byte_pairs() -> Tokenizer:
    """As CLIP's and GPT's: bytes, and a few merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("w", "1"), ("w", "2"), ("Ġ", "w"), ("Ġw", "3")]
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def unigrams() -> Tokenizer:
    """As SigLIP's: pieces with their log-probabilities."""
    pieces = [("<unk>", 0.0), ("▁", -2.0), ("▁w", -1.0), ("w", -3.0), *((str(i), -4.0) for i in range(10))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def word_pieces() -> Tokenizer:
    """As BERT's."""
    pieces = ["[UNK]", "w", *(f"##{i}" for i in range(10)), *map(str, range(10))]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


@cache
def learner(decoder: Decoder) -> Preprocessor:
    image = ImageInput(height=8, width=8, channels=3)
    text = TextInput(max_tokens=6, vocabulary=len(WORDS), end_token=63)
    return Preprocessor(image, text, words(), "words", LIMITS, decoder)


@cache
def reference(decoder: Decoder) -> Preprocessor:
    image = ImageInput(height=10, width=12, channels=1, fit="crop", interpolation="bilinear")
    text = TextInput(max_tokens=16, vocabulary=300, too_long="refuse")
    return Preprocessor(image, text, byte_pairs(), "byte pairs", LIMITS, decoder)
