"""Callbacks: weights go out after optimizer steps, metrics into the trainer's logs, and nothing is raised."""

import logging
import types

import numpy as np
import pytest
from selector_client import SelectingLoader, Selection, WeightPublisher
from selector_client.callbacks import TrainingHooks
from selector_client.loading.loader_progress import Progress
from selector_client.selecting.exclusions import Excluded
from selector_client.selecting.selection import Statistics
from selector_tools.export.torchvision import make_importable
from support.processes import free_port

make_importable()  # lightning imports torchvision
from selector_client.callbacks.lightning import SelectorCallback as LightningCallback  # noqa: E402

LAST = Selection(
    indices=np.arange(2),
    objective=0.5,
    objective_uniform=0.25,
    weights_lag_steps=3,
    weights_age_seconds=1.5,
    excluded={"missing": Excluded(np.array([4, 6, 7]), "texts[4] is None")},
)


class FakeSelector:
    def __init__(self):
        self.statistics, self.closed = Statistics(), 0
        self.statistics.add(LAST, 10, 0.1)
        self.statistics.add(Selection(indices=np.arange(2), fallback="unavailable", stale=True), 10, 0.1)

    def close(self):
        self.closed += 1


class FakePublisher:
    def __init__(self, error=None):
        self.error, self.calls, self.closed, self.published, self.failures = error, [], 0, 4, 1
        self.refused, self.refusals = 1, 2

    def publish(self, step, model):
        self.calls.append((step, model))
        if self.error:
            raise self.error

    def close(self):
        self.closed += 1
        if self.error:
            raise self.error


class FakeLoader:
    last, wait_seconds, progress = LAST, 2.5, Progress(dropped=7)

    def __init__(self):
        self.yielded = 0

    def tell_used(self):
        pass

    def used(self):
        self.yielded += 1

    def state_dict(self):
        return {}

    def close(self):
        pass


@pytest.fixture
def parts():
    return FakeSelector(), FakeLoader(), FakePublisher()


METRICS = {
    "selector/requests": 2.0,
    "selector/fallbacks": 1.0,
    "selector/stale": 1.0,
    "selector/unserved": 0.0,
    "selector/excluded": 3.0,
    "selector/errors": 0.0,
    "selector/wait_seconds": 2.5,
    "selector/dropped": 7.0,
    "selector/objective": 0.5,
    "selector/objective_uniform": 0.25,
    "selector/weights_lag_steps": 3.0,
    "selector/weights_age_seconds": 1.5,
    "selector/published": 4.0,
    "selector/publish_failures": 1.0,
    "selector/refusals": 3.0,
}


def test_hooks_publish_each_step_and_log_each_so_many(parts):
    logged = []
    hooks = TrainingHooks(
        *parts, weights=str.upper, log=lambda step, metrics: logged.append((step, metrics)), log_every=2
    )
    for step in (1, 2, 3):
        hooks.after_step(step, "w")
    assert parts[2].calls == [(1, "W"), (2, "W"), (3, "W")]
    assert logged == [(2, METRICS)]
    hooks.close()
    assert (parts[0].closed, parts[2].closed) == (1, 1)


def test_hooks_log_a_line_by_themselves(parts, caplog):
    with caplog.at_level(logging.INFO, "selector_client"):
        TrainingHooks(*parts, log_every=1).after_step(5, None)
    assert "step 5: selector/requests 2, selector/fallbacks 1" in caplog.text


def test_hooks_do_without_loader_and_publisher():
    hooks = TrainingHooks(FakeSelector())
    hooks.after_step(50, None)
    counts = ("requests", "fallbacks", "stale", "unserved", "excluded", "errors")
    assert set(hooks.metrics()) == {f"selector/{name}" for name in counts}
    hooks.close()


def test_before_the_first_selection_there_is_nothing_to_say_of_it(parts):
    loader = SelectingLoader([], None)
    metrics = TrainingHooks(parts[0], loader).metrics()
    assert metrics["selector/wait_seconds"] == 0.0
    assert "selector/objective" not in metrics


