"""Selection within Lightning's Trainer (`lightning` 2, or `pytorch_lightning`)."""

from typing import Any, Protocol, runtime_checkable

from selector_client.callbacks.hooks import TrainingHooks

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError:  # whoever calls the same methods
        Callback = object

_STATE = "selecting_loader"


@runtime_checkable
class _Resumable(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


class SelectorCallback(Callback):  # type: ignore[misc]
    """Publishes the weights after optimizer steps, logs `TrainingHooks.metrics`, keeps the loader's place in
    checkpoints, and closes publisher and selector when the training ends or fails.

    trainer = Trainer(callbacks=[SelectorCallback(selector, loader, publisher, weights=lambda module: module.clip)])
    trainer.fit(module, train_dataloaders=loader)

    Arguments are those of `TrainingHooks`. How often metrics are logged is the Trainer's `log_every_n_steps`.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__()
        self._hooks = TrainingHooks(*args, log_every=0, **settings)
        self._step = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """The hook of Lightning."""
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """The hook of Lightning."""
        if trainer.global_step != self._step:  # else the gradient is still being accumulated
            self._step = trainer.global_step
            self._hooks.after_step(trainer.global_step, pl_module)
        with self._hooks.guarded("logging"):
            pl_module.log_dict(self._hooks.metrics())

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """The hook of Lightning."""
        if isinstance(loader := self._hooks.loader, _Resumable):
            with self._hooks.guarded("saving the loader's state"):
                checkpoint[_STATE] = loader.state_dict()

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """The hook of Lightning."""
        if isinstance(loader := self._hooks.loader, _Resumable) and _STATE in checkpoint:
            with self._hooks.guarded("loading the loader's state"):
                loader.load_state_dict(checkpoint[_STATE])

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """The hook of Lightning."""
        self._hooks.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
        """The hook of Lightning."""
        self._hooks.close()
