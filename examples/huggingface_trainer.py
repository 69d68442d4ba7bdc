"""Selection with transformers: the library's Trainer trains a tiny CLIP if accelerate, which it needs, is installed.
Else a loop does, which calls the same callback."""

import importlib.util
import tempfile
from typing import Any

import torch
from pairs import END, MAX_TOKENS, SIDE, VOCABULARY, super_batches
from selector_client import SelectingLoader, Selector, WeightPublisher
from selector_tools.export.torchvision import make_importable
from shared import arguments, report
from towers import pixels

make_importable()  # not needed where torch and torchvision come from the same place
from selector_client.callbacks.huggingface import SelectorCallback  # noqa: E402
from transformers import CLIPConfig, CLIPModel, Trainer, TrainerState, TrainingArguments  # noqa: E402


def tiny_clip() -> CLIPModel:
    """Returns two small transformers with random weights."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": MAX_TOKENS, "eos_token_id": END, "pad_token_id": 0}
    vision = {"image_size": SIDE, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=size | text, vision_config=size | vision, projection_dim=24))


def take(super_batch: dict[str, Any], rows: Any) -> dict[str, Any]:
    """Returns the picks as arguments of the model."""
    return {
        "pixel_values": pixels(super_batch["images"][rows]),
        "input_ids": torch.from_numpy(super_batch["texts"][rows]),
        "return_loss": True,
    }


def train_by_trainer(model: CLIPModel, loader: SelectingLoader, callback: SelectorCallback, steps: int) -> None:
    """Has Trainer train from the loader."""

    class Selected(Trainer):
        def get_train_dataloader(self) -> Any:
            return loader

    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, max_steps=steps, learning_rate=3e-3, adam_beta2=0.95, logging_steps=25, use_cpu=True, report_to=[]
        )
        Selected(model, settings, callbacks=[callback]).train()


def train_by_loop(model: CLIPModel, loader: SelectingLoader, callback: SelectorCallback) -> None:
    """Does the same without accelerate."""
    state, optimizer = TrainerState(), torch.optim.AdamW(model.parameters(), 3e-3, betas=(0.9, 0.95))
    for batch in loader:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
        state.global_step += 1
        callback.on_step_end(None, state, None, model=model)
    callback.on_train_end(None, state, None)


def main() -> None:
    """Trains with selection and prints how it went."""
    flags = arguments(__doc__)
    model = tiny_clip()
    selector = Selector(flags.sidecar, run=flags.run, filter_ratio=0.8)
    publisher = WeightPublisher(flags.redis, run=flags.run, every=5)
    loader = SelectingLoader(super_batches(flags.steps), selector, take=take)
    callback = SelectorCallback(selector, loader, publisher)
    if importlib.util.find_spec("accelerate"):
        train_by_trainer(model, loader, callback, flags.steps)
    else:
        print("accelerate is not installed, which transformers' Trainer needs: a plain loop instead")
        train_by_loop(model, loader, callback)
    report(selector, loader, publisher)


if __name__ == "__main__":
    main()
