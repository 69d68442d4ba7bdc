"""Selection in a plain PyTorch loop. The lines that it needs are numbered."""

import torch
from pairs import super_batches
from selector_client import SelectingLoader, Selector, WeightPublisher
from selector_client.callbacks import TrainingHooks
from shared import arguments, report
from towers import TwoTower, pixels, sigmoid_loss


def main() -> None:
    """Trains with selection and prints how it went."""
    flags = arguments(__doc__)
    model, mislabelled = TwoTower(), []
    optimizer = torch.optim.Adam(model.parameters(), 3e-3, betas=(0.9, 0.95))

    selector = Selector(flags.sidecar, run=flags.run, filter_ratio=0.8)  # 1
    publisher = WeightPublisher(flags.redis, run=flags.run, every=5)  # 2
    loader = SelectingLoader(super_batches(flags.steps), selector)  # 3: 320 candidates a step, 64 picks
    hooks = TrainingHooks(selector, loader, publisher)  # 4: publishes, logs, never raises into the loop

    for step, batch in enumerate(loader):
        image = model.encode_image(pixels(batch["images"]))
        loss = sigmoid_loss(image, model.encode_text(torch.from_numpy(batch["texts"])), model)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        hooks.after_step(step + 1, model)  # 5
        mislabelled.append(batch["mislabelled"])
    hooks.close()
    print(f"loss: {loss.item():.2f}")
    report(selector, loader, publisher, mislabelled)


if __name__ == "__main__":
    main()
