"""Holds some pairs of a pool out of training, and ends training when it does not get better on them."""

import statistics
from collections.abc import Sequence
from hashlib import blake2b

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


def held_out(keys: Sequence[bytes], share: float, seed: int) -> NDArray[np.bool_]:
    """Draws about `share` of the pairs, at most MOST, bool [n]. Whether a pair is drawn depends on its key and the seed
    alone, not on its place, until there are more than MOST."""
    salt = seed.to_bytes(8, "little")
    digests = b"".join(blake2b(key, digest_size=8, key=salt).digest() for key in keys)
    numbers = np.frombuffer(digests, "<u8")
    drawn = numbers / 2.0**64 < share
    first = np.argsort(numbers)[:MOST]
    rows = np.zeros(len(keys), np.bool_)
    rows[first] = drawn[first]
    return rows


class Validation:
    """Looks at the AUC among `pairs` every `every` steps and after the last, keeps the weights of the best, and stops
    after `patience` looks without a better one (0: never). Of equal ones the latest counts as the best. `captions` say
    which pairs have the same text. `aucs` are (step, AUC). Raises SetupError if all captions are the same."""

    def __init__(
        self, model: TorchModel, pairs: Pairs, captions: Sequence[bytes], recipe: Recipe, every: int, patience: int
    ) -> None:
        if len(set(captions)) < 2:
            raise SetupError("--validation", f"{len(pairs)} pairs", "they have one and the same caption; set it to 0")
        self._model, self._pairs, self._captions, self._recipe = model, pairs, captions, recipe
        self._every, self._patience = every, patience
        self._frozen = {name for name, value in model.module.named_parameters() if not value.requires_grad}
        self._kept: dict[str, torch.Tensor] = {}
        self._waited = 0
        self.aucs: list[tuple[int, float]] = []
        self.best = (0, -1.0)

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self._pairs)

    def stops(self, step: int) -> bool:
        """Says, after each step, whether training should end."""
        if step % self._every and step != self._recipe.steps:
            return False
        auc = self._auc()
        self.aucs.append((step, auc))
        self._waited = 0 if auc > self.best[1] else self._waited + 1
        if auc >= self.best[1]:
            self.best = step, auc
            state = self._model.module.state_dict()
            self._kept = {name: state[name].cpu().clone() for name in state.keys() - self._frozen}
        return 0 < self._patience <= self._waited

    def restore(self) -> None:
        """Gives the model its best weights back."""
        self._model.module.load_state_dict(self._kept, strict=False)

    def as_json(self) -> dict[str, object]:
        """Returns what is told of it."""
        step, auc = self.best
        return {"pairs": len(self), "auc": auc, "step": step, "aucs": self.aucs}

    def _auc(self) -> float:
        """The AUC of `selector reference report`, over several wrong captions an image."""
        module, device, size, parts = self._model.module, self._recipe.device, self._recipe.batch, []
        module.eval()
        with torch.no_grad():
            for start in range(0, len(self._pairs), size):
                some = self._pairs.at(np.arange(start, min(start + size, len(self._pairs))))
                rows = (torch.from_numpy(part).to(device) for part in (some.images, some.texts))
                parts.append([embedding.cpu() for embedding in self._pairs.embed(*rows)])
            scale, bias = logit(self._model)
        module.train()
        image, text = (torch.cat(part) for part in zip(*parts, strict=True))
        embedded = Embedded.normalise(image, text, scale.item(), bias.item())
        return statistics.fmean(separate(embedded, self._captions, ring).auc for ring in range(_RINGS))
