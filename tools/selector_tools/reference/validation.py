"""Holds some pairs of a pool out of training, and ends training when it does not get better on them.

What decides is how far up an image's own caption stands among those of all pairs held out. The AUC and the loss are of
no use for that: they stand still, or get worse, long before a reference has learnt what there is to learn."""

import statistics
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from selector_server.errors import SetupError
from selector_server.sampling import Embedded
from selector_tools.export.torch_model import TorchModel
from selector_tools.reference.separation import separate
from selector_tools.reference.training import Pairs, Recipe, logit

LEAST, MOST = 64, 2048
_RINGS = 8  # Each image meets so many wrong captions.


def held_out(keys: Sequence[bytes], share: float, seed: int, most: int = MOST) -> NDArray[np.bool_]:
    """Draws about `share` of the pairs, at most `most`, bool [n]. Whether a pair is drawn depends on its key and the
    seed alone, not on its place, until there are more than `most`."""
    salt = seed.to_bytes(8, "little")
    digests = b"".join(blake2b(key, digest_size=8, key=salt).digest() for key in keys)
    numbers = np.frombuffer(digests, "<u8")
    drawn = numbers / 2.0**64 < share
    first = np.argsort(numbers)[:most]
    rows = np.zeros(len(keys), np.bool_)
    rows[first] = drawn[first]
    return rows


class Look(NamedTuple):
    """What was seen after a step: the AUC of `selector reference report`, and the mean reciprocal rank of an image's
    own caption among all different ones, with its standard error."""

    step: int
    auc: float
    rank: float
    error: float


class Validation:
    """Looks at `pairs` every `every` steps and after the last, and stops after `patience` looks without a better rank
    than before (0: never). The weights of the last look whose rank is at most one standard error below the best are
    kept: of weights that are equal as far as can be seen, those that were trained the longest. `captions` say which
    pairs have the same text. Raises SetupError if all have."""

    def __init__(
        self, model: TorchModel, pairs: Pairs, captions: Sequence[bytes], recipe: Recipe, every: int, patience: int
    ) -> None:
        if len(set(captions)) < 2:
            raise SetupError("--validation", f"{len(pairs)} pairs", "they have one and the same caption; set it to 0")
        self._model, self._pairs, self._captions, self._recipe = model, pairs, captions, recipe
        self._every, self._patience = every, patience
        self._frozen = {name for name, value in model.module.named_parameters() if not value.requires_grad}
        self._weights: dict[str, torch.Tensor] = {}
        self._waited, self._best = 0, 0.0
        self.looks: list[Look] = []
        self.kept = Look(0, 0.0, 0.0, 0.0)

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self._pairs)

    def stops(self, step: int) -> bool:
        """Says, after each step, whether training should end."""
        if step % self._every and step != self._recipe.steps:
            return False
        look = self._look(step)
        self.looks.append(look)
        self._waited = 0 if look.rank > self._best else self._waited + 1
        self._best = max(self._best, look.rank)
        if look.rank >= self._best - look.error:
            self.kept, state = look, self._model.module.state_dict()
            self._weights = {name: state[name].cpu().clone() for name in state.keys() - self._frozen}
        return 0 < self._patience <= self._waited

    def restore(self) -> None:
        """Gives the model the weights back that were kept."""
        self._model.module.load_state_dict(self._weights, strict=False)

    def as_json(self) -> dict[str, object]:
        """Returns what is told of it."""
        names = {"step": "step", "auc": "auc", "rank": "mean_reciprocal_rank"}
        kept, *looks = ({names[key]: getattr(look, key) for key in names} for look in (self.kept, *self.looks))
        return {"pairs": len(self), **kept, "looks": looks}

    def _look(self, step: int) -> Look:
        module, device, size, parts = self._model.module, self._recipe.device, self._recipe.batch, []
        module.eval()
        with torch.no_grad():
            for start in range(0, len(self), size):
                some = self._pairs.at(np.arange(start, min(start + size, len(self))))
                rows = (torch.from_numpy(part).to(device) for part in (some.images, some.texts))
                parts.append([embedding.cpu() for embedding in self._pairs.embed(*rows)])
            scale, bias = logit(self._model)
        module.train()
        image, text = (torch.cat(part) for part in zip(*parts, strict=True))
        embedded = Embedded.normalise(image, text, scale.item(), bias.item())
        auc = statistics.fmean(separate(embedded, self._captions, ring).auc for ring in range(_RINGS))
        ranks = reciprocal_ranks(embedded, self._captions)
        return Look(step, auc, float(ranks.mean()), float(ranks.std() / len(ranks) ** 0.5))


def reciprocal_ranks(embedded: Embedded, captions: Sequence[bytes]) -> NDArray[np.float64]:
    """Returns 1 over the place of each image's own caption among the different ones, ordered by cosine, float64 [n];
    equal ones share the mean of their places."""
    first: dict[bytes, int] = {}
    for row, caption in enumerate(captions):
        first.setdefault(caption, row)
    column = {caption: number for number, caption in enumerate(first)}
    own = torch.tensor([column[caption] for caption in captions])
    cosines = embedded.image @ embedded.text[list(first.values())].T
    mine = cosines.gather(1, own[:, None])
    # The own caption is among the equal ones, which count half.
    places = 0.5 + (cosines > mine).sum(dim=1) + (cosines == mine).sum(dim=1) / 2
    return 1 / places.double().numpy()
