"""Made-up candidates, which cost little and are alike on every machine."""

import torch

from selector_server.sampling import Criterion, Embedded, PairScores

# The logit scale and bias of learner and reference.
LEARNER, REFERENCE = (10.0, -6.0), (20.0, -8.0)


def candidates(size: int, dim: int, seed: int, device: str = "cpu") -> PairScores:
    """Makes `size` candidates with embeddings of width `dim`: each is a concept that image and text show clearly to the
    reference and less clearly to the learner."""
    generator = torch.Generator().manual_seed(seed)

    def noise() -> torch.Tensor:
        return torch.randn((size, dim), generator=generator)

    concept = noise()

    def model(blur: float, scale: float, bias: float) -> Embedded:
        image, text = ((concept + blur * noise()).to(device) for _ in range(2))
        return Embedded.normalise(image, text, scale, bias)

    return PairScores(Criterion.LEARNABILITY, model(1.5, *LEARNER), model(0.8, *REFERENCE))
