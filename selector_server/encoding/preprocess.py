"""Turns files and strings into what one model's towers take. Every size is checked before the work that it costs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from selector_server.encoding import image_files
from selector_server.encoding.bundle import Bundle, ImageInput, TextInput
from selector_server.encoding.decoder import Decoder
from selector_server.errors import BundleError, Exclusion, InvalidRequest, LimitExceeded, NotPossible, SelectorError

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_LeaveOut = Callable[[int, InvalidRequest, Exclusion], None]
# At most about so many characters of text are tokenised at once.
_TEXTS_CHARACTERS = 1 << 20

# It is told of a sample that cannot be used, by its index and an error whose `exclusion` says why.
Bad: TypeAlias = Callable[[int, SelectorError], None]


@dataclass(frozen=True)
class Limits:
    """One file may have `image_pixels` before it is resized; all files of a request may have `decoded_bytes` after."""

    image_pixels: int
    decoded_bytes: int


@dataclass(frozen=True)
class Preprocessor:
    """Fits raw samples to one model's input. Without a tokenizer, texts must come as tokens. `decoder` decodes the
    files."""

    image: ImageInput
    text: TextInput
    tokenizer: Tokenizer | None
    tokenizer_digest: str
    limits: Limits
    decoder: Decoder

    @classmethod
    def of(cls, bundle: Bundle, limits: Limits, decoder: Decoder) -> "Preprocessor":
        """Makes the preprocessor of this bundle's model. Raises BundleError."""
        manifest, tokenizer = bundle.manifest, load_tokenizer(bundle.tokenizer)
        return cls(manifest.image, manifest.text, tokenizer, bundle.tokenizer_digest, limits, decoder)

    @property
    def sample_bytes(self) -> int:
        """The bytes of one sample as the model takes it."""
        return self.image.height * self.image.width * self.image.channels + 8 * self.text.max_tokens

    def same_input(self, other: "Preprocessor") -> bool:
        """Tells whether both models take the same arrays; their normalisation happens in the graphs."""
        neutral = {"mean": (0.0,), "std": (1.0,)}
        mine, theirs = (p.image.model_copy(update=neutral) for p in (self, other))
        return mine == theirs and self.text == other.text and self.tokenizer_digest == other.tokenizer_digest

    def same_tokens(self, other: "Preprocessor") -> bool:
        """Tells whether one token id means the same to both models, as far as their bundles say."""
        digests = {self.tokenizer_digest, other.tokenizer_digest} - {""}
        special = {(p.text.pad_token, p.text.end_token) for p in (self, other)}
        return len(digests) < 2 and len(special) == 1

    def pixels(
        self,
        images: NDArray[np.uint8] | Sequence[bytes],
        check: Callable[[], None] = lambda: None,
        bad: Bad | None = None,
        rows: NDArray[np.int64] | None = None,
    ) -> NDArray[np.uint8]:
        """Returns uint8 [B, H, W, C] of the model's size: arrays of that size as they are, and files of the formats
        that `image_files` serves decoded and resized. Only these `rows` are decoded, if they are given; other files,
        and those that `bad` is told of, are zeros. `check` is called before each file. Raises what `check` raises, and
        InvalidRequest or LimitExceeded; without `bad`, for one sample too."""
        shape = (self.image.height, self.image.width, self.image.channels)
        if isinstance(images, np.ndarray):
            if images.shape[1:] != shape:
                limit = f"must be [B, {', '.join(map(str, shape))}], channels last"
                raise InvalidRequest("samples.pixels.shape", list(images.shape), limit)
            return images
        wanted = range(len(images)) if rows is None else rows.tolist()
        size = len(wanted) * int(np.prod(shape))
        if size > self.limits.decoded_bytes:
            raise LimitExceeded(
                "samples.encoded_images", f"{size} bytes decoded", f"at most {self.limits.decoded_bytes}"
            )
        out = np.zeros((len(images), *shape), np.uint8)

        def decode(at: int) -> None:
            index = wanted[at]
            try:
                out[index] = self._decode(index, images[index])
            except SelectorError as error:
                _excluded(bad, index, error)

        self.decoder.run(decode, len(wanted), check)
        return out

    def tokens(
        self,
        texts: NDArray[np.integer[Any]] | Sequence[bytes],
        check: Callable[[], None] = lambda: None,
        bad: Bad | None = None,
        rows: NDArray[np.int64] | None = None,
    ) -> NDArray[np.int64]:
        """Returns int64 [B, max_tokens], filled with pad_token, of token ids [B, T <= max_tokens] or of UTF-8 texts.
        Only these `rows` are looked at, if they are given; others, and those that `bad` is told of, hold pad_token
        alone. `check` is called before each few texts. Raises what `check` raises, NotPossible and InvalidRequest;
        without `bad`, for one sample too."""
        if not isinstance(texts, np.ndarray):
            return self._tokenise(texts, check, bad, range(len(texts)) if rows is None else rows.tolist())
        if bad is None:
            self._check_tokens(texts)
            return self._padded(texts, np.arange(len(texts)))
        return self._padded(texts, self._usable(texts, bad, np.arange(len(texts)) if rows is None else rows))

    def _check_tokens(self, tokens: NDArray[np.integer[Any]]) -> None:
        if tokens.shape[1] > self.text.max_tokens:
            raise InvalidRequest("samples.tokens.shape", list(tokens.shape), f"at most {self.text.max_tokens} tokens")
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < self.text.vocabulary):
            odd = tokens.min() if tokens.min() < 0 else tokens.max()
            raise InvalidRequest("samples.tokens", odd, f"ids must be 0 to {self.text.vocabulary - 1}")

    def _usable(self, tokens: NDArray[np.integer[Any]], bad: Bad, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of these rows that the model takes. Longer ones than it takes may only be filled up with pad_token."""
        most, vocabulary = self.text.max_tokens, self.text.vocabulary
        long = (tokens[rows, most:] != self.text.pad_token).any(axis=1)
        odd = ((tokens[rows] < 0) | (tokens[rows] >= vocabulary)).any(axis=1)
        for row in rows[long].tolist():
            count = int(np.flatnonzero(tokens[row] != self.text.pad_token)[-1]) + 1
            error = InvalidRequest(f"samples.tokens[{row}]", f"{count} tokens", f"at most {most} tokens")
            bad(row, error.excluding(Exclusion.TOO_LARGE))
        for row in rows[odd & ~long].tolist():
            ids = tokens[row]
            value = int(ids.min() if ids.min() < 0 else ids.max())
            error = InvalidRequest(f"samples.tokens[{row}]", value, f"ids must be 0 to {vocabulary - 1}")
            bad(row, error.excluding(Exclusion.VALUE))
        usable: NDArray[np.int64] = rows[~long & ~odd]
        return usable

    def _padded(self, tokens: NDArray[np.integer[Any]], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows in the model's width."""
        out = np.full((len(tokens), self.text.max_tokens), self.text.pad_token, np.int64)
        out[rows, : tokens.shape[1]] = tokens[rows, : self.text.max_tokens]
        return out

    def _tokenise(
        self, texts: Sequence[bytes], check: Callable[[], None], bad: Bad | None, rows: Sequence[int]
    ) -> NDArray[np.int64]:
        if self.tokenizer is None:
            raise NotPossible("samples.strings", "set", "the model's bundle has no tokenizer; send tokens")
        strings: dict[int, str] = {}
        for index in rows:
            try:
                strings[index] = texts[index].decode()
            except UnicodeDecodeError as error:
                refusal = InvalidRequest(f"samples.strings[{index}]", "not UTF-8", str(error))
                _excluded(bad, index, refusal.excluding(Exclusion.TEXT))
        most, end = self.text.max_tokens, self.text.end_token
        out = np.full((len(texts), most), self.text.pad_token, np.int64)
        for index, ids in zip(strings, self._ids(list(strings.values()), check, bad is not None), strict=True):
            if isinstance(ids, SelectorError):
                _excluded(bad, index, ids)
                continue
            if len(ids) > most and self.text.too_long == "refuse":
                refusal = InvalidRequest(f"samples.strings[{index}]", f"{len(ids)} tokens", f"at most {most} tokens")
                _excluded(bad, index, refusal.excluding(Exclusion.TOO_LARGE))
                continue
            row = out[index]
            row[: len(ids)] = ids[:most]
            if len(ids) > most and end is not None:
                row[-1] = end
        if out.max(initial=0) >= self.text.vocabulary:
            limit = f"its model knows 0 to {self.text.vocabulary - 1}; the bundle's tokenizer is another model's"
            raise NotPossible("token id", int(out.max()), limit)
        return out

    def _ids(
        self, strings: Sequence[str], check: Callable[[], None], each: bool
    ) -> Iterator[list[int] | SelectorError]:
        """Yields the token ids of each text. It takes a few texts at a time, because what the library keeps of them is
        many times their size. With `each`, a text that the library fails at is one error among the others' ids."""
        start = 0
        while start < len(strings):
            check()
            stop, size = start, 0
            while stop < len(strings) and size < _TEXTS_CHARACTERS:
                size += len(strings[stop]) + 1
                stop += 1
            try:
                yield from self._encoded(strings[start:stop])
            except NotPossible:
                if not each:
                    raise
                yield from map(self._encoded_alone, strings[start:stop])
            start = stop

    def _encoded(self, strings: Sequence[str]) -> list[list[int]]:
        assert self.tokenizer is not None
        try:
            return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(strings)]
        except BaseException as error:  # the file may lack what only some texts need
            if not _of_tokenizers(error):
                raise
            raise NotPossible("tokenizer", "failing", f"the bundle's cannot be used: {str(error)[:300]}") from error

    def _encoded_alone(self, string: str) -> list[int] | SelectorError:
        try:
            return self._encoded([string])[0]
        except NotPossible as error:
            return error.excluding(Exclusion.TEXT)

    def _decode(self, index: int, file: bytes) -> NDArray[np.uint8]:
        field = f"samples.encoded_images[{index}]"
        with image_files.opened(file, field, self.limits.image_pixels) as image:
            across, down = self._scaled(*image.size)
            if across * down > self.limits.image_pixels:  # a hair's breadth of a picture would become a roll of it
                limit = f"at most {self.limits.image_pixels} pixels once its shorter side is the model's"
                size = f"{image.height} x {image.width} pixels"
                raise LimitExceeded(field, size, limit).excluding(Exclusion.TOO_LARGE)
            return self._fit(image_files.colours(image, "L" if self.image.channels == 1 else "RGB"))

    def _fit(self, image: Image.Image) -> NDArray[np.uint8]:
        """Brings an image to the model's size, as torchvision's Resize and CenterCrop do."""
        wide, high = self.image.width, self.image.height
        size = across, down = self._scaled(*image.size)
        left, top = round((across - wide) / 2), round((down - high) / 2)
        if image.size != size:
            image = image.resize(size, _RESAMPLING[self.image.interpolation])
        pixels = np.asarray(image, dtype=np.uint8)[top : top + high, left : left + wide]
        return pixels.reshape(high, wide, self.image.channels)

    def _scaled(self, width: int, height: int) -> tuple[int, int]:
        """Returns width and height before the centre is cropped out."""
        wide, high = self.image.width, self.image.height
        if self.image.fit == "squash":
            return wide, high
        short, side = min(width, height), max(wide, high)
        across, down = (side if length == short else int(side * length / short) for length in (width, height))
        return across, down


def _excluded(bad: Bad | None, index: int, error: SelectorError) -> None:
    """Tells `bad` of a sample that cannot be used. Raises the error where there is none, or where it is about more."""
    if bad is None or error.exclusion is None:
        raise error
    bad(index, error)


def load_tokenizer(file: Path | None) -> Tokenizer | None:
    """Reads a tokenizer.json, and turns off its own padding and truncation, which Preprocessor does. Raises
    BundleError."""
    if file is None:
        return None
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except BaseException as error:
        if not _of_tokenizers(error):
            raise
        raise BundleError("tokenizer", file, str(error)[:300]) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _of_tokenizers(error: BaseException) -> bool:
    """Tells whether the tokenizers library raised this: it raises plain Exception, and its panics, which are Rust's,
    are not even that."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
