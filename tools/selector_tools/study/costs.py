"""What a training costs: examples by what was done with them, FLOPs as measured and as the paper counts them, and CPU
seconds of trainer and sidecar."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from selector_tools.datasets.pairs import MAX_TOKENS
from selector_tools.study.model import SIDE, SmallSigLip

TICKS = 100  # of a second, in which Linux counts a process's time


@dataclass
class Counts:
    """Examples: `trained` on; `shown` to the sidecar as candidates; of these `decoded`, as something had to look at
    them, `scored` by the learner, and `embedded` by the reference, whose embeddings were not in the cache."""

    trained: int = 0
    shown: int = 0
    decoded: int = 0
    scored: int = 0
    embedded: int = 0


@dataclass(frozen=True)
class Flops:
    """FLOPs of one example: the passes of `image` and `text` tower forward, and `train` forward and backward, as torch
    counts its products; `low_image` is what scoring costs of the image tower."""

    image: float
    text: float
    train: float
    low_image: float
    width: int

    def spent(self, counts: Counts, pairs: float) -> float:
        """Returns what was spent, `pairs` being how many logits the draws needed (two products of embeddings each)."""
        scoring = counts.scored * (self.low_image + self.text) + counts.embedded * (self.image + self.text)
        return counts.trained * self.train + scoring + pairs * 4 * self.width

    def by_paper(self, counts: Counts) -> float:
        """Returns what the paper's model says (Evans et al. 2024, appendix A.4): three passes a trained example, one a
        scored one, and nothing for the draw."""
        full, low = self.image + self.text, self.low_image + self.text
        return 3 * full * counts.trained + low * counts.scored + full * counts.embedded


def measured(model: SmallSigLip, scorer: SmallSigLip | None = None, batch: int = 128) -> Flops:
    """Counts the FLOPs of an example of a model, whose candidates are scored by `scorer` (None for the same form)."""
    pixels = torch.zeros(batch, SIDE, SIDE, 1, dtype=torch.uint8)
    tokens = torch.ones(batch, MAX_TOKENS, dtype=torch.int64)
    images = torch.zeros(batch, 1, SIDE, SIDE)
    with torch.no_grad():
        image = _count(lambda: model.encode_image(images))
        text = _count(lambda: model.encode_text(tokens))
        low = image if scorer is None else _count(lambda: scorer.encode_image(images))
    train = _count(lambda: model.loss(pixels, tokens).backward())  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
    width = model(pixels, tokens)[1].shape[1]
    return Flops(image / batch, text / batch, train / batch, low / batch, width)


def _count(call: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def cpu_seconds(pid: int) -> float:
    """Returns the CPU seconds that a process has used. Linux only."""
    columns = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(columns[11]) + int(columns[12])) / TICKS
