"""Selection in Lightning: the loader takes the place of a DataLoader, and a callback does the rest."""

from typing import Any

import torch
from pairs import super_batches
from selector_client import SelectingLoader, Selector, WeightPublisher
from selector_client.callbacks.lightning import SelectorCallback
from shared import arguments, report
from towers import TwoTower, pixels, sigmoid_loss

try:
    from lightning.pytorch import LightningModule, Trainer
except ImportError:
    print("lightning is not installed (pip install lightning): nothing was trained")
    raise SystemExit(0) from None


class Module(LightningModule):  # type: ignore[misc]
    """The model as Lightning wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = TwoTower()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        """Returns the loss of one sub-batch."""
        image = self.towers.encode_image(pixels(batch["images"]))
        return sigmoid_loss(image, self.towers.encode_text(torch.from_numpy(batch["texts"])), self.towers)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns Adam with the beta2 of JEST."""
        return torch.optim.Adam(self.parameters(), 3e-3, betas=(0.9, 0.95))


def main() -> None:
    """Trains with selection and prints how it went."""
    flags = arguments(__doc__)
    selector = Selector(flags.sidecar, run=flags.run, filter_ratio=0.8)
    publisher = WeightPublisher(flags.redis, run=flags.run, every=5)
    loader = SelectingLoader(super_batches(flags.steps), selector)
    # The bundle knows the towers' names, not those of the module around them.
    callback = SelectorCallback(selector, loader, publisher, weights=lambda module: module.towers)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", callbacks=[callback], **quiet)
    trainer.fit(Module(), train_dataloaders=loader)
    report(selector, loader, publisher)


if __name__ == "__main__":
    main()
