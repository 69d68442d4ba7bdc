"""Loaders whose picks are known without a sidecar."""

import json
import time
from types import SimpleNamespace

import numpy as np
from selector_client import SelectingLoader, Selection
from selector_client.selecting.settings import TooFew

SIZE, BATCH = 60, 12


class Chooser:
    """Picks a quarter, by seed and count, as a sidecar would; and remembers what it was asked."""

    def __init__(self, seed=5, world_size=1, picks=None):
        self.settings = SimpleNamespace(world_size=world_size)
        self.seed, self.count, self.timeout = seed, 0, 10.0
        self.steps, self.timeouts, self._picks, self.wait = [], [], picks, 0.0

    def select(self, images, texts, *, step, ids=None, timeout=None):
        self.steps.append(step)
        self.timeouts.append(timeout)
        number = self.seed + self.count
        self.count += 1
        picks = self._picks or len(images) // 4
        if picks > len(images):
            raise TooFew(f"{picks} picks of {len(images)} candidates")
        time.sleep(self.wait)
        return Selection(indices=np.random.default_rng(number).choice(len(images), picks, replace=False))

    def resume(self, count, seed=None):
        self.count, self.seed = count, self.seed if seed is None else seed


def shown(indices):
    return {"images": indices, "texts": indices}


class Numbers:
    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        return index


def over(chooser, **options):
    options = {"super_batch_size": BATCH, "view": shown, "seed": 3, "collate": list, "prefetch": 0} | options
    return SelectingLoader.over(Numbers(), chooser, **options)


def rest(loader, count):
    """So many sub-batches, over the ends of epochs."""
    found = []
    while len(found) < count:
        for batch in loader:
            found.append(batch)
            if len(found) == count:
                break
    return found


def saved(loader):
    return json.loads(json.dumps(loader.state_dict()))
