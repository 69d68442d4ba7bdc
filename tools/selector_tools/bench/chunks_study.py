"""The chunk study: how much of what Gibbs sampling gains over independent selection does joint selection in N chunks
gain? (This is the middle of the paper's figure 2.)"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from selector_server.sampling import Criterion, Draw, Embedded, PairScores, Plan, chunk_sizes
from selector_server.sampling.policies import Joint
from selector_tools.bench.baselines import gibbs, matrix
from selector_tools.bench.measuring import mean_and_error
from selector_tools.datasets import icons
from selector_tools.datasets.dataset import Dataset, shuffle_captions
from selector_tools.datasets.pairs import Pairs, make_tokenizer
from selector_tools.study.model import SmallSigLip
from selector_tools.study.streams import draws
from selector_tools.study.training import train

CHUNKS = (1, 2, 4, 8, 16, 32)
# The models are trained at this size, so that their bias fits as many negatives. With the demo's 128, and 512 picks,
# pairs would weigh more than candidates' own scores, far from the paper's setting.
BATCH = 1024
REFERENCE_STEPS = 200
LEARNING_RATE = 2e-3
NOISE = 0.5

OnStep = Callable[[], None]


@dataclass(frozen=True)
class Trial:
    """Scores of sub-batches from one super-batch, in nats per pick: `chunks` those of a draw in N chunks, by N, and
    `gibbs` those after each sweep of Gibbs sampling, which drew members anew `gibbs_steps` times."""

    chunks: dict[int, float]
    gibbs: list[float]
    gibbs_steps: int

    @property
    def gap(self) -> float:
        return self.gibbs[-1] - self.chunks[1]


def embed_pool(learner_steps: int, on_step: OnStep) -> PairScores:
    """Returns the demo's pool as two models see it: a learner after `learner_steps` steps of uniform batches, and the
    reference. `on_step` is called after each step of both."""
    candidates, curated, tokenizer = prepare(icons.load(), 0)
    vocabulary = tokenizer.get_vocab_size()
    reference = _trained(curated, vocabulary, 1, REFERENCE_STEPS, 1e-2, on_step)
    learner = _trained(candidates, vocabulary, 0, learner_steps, 1e-4, on_step)
    return PairScores(Criterion.LEARNABILITY, embedded(learner, candidates), embedded(reference, candidates))


def prepare(data: Dataset, seed: int) -> tuple[Pairs, Pairs, Tokenizer]:
    """Returns the pool with a share NOISE of its captions shuffled, the curated set, and the words of both."""
    captions, _ = shuffle_captions(data.pool.captions, NOISE, seed)
    with TemporaryDirectory() as folder:
        tokenizer = make_tokenizer([*data.pool.captions, *data.curated.captions], Path(folder) / "tokenizer.json")
    candidates = Pairs.of(data.pool, captions, tokenizer)
    return candidates, Pairs.of(data.curated, data.curated.captions, tokenizer), tokenizer


@torch.no_grad()
def embedded(model: SmallSigLip, pairs: Pairs, at_once: int = 4096) -> Embedded:
    """Returns the embeddings of all pairs; `at_once` bounds memory."""
    halves = zip(*(torch.split(torch.from_numpy(side), at_once) for side in (pairs.pixels, pairs.tokens)), strict=True)
    images, texts = zip(*(model(pixels, tokens) for pixels, tokens in halves), strict=True)
    return Embedded(torch.cat(images), torch.cat(texts), float(model.log_scale.exp()), float(model.bias))


def at(scores: PairScores, rows: torch.Tensor) -> PairScores:
    """Returns the scores of the candidates in these rows, int64 [B]."""
    assert scores.learner is not None
    assert scores.reference is not None
    return PairScores(scores.criterion, scores.learner.at(rows), scores.reference.at(rows))


def trial(scores: PairScores, picks: int, gain: float, seed: int) -> Trial:
    """Draws from these candidates in every way that is compared."""

    def draw(chunks: int) -> torch.Tensor:
        return Joint().pick(scores, Plan(chunk_sizes(picks, chunks), gain, Draw.SAMPLE, seed)).indices

    drawn = {chunks: draw(chunks) for chunks in CHUNKS}
    sweeps = [total for _, total in gibbs(matrix(scores), drawn[1], gain, seed)]
    totals = {chunks: scores.total(rows) / picks for chunks, rows in drawn.items()}
    return Trial(totals, [total / picks for total in sweeps], (len(sweeps) - 1) * picks)


def summary(trials: list[Trial]) -> dict[str, Any]:
    """Returns means over trials, and their standard errors."""
    gap, error = mean_and_error([t.gap for t in trials])
    longest = max(len(t.gibbs) for t in trials)
    by_sweep = [[t.gibbs[min(sweep, len(t.gibbs) - 1)] for t in trials] for sweep in range(longest)]
    by_chunks = {str(chunks): [t.chunks[chunks] for t in trials] for chunks in CHUNKS}
    return {
        "learnability_ratio": {chunks: _ratio(trials, scores)[0] for chunks, scores in by_chunks.items()},
        "standard_error": {chunks: _ratio(trials, scores)[1] for chunks, scores in by_chunks.items()},
        "gap_nats_per_pick": gap,
        "gap_in_standard_errors": gap / error,
        "learnability_nats_per_pick": {
            **{chunks: float(np.mean(scores)) for chunks, scores in by_chunks.items()},
            "gibbs": float(np.mean(by_sweep[-1])),
        },
        "gibbs_steps": [t.gibbs_steps for t in trials],
        "gibbs_ratio_by_sweep": [_ratio(trials, scores)[0] for scores in by_sweep],
    }


def _ratio(trials: list[Trial], scores: list[float]) -> tuple[float, float]:
    """Returns where the mean of these scores lies between independent (0) and Gibbs (1), and the standard error of
    that: it is a ratio of paired means, whose error follows from its residuals."""
    won = [score - t.chunks[1] for score, t in zip(scores, trials, strict=True)]
    gap = float(np.mean([t.gap for t in trials]))
    ratio = float(np.mean(won)) / gap
    _, error = mean_and_error([w - ratio * t.gap for w, t in zip(won, trials, strict=True)])
    return ratio, error / gap


def _trained(pairs: Pairs, vocabulary: int, seed: int, steps: int, weight_decay: float, on_step: OnStep) -> SmallSigLip:
    torch.manual_seed(seed)
    model = SmallSigLip(vocabulary)
    torch.nn.init.constant_(model.bias, -math.log(BATCH))
    batches = (pairs.at(rows) for rows in draws(len(pairs.pixels), BATCH, 0))
    train(model, batches, steps, learning_rate=LEARNING_RATE, weight_decay=weight_decay, on_step=lambda _: on_step())
    return model
