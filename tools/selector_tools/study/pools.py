"""The pools that studies train on, and which of their held-out families judge: the validation families every choice and
every curve, the test families final checkpoints only."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from selector_tools.datasets import icons
from selector_tools.datasets.dataset import Dataset, Pictures


def _iconify() -> Dataset:
    from selector_tools.datasets import iconify  # noqa: PLC0415 - needs the data extra

    return iconify.load()


@dataclass(frozen=True)
class StudyPool:
    """A pool by name: what it holds in words, how it is loaded, and the families of the validation; those of the test
    are the other held-out ones. A zero-shot class has `class_size` pictures or more."""

    about: str
    load: Callable[[], Dataset]
    validation: tuple[str, ...]
    class_size: int = 2

    def split(self, evaluation: Pictures) -> tuple[Pictures, Pictures]:
        """Returns the pictures of the validation and those of the test."""
        chosen = np.isin(evaluation.families, self.validation)
        return evaluation.take(np.flatnonzero(chosen)), evaluation.take(np.flatnonzero(~chosen))


POOLS = {
    "icons": StudyPool("icons of fonts with their names (the demo's pool)", icons.load, ("lucide", "ion")),
    "iconify": StudyPool(
        "321,000 icons of many sets with their names",
        _iconify,
        ("lucide", "carbon", "ion", "heroicons"),
        class_size=3,
    ),
}
