"""What references are fitted on in tests: a task that a tiny model learns, and modules that the command imports."""

import sys

import numpy as np

from support.model import TOKENS


def task(count, seed=0):
    """Pictures of 16 patterns under noise, each called by one word of its own."""
    patterns = np.random.default_rng(99).integers(0, 200, (16, 8, 8, 3))
    rng = np.random.default_rng(seed)
    word = rng.integers(1, 17, count)
    images = (patterns[word - 1] + rng.integers(0, 55, (count, 8, 8, 3))).astype(np.uint8)
    tokens = np.zeros((count, TOKENS), np.int64)
    tokens[:, 0] = word
    return images, tokens


def with_module(folder, monkeypatch, name, code):
    """The folder, which is the working directory from now on, with a module of that code in it. The module is forgotten
    when the test is over, for other tests have one of the same name."""
    monkeypatch.setitem(sys.modules, name, sys)  # What was not there before is taken away in the end.
    del sys.modules[name]
    (folder / f"{name}.py").write_text(code)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    return folder
