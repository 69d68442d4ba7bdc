"""Metrics of what selections bring, by the candidates' own scores, and of how alike the candidates are."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Gauge, Histogram

from selector_server.telemetry.readings import BulkHistogram

# The bounds are powers of two from 1/16 to 16, both signs, and 0: learnability is a difference of losses.
_POWERS = tuple(2.0**i for i in range(-4, 5))
NATS = (*(-power for power in reversed(_POWERS)), 0.0, *_POWERS)
RATIOS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

# The counts by bound, and the sum, of some scores.
Spread = tuple[Sequence[int], float]


class QualityMetrics:
    """Metrics of scores are by criterion, since nats of one are not those of another."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.scores = BulkHistogram(
            "selector_score_nats",
            "Candidates by their own score (criterion learnability: learner loss minus reference loss); "
            "of: picked, left.",
            ["criterion", "of"],
            NATS,
            registry,
        )
        # Scores may be negative, so that the histogram has no sum to take their mean from.
        self.means = Gauge(
            "selector_score_mean_nats",
            "Mean own score in the last selection; of: picked, left.",
            ["criterion", "of"],
            registry=registry,
        )
        self.top_share = Histogram(
            "selector_score_top20_share_ratio",
            "Of all scores above 0 of a super-batch, what its best 20 % hold; 0.2: all candidates are alike.",
            ["criterion"],
            buckets=RATIOS,
            registry=registry,
        )
        self.overlap = Histogram(
            "selector_selection_overlap_uniform_ratio",
            "Of the first chunk's picks, what a uniform draw with the same noise takes too; 1: scores decide nothing.",
            ["criterion"],
            buckets=RATIOS,
            registry=registry,
        )

        self.cosines = Gauge(
            "selector_image_cosine_mean",
            "Mean cosine of the candidates' images in the last selection, as the reference sees them; of: adjacent "
            "(that follow each other), random.",
            ["of"],
            registry=registry,
        )
        self.near_duplicates = Gauge(
            "selector_near_duplicate_picks_ratio",
            "Of the last selection's picks, those with a near-duplicate (a cosine above 0.95) among the candidates.",
            registry=registry,
        )

    def observe(
        self, criterion: str, picked: Spread, left: Spread, top_share: float | None, overlap: float | None
    ) -> None:
        """Records one selection, with counts by NATS."""
        for of, (counts, total) in (("picked", picked), ("left", left)):
            self.scores.add((criterion, of), counts)
            if (number := sum(counts)) > 0:
                self.means.labels(criterion, of).set(total / number)
        if top_share is not None:
            self.top_share.labels(criterion).observe(top_share)
        if overlap is not None:
            self.overlap.labels(criterion).observe(overlap)

    def observe_locality(self, adjacent: float, random: float, near_duplicates: float) -> None:
        """Records how alike the candidates of one selection are."""
        self.cosines.labels("adjacent").set(adjacent)
        self.cosines.labels("random").set(random)
        self.near_duplicates.set(near_duplicates)
