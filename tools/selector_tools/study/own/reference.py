"""The references of a user's study: a bundle that is there, or one for each seed, trained on a few pairs."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from selector_server.encoding import bundle as bundles
from selector_server.errors import SetupError
from selector_server.sampling import Embedded
from selector_tools.datasets.pairs import Pairs
from selector_tools.export.bundle_writer import export_reference
from selector_tools.export.torch_model import TorchModel
from selector_tools.progress import bar
from selector_tools.reference.training import Recipe, fit, whole_pairs
from selector_tools.reference.validation import Validation
from selector_tools.study.own.retrieval import Found, Retrieval
from selector_tools.study.references import embed
from selector_tools.study.streams import Stream

LOOKS, PATIENCE = 20, 5  # Training ends after so many looks at the validation without a better one.


@dataclass(frozen=True)
class OwnReference:
    """A reference on disk: its bundle, the cache with its embeddings of the training pairs, the cosine of each of these
    (`own`, float32 [n]), how well it does on the test itself, and what it cost once, in CPU seconds. It was trained for
    `steps`, 0 if it was there."""

    bundle: Path
    cache: Path
    own: NDArray[np.float32]
    test: Found
    steps: int
    train_cpu_seconds: float
    embed_cpu_seconds: float


def check(bundle: Path, model: TorchModel) -> None:
    """Raises SelectorError unless the bundle is a reference that takes the pixels and tokens which the model takes, and
    has its loss."""
    manifest = bundles.load(bundle, "reference").manifest
    sizes = [(one.image.height, one.image.width, one.image.channels) for one in (manifest, model)]
    if sizes[0] != sizes[1]:
        told = [" x ".join(map(str, size)) for size in sizes]
        raise SetupError("--reference", bundle, f"takes images of {told[0]}; must be {told[1]}, as the model does")
    words = [(one.text.max_tokens, one.text.vocabulary) for one in (manifest, model)]
    if words[0] != words[1]:
        limit = (
            f"takes {words[0][0]} tokens of {words[0][1]}; must be {words[1][0]} of {words[1][1]}, as the model does"
        )
        raise SetupError("--reference", bundle, limit)
    if manifest.loss != model.loss:
        raise SetupError("--reference", bundle, f"has the {manifest.loss} loss; must have the model's, {model.loss}")


def ready(
    bundle: Path,
    home: Path,
    train: Pairs,
    test: Retrieval,
    device: str,
    threads: int,
    trained: tuple[int, float] = (0, 0.0),
) -> OwnReference:
    """Has a reference embed what is trained on, and judges it by the test. `trained` says by how many steps and CPU
    seconds it came about."""
    began = time.process_time()
    seen = embed(bundle, train, stored(train), home / "cache", device, threads)
    own = np.concatenate([(part.image.float() * part.text.float()).sum(dim=1).numpy() for part in seen])
    spent = time.process_time() - began
    judged = Embedded.joined(list(embed(bundle, test.pairs, stored(test.pairs), None, device, threads)))
    return OwnReference(bundle, home / "cache", own, test.by(judged), *trained, spent)


def fitted(model: TorchModel, pairs: Pairs, validation: Pairs, recipe: Recipe, bundle: Path) -> tuple[int, float]:
    """Trains a model in place until the validation gets no better, and writes its bundle. Returns the steps, and what
    they took, in CPU seconds. Raises SelectorError."""
    began = time.process_time()
    seen = whole_pairs(model, validation.pixels, validation.tokens)
    captions = [row.tobytes() for row in validation.tokens]
    judge = Validation(model, seen, captions, recipe, max(1, recipe.steps // LOOKS), PATIENCE)
    with bar("train the reference", recipe.steps) as advance:
        fit(model, whole_pairs(model, pairs.pixels, pairs.tokens), recipe, lambda _: advance(1), judge.stops)
    judge.restore()
    spent = time.process_time() - began
    # Its first weights are what the model keeps as its state; the reference is what was trained.
    export_reference(replace(model, state=model.module.state_dict()), bundle)
    return judge.kept.step, spent


def stored(pairs: Pairs) -> Stream:
    """Returns the pairs as a stream in the order that they are stored in."""
    rows = np.arange(len(pairs.pixels))
    return Stream(rows, rows)
