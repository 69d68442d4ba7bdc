"""Hears from replies how alike the stream's neighbours are, and tells the trainer if the stream is badly shuffled."""

import logging

import numpy as np

from selector_client.selecting.selection import Locality

log = logging.getLogger(__name__)

# The first selections of a run tell how its stream is shuffled.
SELECTIONS = 20
# Neighbours may be so much of the way from a random candidate to the very same one. In shuffled streams of icons it was
# 0.00 to 0.01, and in those whose neighbours are alike 0.20 to 0.43 (docs/monitoring.md).
MOST = 0.1


class Shuffling:
    """Is told of every selection. It speaks once, or never."""

    def __init__(self) -> None:
        self._heard: list[Locality] = []

    def hear(self, locality: Locality | None) -> None:
        """Takes note of what a reply says, if it does."""
        if locality is None or len(self._heard) == SELECTIONS:
            return
        self._heard.append(locality)
        if len(self._heard) < SELECTIONS:
            return
        adjacent, random, near = np.mean([(one.adjacent, one.random, one.near_duplicates) for one in self._heard], 0)
        if adjacent - random > MOST * (1 - random):
            log.warning(
                "the stream is badly shuffled: in %d selections, the mean cosine of neighbouring candidates was %.2f, "
                "that of random ones %.2f, and %.0f %% of the picks had a near-duplicate among the candidates. Read "
                "many shards in turns, in random order, through a shuffle buffer of many super-batches. Joint "
                "selection, which is the default, keeps such candidates apart, but shuffling helps more",
                SELECTIONS,
                adjacent,
                random,
                100 * near,
            )
