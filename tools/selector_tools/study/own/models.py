"""A user's model, made anew for each run."""

import argparse
import copy
from contextlib import ExitStack
from dataclasses import replace

from selector_tools.export.command import built
from selector_tools.export.torch_model import TorchModel


class Models:
    """Builds the model that the flags of `selector_tools.export.flags.add_model` ask for, once a seed. Where weights
    are random the seed decides them; where they are loaded, all seeds begin alike. What they need is kept until the
    `stack` closes."""

    def __init__(self, flags: argparse.Namespace, command: str, stack: ExitStack) -> None:
        self._flags, self._command, self._stack = flags, command, stack
        self._built: dict[int, TorchModel] = {}

    def __call__(self, seed: int) -> TorchModel:
        """Returns a model of its own to whoever asks. It is what is trained: at a low resolution, it has weights of
        that resolution. Raises SelectorError."""
        if seed not in self._built:
            flags = argparse.Namespace(**vars(self._flags) | {"seed": seed})
            _, self._built[seed] = self._stack.enter_context(built(flags, self._command))
        model = self._built[seed]
        return replace(model, module=copy.deepcopy(model.module), state={}, resizes={})
