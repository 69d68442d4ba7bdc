"""Checkpoints that trainers' own libraries write, read by `selector export`."""

import numpy as np
import torch
from selector_tools.export.checkpoint import Checkpoint, load
from selector_tools.export.torchvision import make_importable
from support.checkpoints import assert_same, module


def test_lightnings_own_checkpoint(tmp_path):
    make_importable()
    import lightning

    class Training(lightning.LightningModule):
        def __init__(self, width=3):
            super().__init__()
            self.save_hyperparameters()
            self.clip = module(1)

        def training_step(self, batch, _index):
            return self.clip(batch).sum()

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=np.float64(0.0))
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, np.float64(0.5))]

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_steps=1, default_root_dir=tmp_path, **quiet)
    training = Training()
    trainer.fit(training, torch.utils.data.DataLoader(torch.ones(4, 3), batch_size=4))
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    target = module(2)
    load(target, Checkpoint(tmp_path / "c.ckpt"))
    assert_same(target.state_dict(), training.clip.state_dict())


def test_accelerates_own_folder(tmp_path):
    import accelerate

    accelerator = accelerate.Accelerator(cpu=True)
    accelerator.prepare(module(1))
    accelerator.save_state(str(tmp_path / "state"))
    target = module(2)
    load(target, Checkpoint(tmp_path / "state"))
    assert_same(target.state_dict(), module(1).state_dict())
