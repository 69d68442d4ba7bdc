"""From files and strings to what one model's towers take. Every size is checked before the work that it costs."""

import io
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tokenizers import Tokenizer

from selector_server.encoding.bundle import Bundle, ImageInput, TextInput
from selector_server.errors import BundleError, InvalidRequest, LimitExceeded, NotPossible

_FORMATS = ("JPEG", "PNG", "WEBP")
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# Files that one thread decodes before it looks for more work.
_STRIDE = 16


@dataclass(frozen=True)
class Limits:
    """`image_pixels` of one file before it is resized; `decoded_bytes` of all files of a request after."""

    image_pixels: int
    decoded_bytes: int


@dataclass(frozen=True)
class Preprocessor:
    """Fits raw samples to one model's input; `tokenizer` may be missing, then texts must come as tokens. Files are
    decoded on `pool`."""

    image: ImageInput
    text: TextInput
    tokenizer: Tokenizer | None
    tokenizer_digest: str
    limits: Limits
    pool: Executor

    @classmethod
    def of(cls, bundle: Bundle, limits: Limits, pool: Executor) -> "Preprocessor":
        """For the model of this bundle. Raises BundleError."""
        manifest, tokenizer = bundle.manifest, load_tokenizer(bundle.tokenizer)
        return cls(manifest.image, manifest.text, tokenizer, bundle.tokenizer_digest, limits, pool)

    def same_input(self, other: "Preprocessor") -> bool:
        """Whether both models take the same arrays."""
        mine, theirs = ((p.image, p.text, p.tokenizer_digest) for p in (self, other))
        return mine == theirs

    def pixels(self, images: NDArray[np.uint8] | Sequence[bytes]) -> NDArray[np.uint8]:
        """uint8 [B, H, W, C] of the model's size as it is; JPEG, PNG or WebP files decoded and resized to it."""
        shape = (self.image.height, self.image.width, self.image.channels)
        if isinstance(images, np.ndarray):
            if images.shape[1:] != shape:
                limit = f"must be [B, {', '.join(map(str, shape))}], channels last"
                raise InvalidRequest("samples.pixels.shape", list(images.shape), limit)
            return images
        size = len(images) * int(np.prod(shape))
        if size > self.limits.decoded_bytes:
            raise LimitExceeded(
                "samples.encoded_images", f"{size} bytes decoded", f"at most {self.limits.decoded_bytes}"
            )
        out = np.empty((len(images), *shape), np.uint8)

        def decode(start: int) -> None:
            for index in range(start, min(start + _STRIDE, len(images))):
                out[index] = self._decode(index, images[index])

        jobs = [self.pool.submit(decode, start) for start in range(0, len(images), _STRIDE)]
        try:
            for job in jobs:
                job.result()
        finally:
            for job in jobs:  # after one bad file the rest need not be decoded
                job.cancel()
        return out

    def tokens(self, texts: NDArray[np.integer[Any]] | Sequence[bytes]) -> NDArray[np.int64]:
        """Token ids [B, T <= max_tokens], or UTF-8 texts, to int64 [B, max_tokens] filled with pad_token."""
        return self._pad(texts) if isinstance(texts, np.ndarray) else self._tokenise(texts)

    def _pad(self, tokens: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        if tokens.shape[1] > self.text.max_tokens:
            raise InvalidRequest("samples.tokens.shape", list(tokens.shape), f"at most {self.text.max_tokens} tokens")
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < self.text.vocabulary):
            odd = tokens.min() if tokens.min() < 0 else tokens.max()
            raise InvalidRequest("samples.tokens", odd, f"ids must be 0 to {self.text.vocabulary - 1}")
        out = np.full((len(tokens), self.text.max_tokens), self.text.pad_token, np.int64)
        out[:, : tokens.shape[1]] = tokens
        return out

    def _tokenise(self, texts: Sequence[bytes]) -> NDArray[np.int64]:
        if self.tokenizer is None:
            raise NotPossible("samples.strings", "set", "the model's bundle has no tokenizer; send tokens")
        strings = []
        for index, text in enumerate(texts):
            try:
                strings.append(text.decode())
            except UnicodeDecodeError as error:
                raise InvalidRequest(f"samples.strings[{index}]", "not UTF-8", str(error)) from error
        most, end = self.text.max_tokens, self.text.end_token
        out = np.full((len(texts), most), self.text.pad_token, np.int64)
        for index, (row, encoding) in enumerate(zip(out, self.tokenizer.encode_batch_fast(strings), strict=True)):
            ids = encoding.ids
            if len(ids) > most:
                if self.text.too_long == "refuse":
                    raise InvalidRequest(f"samples.strings[{index}]", f"{len(ids)} tokens", f"at most {most} tokens")
                ids = ids[:most] if end is None else [*ids[: most - 1], end]
            row[: len(ids)] = ids
        if out.max(initial=0) >= self.text.vocabulary:
            limit = f"its model knows 0 to {self.text.vocabulary - 1}; the bundle's tokenizer is another model's"
            raise NotPossible("token id", int(out.max()), limit)
        return out

    def _decode(self, index: int, file: bytes) -> NDArray[np.uint8]:
        field = f"samples.encoded_images[{index}]"
        try:
            with Image.open(io.BytesIO(file), formats=_FORMATS) as image:
                # The header alone is read so far: a decompression bomb is refused before it unfolds.
                if image.width * image.height > self.limits.image_pixels:
                    size = f"{image.height} x {image.width} pixels"
                    raise LimitExceeded(field, size, f"at most {self.limits.image_pixels} pixels")
                return self._fit(image.convert("L" if self.image.channels == 1 else "RGB"))
        except Image.DecompressionBombError as error:  # Pillow's own limit, which ours cannot raise
            limit = f"at most {self.limits.image_pixels} pixels"
            raise LimitExceeded(field, "a decompression bomb", limit) from error
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
            limit = f"must be a {', '.join(_FORMATS)} file: {error}"
            raise InvalidRequest(field, f"{len(file)} bytes", limit) from error

    def _fit(self, image: Image.Image) -> NDArray[np.uint8]:
        """To the model's size, as torchvision's Resize and CenterCrop come to it."""
        wide, high = self.image.width, self.image.height
        left = top = 0
        size = (wide, high)
        if self.image.fit == "crop":
            short, side = min(image.size), max(wide, high)
            across, down = (side if length == short else int(side * length / short) for length in image.size)
            left, top, size = round((across - wide) / 2), round((down - high) / 2), (across, down)
        if image.size != size:
            image = image.resize(size, _RESAMPLING[self.image.interpolation])
        pixels = np.asarray(image, dtype=np.uint8)[top : top + high, left : left + wide]
        return pixels.reshape(high, wide, self.image.channels)


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
