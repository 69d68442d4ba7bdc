"""A sidecar that is measured, and the samples it gets."""

import io
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from selector_client import Selection, Selector

from selector_server.encoding.bundle import PIXELS, TOKENS, ImageInput, TextInput
from selector_tools.bench.serve_loops import Bundles
from selector_tools.processes import sidecar

FILE_SIDE = 224


@dataclass(frozen=True)
class Samples:
    """B candidates as arrays, and with their images as JPEG files."""

    pixels: NDArray[np.uint8]
    tokens: NDArray[np.int64]
    jpegs: list[bytes]

    @classmethod
    def random(
        cls, count: int, image: ImageInput, text: TextInput, rng: np.random.Generator, *, files: bool = True
    ) -> "Samples":
        """Noise is as good as photos to a tower; files are smooth, as photos are."""
        pixels = rng.integers(0, 256, (count, image.height, image.width, image.channels), dtype=np.uint8)
        tokens = rng.integers(1, text.vocabulary, (count, text.max_tokens))
        return cls(pixels, tokens, [_jpeg(rng) for _ in range(count)] if files else [])

    @property
    def inputs(self) -> dict[str, NDArray[Any]]:
        """As the towers take them."""
        return {PIXELS: self.pixels, TOKENS: self.tokens}

    @property
    def arrays(self) -> dict[str, Any]:
        return {"images": self.pixels, "texts": self.tokens}

    @property
    def files(self) -> dict[str, Any]:
        return {"images": self.jpegs, "texts": self.tokens}


def _jpeg(rng: np.random.Generator) -> bytes:
    """A picture with about the detail of a photo."""
    coarse = Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)).resize((FILE_SIDE, FILE_SIDE))
    file = io.BytesIO()
    coarse.save(file, "JPEG", quality=90)
    return file.getvalue()


class Sidecar:
    """`selector serve` with these bundles, in a process of its own."""

    def __init__(self, bundles: Bundles, log: Path, *flags: str) -> None:
        self._bundles, self._log, self._flags = bundles, log, flags
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        models = ("--learner", str(self._bundles.learner.path), "--reference", str(self._bundles.reference.path))
        address = self._stack.enter_context(sidecar(self._log, *models, "--metrics-listen", "", *self._flags))
        selector = Selector(address, filter_ratio=0.8, seed=0, timeout=600.0, on_error="raise")
        self._selector = self._stack.enter_context(selector)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def select(self, samples: dict[str, Any]) -> tuple[float, Selection]:
        """Seconds of one selection, as the trainer sees them, and its reply."""
        started = perf_counter()
        selection = self._selector.select(**samples)
        return perf_counter() - started, selection


def median_stages(replies: Sequence[Selection]) -> dict[str, float]:
    """Seconds of each stage."""
    stages = [reply.stage_seconds for reply in replies]
    return {name: median(s.get(name, 0.0) for s in stages) for name in sorted({n for s in stages for n in s})}
