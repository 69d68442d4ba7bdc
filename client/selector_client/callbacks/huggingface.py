"""Selection within the Trainer of transformers."""

from typing import Any

from transformers import TrainerCallback

from selector_client.callbacks.hooks import TrainingHooks


class SelectorCallback(TrainerCallback):
    """Publishes the weights after optimizer steps, adds `TrainingHooks.metrics` to the Trainer's logs and its
    `state.log_history`, and closes publisher and selector when the training ends.

    trainer = Trainer(model, arguments, callbacks=[SelectorCallback(selector, loader, publisher)])
    trainer.get_train_dataloader = lambda: loader

    Arguments are those of `TrainingHooks`. How often metrics are logged is the Trainer's `logging_steps`. Reporters
    (TensorBoard, W&B) are called before callbacks: `trainer.callback_handler.callbacks.insert(0, callback)`, instead
    of `callbacks=`, shows them the metrics too.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        self._hooks = TrainingHooks(*args, log_every=0, **settings)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:  # noqa: ARG002
        """The hook of transformers: one optimizer step was made."""
        self._hooks.after_step(state.global_step, model)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **more: Any) -> None:  # noqa: ARG002
        """The hook of transformers: `logs` were appended to the history, and go to the callbacks that follow."""
        with self._hooks.guarded("logging"):
            metrics = self._hooks.metrics()
            if logs is not None:
                logs.update(metrics)
            if state.log_history:
                state.log_history[-1].update(metrics)

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:  # noqa: ARG002
        """The hook of transformers."""
        self._hooks.close()