def test_what_fails_is_logged_once_counted_and_never_raised(parts, caplog):
    selector, loader, _ = parts
    publisher = FakePublisher(TypeError("complex64"))

    def broken(step, metrics):
        raise OSError("disk full")

    hooks = TrainingHooks(selector, loader, publisher, log=broken, log_every=1)
    for step in (1, 2):
        hooks.after_step(step, None)
    assert hooks.metrics()["selector/errors"] == 4
    assert [record.getMessage() for record in caplog.records] == [
        "publishing weights failed; training goes on",
        "logging failed; training goes on",
    ]
    assert "complex64" in caplog.text
    hooks.close()
    assert selector.closed == 1, "one part that does not close keeps no other open"


def test_a_wrong_setting_is_refused_at_once():
    with pytest.raises(ValueError, match="log_every is -1"):
        TrainingHooks(FakeSelector(), log_every=-1)


def test_only_rank_0_publishes_and_every_rank_gathers():
    """A publisher of another rank takes the state_dict, which gathers shards, and sends nothing."""
    asked = []
    model = types.SimpleNamespace(state_dict=lambda: asked.append(1) or {})
    with WeightPublisher(f"redis://127.0.0.1:{free_port()}", "r", rank=1) as publisher:
        hooks = TrainingHooks(FakeSelector(), None, publisher)
        hooks.after_step(1, model)
        assert (len(asked), publisher.published, hooks.metrics()["selector/errors"]) == (1, 0, 0)


class LightningModule:
    def __init__(self):
        self.logged, self.clip = [], object()

    def log_dict(self, metrics):
        self.logged.append(metrics)


def test_lightning_publishes_once_an_optimizer_step_and_logs_each_batch(parts):
    callback = LightningCallback(*parts, weights=lambda module: module.clip)
    module = LightningModule()
    callback.on_train_start(types.SimpleNamespace(global_step=4), module)
    for batch, steps in enumerate([4, 5, 5, 6]):  # gradients of two batches are accumulated
        callback.on_train_batch_end(types.SimpleNamespace(global_step=steps), module, None, None, batch)
    assert parts[2].calls == [(5, module.clip), (6, module.clip)]
    assert module.logged == [METRICS] * 4
    assert parts[1].yielded == 4


def test_lightning_closes_at_the_end_and_after_an_exception(parts):
    callback = LightningCallback(*parts)
    callback.on_train_end(None, None)
    callback.on_exception(None, None, KeyboardInterrupt())
    assert (parts[0].closed, parts[2].closed) == (2, 2)


@pytest.fixture
def huggingface(parts):
    """transformers' own CallbackHandler with the callback in it, as its Trainer calls it."""
    from selector_client.callbacks.huggingface import SelectorCallback
    from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, TrainerControl, TrainerState

    class Reporter(DefaultFlowCallback):
        seen = None

        def on_log(self, args, state, control, logs=None, **more):
            self.seen = dict(logs)

    reporter = Reporter()
    handler = CallbackHandler([SelectorCallback(*parts), reporter], "model", None, None, None)
    return handler, TrainerState(), TrainerControl(), reporter


def arguments():
    names = {"logging_first_step": False, "logging_strategy": "no", "eval_strategy": "no", "save_strategy": "no"}
    return types.SimpleNamespace(logging_steps=0, max_steps=5, **names)


def test_huggingface_publishes_after_optimizer_steps_and_closes(huggingface, parts):
    handler, state, control, _ = huggingface
    state.max_steps = 5
    for step in (1, 2):
        handler.on_substep_end(arguments(), state, control)
        state.global_step = step
        handler.on_step_end(arguments(), state, control)
    assert parts[2].calls == [(1, "model"), (2, "model")]
    handler.on_train_end(arguments(), state, control)
    assert (parts[0].closed, parts[2].closed) == (1, 1)


def test_huggingface_adds_metrics_to_logs_and_history(huggingface):
    handler, state, control, reporter = huggingface
    state.log_history.append({"loss": 1.0, "step": 3})  # as Trainer.log does before it calls
    handler.on_log(arguments(), state, control, {"loss": 1.0})
    assert reporter.seen == {"loss": 1.0} | METRICS
    assert state.log_history == [{"loss": 1.0, "step": 3} | METRICS]
