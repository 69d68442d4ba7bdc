"""Selection with open_clip: a tiny ViT with SigLIP's loss trains at 32 pixels and is scored at 16. Half of each
sub-batch is trained at 16 too, with the position table resized as the sidecar resizes it; captions travel as
strings."""

from pathlib import Path
from typing import Any

import torch
from pairs import smaller, super_batches
from selector_client import SelectingLoader, Selector, WeightPublisher
from selector_client.callbacks import TrainingHooks
from selector_client.flexi import MixedResolution
from selector_proto.resize import resize_matrix
from selector_tools.export.torchvision import make_importable
from shared import arguments, report
from torch import distributed as dist
from torch.func import functional_call
from towers import pixels

make_importable()  # not needed where torch and torchvision come from the same place
import open_clip  # noqa: E402
from open_clip.loss import ClipLoss, SigLipLoss  # noqa: E402


def contrastive_loss(model: Any) -> torch.nn.Module:
    """Returns the loss that a model of open_clip was made for, which is what its bundle says to the sidecar: SigLIP's
    with a bias, CLIP's without. On several ranks SigLIP's loss sends the texts round in chunks, one rank's at a time,
    and never holds the logits of all; CLIP's gathers everything."""
    ranks = {"rank": dist.get_rank(), "world_size": dist.get_world_size()} if dist.is_initialized() else {}
    loss: torch.nn.Module = (ClipLoss if model.logit_bias is None else SigLipLoss)(**ranks)
    return loss


def low_resolution(visual: Any) -> Any:
    """Returns open_clip's vision transformer for 32 pixels (4 x 4 patches) as an encoder of 16 pixels (2 x 2)."""
    resize = torch.tensor(resize_matrix((4, 4), (2, 2), "bicubic", True), dtype=torch.float32)

    def encode(images: torch.Tensor) -> torch.Tensor:
        positions = visual.positional_embedding  # the first is the class token's
        positions = torch.cat([positions[:1], resize @ positions[1:]])
        small = torch.nn.functional.interpolate(images, 16, mode="area")
        out: torch.Tensor = functional_call(visual, {"positional_embedding": positions}, small)
        return out

    return encode


def main() -> None:
    """Trains with selection and prints how it went."""
    flags = arguments(__doc__)
    torch.manual_seed(0)
    open_clip.add_model_config(Path(__file__).parent / "configs")
    model, tokenize = open_clip.create_model("tiny-clip-32"), open_clip.get_tokenizer("tiny-clip-32")
    mean, std = model.visual.image_mean, model.visual.image_std
    flexi = MixedResolution(model.encode_image, low_resolution(model.visual))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.95))
    criterion, mislabelled = contrastive_loss(model), []

    selector = Selector(flags.sidecar, run=flags.run, filter_ratio=0.8)
    publisher = WeightPublisher(flags.redis, run=flags.run, every=5)
    loader = SelectingLoader(
        super_batches(flags.steps),
        selector,
        view=lambda batch: {"images": smaller(batch["images"]), "texts": batch["captions"]},
    )
    hooks = TrainingHooks(selector, loader, publisher)
    for step, batch in enumerate(loader):
        image = torch.nn.functional.normalize(flexi(pixels(batch["images"], mean, std), step), dim=1)
        text = model.encode_text(tokenize(batch["captions"]), normalize=True)
        bias = () if model.logit_bias is None else (model.logit_bias,)
        loss = criterion(image, text, model.logit_scale.exp(), *bias)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        hooks.after_step(step + 1, model)
        mislabelled.append(batch["mislabelled"])
    hooks.close()
    print(f"loss: {loss.item():.2f}")
    report(selector, loader, publisher, mislabelled)


if __name__ == "__main__":
    main()
