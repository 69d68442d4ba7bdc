"""Flexi-JEST scores candidates at a quarter of the pixels, and trains half of each sub-batch at that size, too, so that
the scores stay good. This prints what it costs against training without selection."""

import torch
from pairs import SIDE, smaller, super_batches
from selector_client import SelectingLoader, Selector, WeightPublisher
from selector_client.callbacks import TrainingHooks
from selector_client.flexi import MixedResolution, at_size
from selector_client.flops import FlopMeter, Towers
from shared import arguments, report
from torch.utils.flop_counter import FlopCounterMode
from towers import TwoTower, pixels, sigmoid_loss


def measured(model: TwoTower) -> Towers:
    """Returns the FLOPs of one forward pass of each tower, counted by torch."""
    counts = []
    for side in (SIDE, SIDE // 2):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.encode_image(torch.zeros(1, 3, side, side))
        counts.append(counter.get_total_flops())
    return Towers(image=counts[0], low_image=counts[1], text=0.0)  # a mean of words has no matrix product


def main() -> None:
    """Trains with selection and prints how it went."""
    flags = arguments(__doc__)
    model, mislabelled = TwoTower(), []
    optimizer = torch.optim.Adam(model.parameters(), 3e-3, betas=(0.9, 0.95))
    flexi = MixedResolution(model.encode_image, at_size(model.encode_image, SIDE // 2), share=0.5)
    meter = FlopMeter(measured(model), low_scoring=True)

    selector = Selector(flags.sidecar, run=flags.run, filter_ratio=0.8)
    publisher = WeightPublisher(flags.redis, run=flags.run, every=5)
    loader = SelectingLoader(
        super_batches(flags.steps),
        selector,
        view=lambda batch: {"images": smaller(batch["images"]), "texts": batch["texts"]},
    )
    hooks = TrainingHooks(selector, loader, publisher)
    for step, batch in enumerate(loader):
        image = flexi(pixels(batch["images"]), step)  # half of the batch is small; rows keep their order
        loss = sigmoid_loss(image, model.encode_text(torch.from_numpy(batch["texts"])), model)  # one loss over all
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        hooks.after_step(step + 1, model)
        # This counts as if the sidecar had a cache (--cache), so that the reference embeds nothing. Without one, add
        # uncached=5 * picks.
        picks = len(image)
        meter.add(candidates=5 * picks, picks=picks, low_picks=flexi.low_picks(picks))
        mislabelled.append(batch["mislabelled"])
    hooks.close()
    total = meter.total
    print(f"FLOPs: {total.spent:.3g}, {total.relative:.0%} of training without selection", end=" ")
    print(f"(training {total.train / total.baseline:.0%}, scoring {total.learner / total.baseline:.0%})")
    report(selector, loader, publisher, mislabelled)


if __name__ == "__main__":
    main()
