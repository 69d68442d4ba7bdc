"""Reads the pool of `selector reference fit`, trains on it, and writes the bundle."""

import argparse
import json
import warnings
from collections import deque
from dataclasses import replace
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from selector_server.encoding.decoder import Decoder
from selector_server.encoding.device import Device
from selector_server.encoding.preprocess import Preprocessor, load_tokenizer
from selector_server.errors import SetupError
from selector_server.machine import usable_cpus
from selector_tools.export.bundle_writer import export_reference
from selector_tools.export.torch_model import TorchModel
from selector_tools.pools import reading
from selector_tools.pools.opening import open_pool
from selector_tools.progress import bar, pace
from selector_tools.reference import flags as shared
from selector_tools.reference.augmentation import Augmentation
from selector_tools.reference.frozen.towers import embedded_once
from selector_tools.reference.training import Pairs, Recipe, fit, whole_pairs
from selector_tools.reference.validation import LEAST, Validation, held_out

_LAST = 50  # The mean loss of so many last steps is told.
_SHARE = 0.05  # of the pool is held out, unless --validation says otherwise.
_LOOKS = 40  # So often are the held-out pairs looked at, unless --validate-every says otherwise.


def fit_and_export(flags: argparse.Namespace, model: TorchModel, command: str) -> None:
    """Does what the flags of `selector reference fit` say, and prints what came of it. Raises SelectorError."""
    threads = flags.threads or usable_cpus()
    torch.set_num_threads(threads)
    Device(flags.device)  # fails now if it is not there
    if flags.shift >= (side := min(model.image.height, model.image.width)):
        raise SetupError("--shift", flags.shift, f"must be less than the image's side, {side} pixels")
    pool, excluded = open_pool(flags.pool), shared.exclusions(flags)
    with Decoder(threads) as decoder:
        tokenizer = load_tokenizer(model.tokenizer)
        preprocessor = Preprocessor(model.image, model.text, tokenizer, "", reading.LIMITS, decoder)
        keys, pixels, tokens = reading.read_pool(preprocessor, pool, flags.pool, excluded, flags.memory_bytes)
    shared.tell_excluded(command, excluded)
    held = _held_out(flags, keys, command)
    if (left := int((~held).sum())) < flags.batch:
        raise SetupError("--batch", flags.batch, f"the pool holds {left} readable pairs to train on")
    augmentation = Augmentation(flags.shift, flags.crop, flags.flip)
    rates = flags.learning_rate, flags.weight_decay
    recipe = Recipe(flags.steps, flags.batch, *rates, flags.seed, flags.device, augmentation=augmentation)
    frozen = flags.image_tower is not None
    pairs = embedded_once(model, pixels, tokens, flags.device) if frozen else whole_pairs(model, pixels, tokens)
    validation = None
    if held.any():
        captions = [row.tobytes() for row in tokens[held]]
        every = flags.validate_every or max(1, flags.steps // _LOOKS)
        validation = Validation(model, pairs.at(held), captions, recipe, every, flags.patience)
        pairs = pairs.at(~held)
    began = perf_counter()
    steps, loss = _trained(model, pairs, recipe, validation)
    seconds = perf_counter() - began
    judged = "" if validation is None else _judged(validation)
    kept = steps if validation is None else validation.kept.step
    told = f"trained on {len(pairs):,} pairs for {kept:,} steps" + (f"; {judged}" if judged else "")
    # A model at a resolution of its own keeps the state that it came from; the reference is what was trained.
    origin = f"{model.origin}; {told}"[:1024]
    trained = replace(model, state=model.module.state_dict(), resizes={}, origin=origin)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = export_reference(trained, flags.out, precision=flags.precision)
    bundle = exported.bundle
    if flags.json:
        figures = {"pairs": len(pairs), "steps": steps, "seconds": seconds, "loss": loss}
        looks = {"validation": None if validation is None else validation.as_json()}
        written = {"bundle": str(bundle.path), "fingerprint": bundle.fingerprint}
        print(json.dumps(figures | looks | written | {"exclusions": excluded.as_json()}))
        return
    print(f"trained on {len(pairs):,} pairs, {steps:,} steps {pace(steps * flags.batch, seconds)}")
    print(f"loss {loss:.3f} over the last {min(steps, _LAST)} steps")
    if validation is not None:
        early = f"; stopped early, before {flags.steps:,}" if steps < flags.steps else ""
        print(f"{judged}, from step {kept:,}{early}")
    print(f"bundle: {bundle.path}, fingerprint {bundle.fingerprint[:16]}")


def _judged(validation: Validation) -> str:
    kept = validation.kept
    return f"AUC {kept.auc:.3f}, mean reciprocal rank {kept.rank:.3f} on {len(validation):,} pairs held out"


def _held_out(flags: argparse.Namespace, keys: list[bytes], command: str) -> NDArray[np.bool_]:
    """Returns which pairs are for validation, bool [n]; none of a pool that is too small, unless it was asked for.
    Raises SetupError if it was."""
    share = _SHARE if flags.validation is None else flags.validation
    held = held_out(keys, share, flags.seed)
    if share == 0 or (count := int(held.sum())) >= LEAST:
        return held
    few = f"holds out {count:,} of {len(keys):,} pairs; at least {LEAST} tell how good it is"
    if flags.validation is not None:
        raise SetupError("--validation", share, f"{few}; raise it, or set it to 0")
    shared.tell(command, f"no validation: a share of {share} {few}")
    return np.zeros(len(keys), np.bool_)


def _trained(model: TorchModel, pairs: Pairs, recipe: Recipe, validation: Validation | None) -> tuple[int, float]:
    """Trains in sight of people. Returns the number of steps, and the mean loss of the last ones."""
    last: deque[float] = deque(maxlen=_LAST)
    with bar("train", recipe.steps) as advance:

        def on_step(loss: float) -> None:
            last.append(loss)
            auc = f", AUC {validation.looks[-1].auc:.3f}" if validation is not None and validation.looks else ""
            advance(1, f"train, loss {sum(last) / len(last):.3f}{auc}")

        if validation is None:
            steps = fit(model, pairs, recipe, on_step)
        else:
            steps = fit(model, pairs, recipe, on_step, validation.stops)
            validation.restore()
    return steps, sum(last) / len(last)
