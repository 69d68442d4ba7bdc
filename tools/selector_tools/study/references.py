"""The references of a study: each seed trains its own, once, and embeds its pool, once."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from selector_server.sampling import Embedded
from selector_tools.datasets.pairs import Pairs
from selector_tools.embedding import embedder
from selector_tools.export.bundle_writer import export_reference
from selector_tools.pools.pool import Batch
from selector_tools.reference.augmentation import Augmentation
from selector_tools.study.costs import measured
from selector_tools.study.model import SmallSigLip, exportable
from selector_tools.study.streams import Stream, draws
from selector_tools.study.task import Task
from selector_tools.study.training import train

BATCH = 128
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 1e-2
CACHE_BYTES = 4 << 30
EMBED_AT_ONCE = 512


@dataclass(frozen=True)
class Recipe:
    """How a reference is trained: on a random `share` of the curated pairs, or on as many pairs of the pool with
    whatever captions they have, moved by up to `shift` pixels. Without steps it stays as it began."""

    about: str
    steps: int
    shift: int
    share: float = 1.0
    uncurated: bool = False


RECIPES = {
    "strong": Recipe("2,000 steps on the curated pairs, pictures moved by up to 3 pixels", 2000, 3),
    "weak": Recipe("800 steps on the curated pairs, pictures as they are", 800, 0),
    "small": Recipe("as strong, on a fifth of the curated pairs", 2000, 3, share=0.2),
    "uncurated": Recipe("as strong, on as many pairs of the pool", 2000, 3, uncurated=True),
    "untrained": Recipe("weights as they began", 0, 0),
}


@dataclass(frozen=True)
class Figures:
    """How good a reference is by itself (zero-shot, 0 to 1), and what it cost once: CPU seconds and FLOPs of its
    training, and of embedding the pool."""

    validation: float
    test: float
    test_apart: dict[str, float | None]
    train_cpu_seconds: float
    embed_cpu_seconds: float
    train_flops: float
    embed_flops: float


@dataclass(frozen=True)
class Reference:
    """A reference on disk: its bundle, the cache with its embeddings of the stream's entries, and `own`, float32 [n]:
    the cosine of each entry's picture and caption, by which its own loss falls."""

    bundle: Path
    cache: Path
    own: NDArray[np.float32]
    figures: Figures
    weights: Path

    def given(self, model: SmallSigLip) -> SmallSigLip:
        """Gives a model of the reference's form its weights, and returns it."""
        model.load_state_dict(torch.load(self.weights, weights_only=True))
        return model


def ready(
    kind: str, task: Task, name: str, stream: Stream, stream_name: str, seed: int, folder: Path, device: str = "cpu"
) -> Reference:
    """Returns the reference of this kind and seed for the pool `name`; it is trained, or the stream `stream_name`
    embedded, on `device`, unless that was done before. What is done twice at once is the same, and the last one
    stays."""
    home = folder / "references" / f"{name}-{kind}-{seed}"
    if not (home / "figures.json").exists():
        _train(RECIPES[kind], task, seed, home, device)
    cache = home / stream_name
    if not (cache / "figures.json").exists():
        _embed(home, task, stream, cache, device)
    trained, embedded = (json.loads((place / "figures.json").read_text()) for place in (home, cache))
    own = np.load(cache / "own.npy")
    return Reference(home / "bundle", cache / "cache", own, Figures(**trained, **embedded), home / "weights.pt")


def _train(recipe: Recipe, task: Task, seed: int, home: Path, device: str) -> None:
    home.mkdir(parents=True, exist_ok=True)
    pairs = task.curated
    if recipe.uncurated or recipe.share < 1:
        source = task.pairs if recipe.uncurated else task.curated
        count = round(recipe.share * len(task.curated.pixels))
        rows = np.random.default_rng([seed, 5]).permutation(len(source.pixels))[:count]
        pairs = Pairs(source.pixels[rows], source.tokens[rows])
    model = task.model(seed + 1000)  # no learner begins as its reference did
    flops = measured(model).train
    model.to(device)
    batches = (pairs.at(rows) for rows in draws(len(pairs.pixels), BATCH, seed))
    began = time.process_time()
    if recipe.steps:
        train(
            model,
            batches,
            recipe.steps,
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            augment=Augmentation(shift=recipe.shift) if recipe.shift else None,
            seed=seed + 1000,
        )
    spent = time.process_time() - began
    model.cpu()
    torch.save(model.state_dict(), home / "weights.pt")
    vocabulary = task.tokenizer.get_vocab_size()
    export_reference(exportable("reference", model, vocabulary, task.words), home / "bundle")
    figures = {
        "validation": task.validation(model),
        "test": task.test(model),
        "test_apart": task.test.apart(model, task.known),
        "train_cpu_seconds": spent,
        "train_flops": recipe.steps * BATCH * flops,
    }
    (home / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")


@dataclass(frozen=True)
class _Entries:
    """A stream's entries as a pool that the embedder reads."""

    pairs: Pairs
    stream: Stream

    @property
    def size(self) -> int:
        return len(self.stream)

    def batches(self, size: int) -> Iterator[Batch]:
        for start in range(0, len(self.stream), size):
            ids = np.arange(start, min(start + size, len(self.stream)))
            rows = self.stream.rows[ids]
            yield Batch(ids, self.pairs.pixels[rows], self.pairs.tokens[rows], None)


def embed(
    bundle: Path, pairs: Pairs, stream: Stream, cache: Path | None = None, device: str = "cpu", threads: int = 1
) -> Iterator[Embedded]:
    """Yields what a reference makes of a stream's entries, in their order, and keeps it in the folder `cache`. From
    then on torch has so many `threads`."""
    with embedder(bundle, device, threads, cache, CACHE_BYTES) as reference:
        for seen in reference.run(_Entries(pairs, stream), str(bundle), EMBED_AT_ONCE, "embed"):
            yield seen.embedded


def _embed(home: Path, task: Task, stream: Stream, place: Path, device: str) -> None:
    place.mkdir(parents=True, exist_ok=True)
    began, own = time.process_time(), []
    for embedded in embed(home / "bundle", task.pairs, stream, place / "cache", device):
        own.append((embedded.image.float() * embedded.text.float()).sum(dim=1).numpy())
    np.save(place / "own.npy", np.concatenate(own))
    flops = measured(task.model(0))
    figures = {
        "embed_cpu_seconds": time.process_time() - began,
        "embed_flops": len(stream) * (flops.image + flops.text),
    }
    (place / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")


def described() -> dict[str, dict[str, object]]:
    """Returns the recipes as JSON takes them."""
    return {name: asdict(recipe) for name, recipe in RECIPES.items()}
