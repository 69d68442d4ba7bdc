"""Selection within Lightning's Trainer (`lightning` 2, or `pytorch_lightning`)."""

from typing import Any

from selector_client.callbacks.hooks import TrainingHooks

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError:  # the class then serves whoever calls the same methods
        Callback = object


class SelectorCallback(Callback):  # type: ignore[misc]
    """Publishes the weights after optimizer steps, logs `TrainingHooks.metrics`, and closes publisher and selector when
    the training ends or fails. Lightning itself keeps the loader's state in its checkpoints.

    trainer = Trainer(callbacks=[SelectorCallback(selector, loader, publisher, weights=lambda module: module.clip)])
    trainer.fit(module, train_dataloaders=loader)

    Arguments are those of `TrainingHooks`. How often metrics are logged is the Trainer's `log_every_n_steps`.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__()
        self._hooks = TrainingHooks(*args, log_every=0, **settings)
        self._step = 0
        if (loader := self._hooks.loader) is not None:
            # From a loader without a length Lightning fetches one sub-batch ahead, to see whether it is the last.
            loader.tell_used()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Notes where the training begins."""
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Publishes after an optimizer step, and logs the metrics."""
        if self._hooks.loader is not None:
            self._hooks.loader.used()
        if trainer.global_step != self._step:  # otherwise the gradient is still being accumulated
            self._step = trainer.global_step
            self._hooks.after_step(trainer.global_step, pl_module)
        with self._hooks.guarded("logging"):
            pl_module.log_dict(self._hooks.metrics())

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Closes publisher, loader and selector."""
        self._hooks.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
        """Closes publisher, loader and selector."""
        self._hooks.close()
