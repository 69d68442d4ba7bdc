"""Selection within trainers: `TrainingHooks` for loops of your own; `callbacks.lightning` and `callbacks.huggingface`,
which need those libraries, are imported by name."""

from selector_client.callbacks.hooks import TrainingHooks

__all__ = ["TrainingHooks"]
