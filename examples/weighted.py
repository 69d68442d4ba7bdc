"""Select, then weight: picks whose caption the reference finds unlikely count less in the loss."""

import torch
from pairs import super_batches
from selector_client import SelectingLoader, Selection, Selector, WeightPublisher
from selector_client.callbacks import TrainingHooks
from shared import arguments, report
from torch import Tensor
from towers import TwoTower, pair_losses, pixels


def weights(selection: Selection | None, picks: int) -> Tensor:
    """Returns float [b], of mean 1: exp(-r) of the reference's own losses r, all alike if the sub-batch is uniform."""
    if selection is None or selection.reference_losses is None:
        return torch.ones(picks)
    return picks * torch.from_numpy(-selection.reference_losses).softmax(dim=0)


def main() -> None:
    """Trains with weighted picks and prints how it went."""
    flags = arguments(__doc__)
    model, mislabelled, weighed = TwoTower(), [], []
    optimizer = torch.optim.Adam(model.parameters(), 3e-3, betas=(0.9, 0.95))

    selector = Selector(
        flags.sidecar, run=flags.run, filter_ratio=0.8, pair_criterion="easy-reference", return_losses=True
    )
    publisher = WeightPublisher(flags.redis, run=flags.run, every=5)
    loader = SelectingLoader(super_batches(flags.steps), selector)
    hooks = TrainingHooks(selector, loader, publisher)

    for step, batch in enumerate(loader):
        weight = weights(loader.last, len(batch["texts"]))  # the selection of this batch, in the order of its rows
        image = model.encode_image(pixels(batch["images"]))
        losses = pair_losses(image, model.encode_text(torch.from_numpy(batch["texts"])), model)
        optimizer.zero_grad()
        (weight * losses).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        hooks.after_step(step + 1, model)
        mislabelled.append(batch["mislabelled"])
        weighed.append(weight[torch.from_numpy(batch["mislabelled"])])
    hooks.close()
    print(f"weight: {torch.cat(weighed).mean():.2f} of a mislabelled pick, 1.00 of all")
    report(selector, loader, publisher, mislabelled)


if __name__ == "__main__":
    main()
