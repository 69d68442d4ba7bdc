"""The trainer knows nothing of selection: it takes batches from an iterator and may publish its weights."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from selector_client import WeightPublisher

from selector_server.errors import SetupError
from selector_tools.reference.augmentation import Augmentation
from selector_tools.study.checkpoint import Checkpoint
from selector_tools.study.learner import Learner, device_of
from selector_tools.study.record import Run

LearnerT = TypeVar("LearnerT", bound=Learner)
WARM_UP_STEPS = 50
DECAY_SHARE = 0.2


def train(
    model: LearnerT,
    batches: Iterator[Mapping[str, Any]],
    steps: int,
    *,
    learning_rate: float,
    weight_decay: float = 1e-4,
    augment: Augmentation | None = None,
    seed: int = 0,
    evaluate: Callable[[LearnerT], float] | None = None,
    evaluate_every: int = 25,
    publisher: WeightPublisher | None = None,
    checkpoint: Checkpoint | None = None,
    on_step: Callable[[int], None] = lambda _: None,
) -> Run:
    """Trains by AdamW with warm-up, a constant stretch and a linear decay, on pictures as `augment` changes them, by
    chances that `seed` decides, and goes on from `checkpoint` if it holds a state. Raises SetupError if the loss is no
    number any more."""
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay)
    rng = np.random.default_rng([seed, 2])
    run, place = Run(), device_of(model)
    done = 0 if checkpoint is None else checkpoint.restore(model, optimizer, rng, run)
    for step in range(done, steps):
        started, busy = time.perf_counter(), time.process_time()
        batch = next(batches)
        if publisher is not None:
            # Nothing is being scored now: this batch is picked, and the next selection waits for these weights if it
            # needs them. Which weights score a batch is therefore the same in every run.
            publisher.publish(step, model)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _schedule(step, steps)
        pixels = torch.from_numpy(batch["images"])
        if augment is not None:
            pixels = augment(pixels, rng)
        optimizer.zero_grad(set_to_none=True)
        loss = model.loss(pixels.to(place), torch.from_numpy(batch["texts"]).to(place))
        if not math.isfinite(value := loss.item()):
            limit = f"the loss at step {step + 1} is {value}; take a lower one"
            raise SetupError("learning rate", learning_rate, limit)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        run.rows.append(batch["ids"])
        run.seconds += time.perf_counter() - started
        run.cpu_seconds += time.process_time() - busy
        if evaluate is not None and ((step + 1) % evaluate_every == 0 or step + 1 == steps):
            run.accuracy.append((step + 1, evaluate(model)))
        if checkpoint is not None:
            checkpoint.keep(model, optimizer, rng, run)
        on_step(step + 1)
    return run


def _schedule(step: int, steps: int) -> float:
    warm_up = min(1.0, (step + 1) / min(WARM_UP_STEPS, max(1, steps // 4)))
    decay = min(1.0, (steps - step) / max(1.0, steps * DECAY_SHARE))
    return warm_up * decay
