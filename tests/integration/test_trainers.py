"""Lightning's and transformers' own trainers: several epochs, checkpoints in the middle, and going on from them."""

import pytest
import torch
from selector_client import SelectingLoader
from selector_client.loading.dataset import SuperBatches
from selector_client.selecting.selection import Statistics
from selector_tools.export.torchvision import make_importable
from support.loaders import BATCH, SIZE, Chooser, over, rest

make_importable()  # both import torchvision
import lightning.pytorch as lightning  # noqa: E402
import transformers  # noqa: E402
from selector_client.callbacks.huggingface import SelectorCallback as TransformersCallback  # noqa: E402
from selector_client.callbacks.lightning import SelectorCallback as LightningCallback  # noqa: E402


class Choosing(Chooser):
    """A selector as callbacks know it."""

    def __init__(self, seed):
        super().__init__(seed)
        self.statistics = Statistics()

    def close(self):
        pass


def sized(chooser):
    return over(chooser, prefetch=2, collate=torch.tensor)


def unsized(chooser):
    """Two epochs, as WebDataset's: nobody knows how many super-batches there are."""
    epochs = SuperBatches(SIZE, BATCH, seed=3)
    return SelectingLoader(
        (indices for _ in range(2) for indices in epochs),
        chooser,
        view=lambda indices: {"images": indices, "texts": indices},
        take=lambda indices, picks: torch.from_numpy(indices[picks]),
    )


WANTED = [batch.tolist() for batch in rest(sized(Chooser()), 10)]


def fit(folder, make, seen, *, epochs, save_at=None, resume=None, stop_at=-1):
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def training_step(self, batch, batch_idx):
            seen.append(batch.tolist())
            return (self.weight - 1) ** 2

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    chooser = Choosing(seed=5 if resume is None else 99)
    callbacks = [LightningCallback(chooser, loader := make(chooser))]
    if save_at is not None:
        callbacks.append(
            lightning.callbacks.ModelCheckpoint(folder, filename="kept", every_n_train_steps=save_at, save_top_k=-1)
        )
    settings = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    settings["enable_checkpointing"] = save_at is not None
    trainer = lightning.Trainer(
        max_epochs=epochs, max_steps=stop_at, callbacks=callbacks, default_root_dir=folder, **settings
    )
    trainer.fit(Module(), train_dataloaders=loader, ckpt_path=resume)
    return loader


@pytest.mark.parametrize("make", [sized, unsized])
def test_lightning_sees_every_epoch_and_goes_on_from_a_checkpoint(tmp_path, make):
    epochs = 2 if make is sized else 1
    seen = []
    loader = fit(tmp_path, make, seen, epochs=epochs)
    assert seen == WANTED
    assert loader.progress.steps == 10
    first, second = [], []
    fit(tmp_path, make, first, epochs=epochs, save_at=3, stop_at=4)
    assert first == WANTED[:4]
    loader = fit(tmp_path, make, second, epochs=epochs, resume=tmp_path / "kept.ckpt")
    assert second == WANTED[3:]
    assert loader.progress.steps == 10


def test_lightnings_own_trainer_takes_the_callback():
    base = LightningCallback.__mro__[1]
    assert base is lightning.Callback
    assert all(hasattr(base, name) for name in vars(LightningCallback) if name.startswith("on_"))


# transformers


def train(folder, seen, *, stop_at=-1, accumulate=1, resume=None, late=False):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, picks):
            seen.append(picks.tolist())
            return {"loss": (self.weight - 1) ** 2}

    chooser = Choosing(seed=5 if resume is None else 99)
    loader = over(chooser, prefetch=2, collate=lambda samples: {"picks": torch.tensor(samples)})
    quiet = {"use_cpu": True, "report_to": [], "disable_tqdm": True}
    settings = transformers.TrainingArguments(
        str(folder),
        num_train_epochs=2,
        max_steps=stop_at,
        save_steps=3,
        gradient_accumulation_steps=accumulate,
        **quiet,
    )
    callback = TransformersCallback(chooser, loader)
    trainer = transformers.Trainer(Model(), settings, callbacks=[] if late else [callback])
    if late:
        trainer.add_callback(callback)
    trainer.get_train_dataloader = lambda: loader
    trainer.train(resume_from_checkpoint=resume)
    return loader


@pytest.mark.parametrize("accumulate", [1, 2])
def test_transformers_sees_every_epoch_and_goes_on_from_a_checkpoint(tmp_path, accumulate):
    """The third step is in the middle of an epoch, or its last: then two batches make a step, and the fifth its own."""
    trained = {1: 3, 2: 5}[accumulate]
    seen, first, second = [], [], []
    loader = train(tmp_path / "whole", seen, accumulate=accumulate)
    assert seen == WANTED
    assert loader.progress.steps == 10
    train(tmp_path / "part", first, accumulate=accumulate, stop_at=4)
    assert first == WANTED[: len(first)]
    assert len(first) > trained
    checkpoint = str(tmp_path / "part" / "checkpoint-3")
    loader = train(tmp_path / "part", second, accumulate=accumulate, resume=checkpoint)
    assert second == WANTED[trained:]
    assert loader.progress.steps == 10


def test_transformers_is_told_when_it_would_leave_out_sub_batches(tmp_path):
    train(tmp_path, [], stop_at=4, late=True)
    with pytest.raises(ValueError, match="ignore_data_skip is False; must be True to resume"):
        train(tmp_path, [], resume=str(tmp_path / "checkpoint-3"), late=True)
