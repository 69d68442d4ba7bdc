"""Selection within the Trainer of transformers."""

import json
from typing import Any

from transformers import TrainerCallback

from selector_client.callbacks.hooks import TrainingHooks

# The Trainer keeps its own state in its checkpoints, and under this name the loader's within it.
_STATE = "SelectingLoader"


class SelectorCallback(TrainerCallback):
    """Publishes the weights after optimizer steps, adds `TrainingHooks.metrics` to the Trainer's logs and its
    `state.log_history`, keeps the loader's state in the Trainer's, and closes publisher and selector when the training
    ends. The loader goes on by itself after `train(resume_from_checkpoint=...)`, so the Trainer must not leave out what
    was trained on before: its argument `ignore_data_skip` is set to True.

    trainer = Trainer(model, arguments, callbacks=[SelectorCallback(selector, loader, publisher)])
    trainer.get_train_dataloader = lambda: loader

    Arguments are those of `TrainingHooks`. How often metrics are logged is the Trainer's `logging_steps`. Reporters
    (TensorBoard, W&B) are called before callbacks: `trainer.callback_handler.callbacks.insert(0, callback)`, instead
    of `callbacks=`, shows them the metrics too.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        self._hooks = TrainingHooks(*args, log_every=0, **settings)

    def on_init_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:  # noqa: ARG002
        """Tells the Trainer not to leave out sub-batches after a checkpoint."""
        if self._hooks.loader is not None:
            args.ignore_data_skip = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:  # noqa: ARG002
        """Loads the loader's state from `state`, which is the checkpoint's if there is one. Raises ValueError if the
        Trainer means to leave out sub-batches (because the callback was added after the Trainer was made), or if the
        state is another loader's."""
        if self._hooks.loader is None or state.global_step == 0:
            return
        if not args.ignore_data_skip:
            raise ValueError("ignore_data_skip is False; must be True to resume, for the loader goes on by itself")
        if (saved := state.stateful_callbacks.get(_STATE)) is not None:
            self._hooks.loader.load_state_dict(saved)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:  # noqa: ARG002
        """Publishes, and keeps the loader's state, after an optimizer step."""
        self._hooks.after_step(state.global_step, model)
        if self._hooks.loader is not None:
            with self._hooks.guarded("keeping the loader's state"):
                saved = self._hooks.loader.state_dict()
                json.dumps(saved)  # a state that cannot be saved must not prevent the checkpoint
                state.stateful_callbacks[_STATE] = saved

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **more: Any) -> None:  # noqa: ARG002
        """Adds the metrics to `logs`, which go to the callbacks that follow, and to the history."""
        with self._hooks.guarded("logging"):
            metrics = self._hooks.metrics()
            if logs is not None:
                logs.update(metrics)
            if state.log_history:
                state.log_history[-1].update(metrics)

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:  # noqa: ARG002
        """Closes publisher, loader and selector."""
        self._hooks.close()
