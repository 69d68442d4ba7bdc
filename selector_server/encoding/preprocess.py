"""From files and strings to what the towers take. Every size is checked before the work that it costs."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tokenizers import Tokenizer

from selector_server.encoding.bundle import ImageInput, TextInput
from selector_server.errors import BundleError, InvalidRequest, LimitExceeded, NotPossible

_FORMATS = ("JPEG", "PNG", "WEBP")


@dataclass(frozen=True)
class Preprocessor:
    """Fits raw samples to one model's input; `tokenizer` may be missing, then texts must come as tokens."""

    image: ImageInput
    text: TextInput
    tokenizer: Tokenizer | None
    max_image_pixels: int

    def decode(self, files: Sequence[bytes]) -> NDArray[np.uint8]:
        """JPEG, PNG or WebP files to uint8 [B, H, W, C], resized bicubically to the input, aspect ignored."""
        out = np.empty((len(files), self.image.height, self.image.width, self.image.channels), np.uint8)
        for index, file in enumerate(files):
            out[index] = self._decode(index, file)
        return out

    def check(self, pixels: NDArray[np.uint8]) -> None:
        """Refuses pixels of another size than the model's input."""
        wanted = (self.image.height, self.image.width, self.image.channels)
        if pixels.shape[1:] != wanted:
            raise InvalidRequest(
                "samples.pixels.shape", list(pixels.shape), f"must be [B, {', '.join(map(str, wanted))}]"
            )

    def tokenise(self, texts: Sequence[bytes]) -> NDArray[np.int64]:
        """UTF-8 texts to int64 [B, max_tokens]: cut at max_tokens, filled with pad_token."""
        if self.tokenizer is None:
            raise NotPossible("samples.strings", "set", "the model's bundle has no tokenizer; send tokens")
        strings = []
        for index, text in enumerate(texts):
            try:
                strings.append(text.decode())
            except UnicodeDecodeError as error:
                raise InvalidRequest(f"samples.strings[{index}]", "not UTF-8", str(error)) from error
        out = np.full((len(texts), self.text.max_tokens), self.text.pad_token, np.int64)
        for row, encoding in zip(out, self.tokenizer.encode_batch_fast(strings), strict=True):
            ids = encoding.ids[: self.text.max_tokens]
            row[: len(ids)] = ids
        return out

    def pad(self, tokens: NDArray[Any]) -> NDArray[np.int64]:
        """Token ids int [B, T <= max_tokens] to int64 [B, max_tokens]; ids out of the vocabulary are refused."""
        if tokens.shape[1] > self.text.max_tokens:
            raise InvalidRequest("samples.tokens.shape", list(tokens.shape), f"at most {self.text.max_tokens} tokens")
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < self.text.vocabulary):
            odd = tokens.min() if tokens.min() < 0 else tokens.max()
            raise InvalidRequest("samples.tokens", odd, f"ids must be 0 to {self.text.vocabulary - 1}")
        out = np.full((len(tokens), self.text.max_tokens), self.text.pad_token, np.int64)
        out[:, : tokens.shape[1]] = tokens
        return out

    def _decode(self, index: int, file: bytes) -> NDArray[np.uint8]:
        field = f"samples.encoded_images[{index}]"
        try:
            with Image.open(io.BytesIO(file), formats=_FORMATS) as image:
                # The header alone is read so far: a decompression bomb is refused before it unfolds.
                if image.width * image.height > self.max_image_pixels:
                    size = f"{image.height} x {image.width} pixels"
                    raise LimitExceeded(field, size, f"at most {self.max_image_pixels} pixels")
                mode = "L" if self.image.channels == 1 else "RGB"
                small = image.convert(mode).resize((self.image.width, self.image.height), Image.Resampling.BICUBIC)
                shape = (self.image.height, self.image.width, self.image.channels)
                return np.asarray(small, dtype=np.uint8).reshape(shape)
        except Image.DecompressionBombError as error:  # Pillow's own limit, which ours cannot raise
            raise LimitExceeded(field, "a decompression bomb", f"at most {self.max_image_pixels} pixels") from error
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
            raise InvalidRequest(
                field, f"{len(file)} bytes", f"must be a {', '.join(_FORMATS)} file: {error}"
            ) from error


def load_tokenizer(file: Path | None) -> Tokenizer | None:
    """Reads a tokenizer.json; padding and truncation are ours. Raises BundleError."""
    if file is None:
        return None
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise BundleError("tokenizer", file, str(error)[:300]) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
