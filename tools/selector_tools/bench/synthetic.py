"""Made-up candidates, as embeddings and as raw samples: cheap, and alike on every machine."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from selector_client import ModelEmbeddings

from selector_server.encoding.bundle import PIXELS, TOKENS, ImageInput, TextInput
from selector_server.sampling import Embedded, PairScores
from selector_server.sampling.scores import Criterion

# Logit scale and bias of learner and reference.
LEARNER, REFERENCE = (10.0, -6.0), (20.0, -8.0)
FILE_SIDE = 224  # pixels
WORDS = ["a", "the", "red", "old", "small", "dog", "tree", "house", "river", "on", "under", "near", "by", "with", "two"]


def candidates(size: int, dim: int, seed: int, device: str = "cpu") -> PairScores:
    """Returns `size` candidates with embeddings [size, dim]. Each is a concept that its image and its text show more
    clearly to the reference and less clearly to the learner."""
    generator = torch.Generator().manual_seed(seed)

    def noise() -> torch.Tensor:
        return torch.randn((size, dim), generator=generator)

    concept = noise()

    def model(blur: float, scale: float, bias: float) -> Embedded:
        image, text = ((concept + blur * noise()).to(device) for _ in range(2))
        return Embedded.normalise(image, text, scale, bias)

    return PairScores(Criterion.LEARNABILITY, model(1.5, *LEARNER), model(0.8, *REFERENCE))


def embeddings(size: int, dim: int, seed: int) -> dict[str, Any]:
    """Returns the embeddings of such candidates as `Selector.select_embeddings` takes them."""
    scores = candidates(size, dim, seed)
    models = {"learner": scores.learner, "reference": scores.reference}
    return {
        name: ModelEmbeddings(model.image.numpy(), model.text.numpy(), model.scale, model.bias)
        for name, model in models.items()
        if model is not None
    }


@dataclass(frozen=True)
class Samples:
    """B candidates: `pixels` uint8 [B, H, W, C], `tokens` int64 [B, T], and B images as JPEG files or none."""

    pixels: NDArray[np.uint8]
    tokens: NDArray[np.int64]
    jpegs: list[bytes]

    @classmethod
    def random(
        cls, count: int, image: ImageInput, text: TextInput, rng: np.random.Generator, *, files: bool = True
    ) -> "Samples":
        """Makes pixels of noise, which is as good as photos to a tower, and files that are smooth, as photos are."""
        pixels = rng.integers(0, 256, (count, image.height, image.width, image.channels), dtype=np.uint8)
        tokens = rng.integers(1, text.vocabulary, (count, text.max_tokens))
        return cls(pixels, tokens, [jpeg(rng) for _ in range(count)] if files else [])

    @property
    def inputs(self) -> dict[str, NDArray[Any]]:
        """The samples as the towers take them."""
        return {PIXELS: self.pixels, TOKENS: self.tokens}

    @property
    def arrays(self) -> dict[str, Any]:
        """The samples as `Selector.select` takes arrays."""
        return {"images": self.pixels, "texts": self.tokens}

    @property
    def files(self) -> dict[str, Any]:
        """The samples as `Selector.select` takes encoded images."""
        return {"images": self.jpegs, "texts": self.tokens}


def sentences(count: int, rng: np.random.Generator) -> list[str]:
    """Returns so many captions of a dozen words each."""
    return [" ".join(words) for words in rng.choice(WORDS, (count, 12))]


def jpeg(rng: np.random.Generator) -> bytes:
    """Returns a picture with about the detail of a photo."""
    coarse = Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)).resize((FILE_SIDE, FILE_SIDE))
    file = io.BytesIO()
    coarse.save(file, "JPEG", quality=90)
    return file.getvalue()
