"""FLOPs of training with selection, counted as the JEST paper counts them (Evans et al. 2024, appendix A.4).

With F the forward pass of one pair, B candidates, b picks and A the cost of a pair at low resolution, relative to F:

    uniform      3F b                        forward, and backward at twice its cost
    JEST         F (2b + B), or F (3b + B)   the former if the picks' activations are used again for the gradient
    Flexi-JEST   3F b (1/2 + A/2) + A F B    half of the picks, and all of the candidates, at low resolution

Not counted, as there: the draw itself, training the reference, embedding a data set once to cache it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Towers:
    """The FLOPs of one forward pass of one example, or any unit that all three share. Texts have no low resolution, so
    the text tower always counts in full. The paper's own figures are those of
    `Towers(image=1, low_image=0.28, text=0)`, because its A = 0.28 is the whole pair's."""

    image: float
    low_image: float
    text: float

    def __post_init__(self) -> None:
        if not 0 < self.low_image <= self.image or self.text < 0:
            raise ValueError(f"{self}: low_image must be positive and at most image, text must not be negative")

    @property
    def full(self) -> float:
        """F, the cost of one pair."""
        return self.image + self.text

    @property
    def low(self) -> float:
        """A F, the cost of one pair with its image at low resolution."""
        return self.low_image + self.text


@dataclass(frozen=True)
class Flops:
    """What steps cost, by purpose. `baseline` is what training on as many examples costs if they are picked
    uniformly."""

    train: float = 0.0
    learner: float = 0.0
    reference: float = 0.0
    baseline: float = 0.0

    @property
    def spent(self) -> float:
        """The cost of everything together."""
        return self.train + self.learner + self.reference

    @property
    def relative(self) -> float:
        """`spent` in units of `baseline`, which is 0 before the first step."""
        return self.spent / self.baseline if self.baseline else 0.0

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(
            self.train + other.train,
            self.learner + other.learner,
            self.reference + other.reference,
            self.baseline + other.baseline,
        )


@dataclass
class FlopMeter:
    """Adds up the FLOPs of a training. `low_scoring` says that candidates are scored at low resolution, by learner and
    reference alike. `reuse` says that the trainer scores by itself at full resolution and keeps the picks' activations
    for the gradient, which no separate process can give it."""

    towers: Towers
    low_scoring: bool = True
    reuse: bool = False

    def __post_init__(self) -> None:
        if self.low_scoring and self.reuse:
            raise ValueError("activations at low resolution cannot be used again for a step at full resolution")
        self.total = Flops()

    def add(self, candidates: int, picks: int, *, low_picks: int = 0, uncached: int = 0) -> Flops:
        """Counts one step: `candidates` scored by the learner, `uncached` of them by the reference too, and `picks`
        trained on, `low_picks` of them at low resolution. A step without selection has 0 candidates. Returns the
        cost of that step. Raises ValueError for counts that do not fit."""
        if not 0 <= low_picks <= picks or not 0 <= uncached <= candidates:
            raise ValueError(f"{low_picks} of {picks} picks low, {uncached} of {candidates} candidates uncached")
        score = self.towers.low if self.low_scoring else self.towers.full
        embedded = max(0, candidates - picks) if self.reuse else candidates
        step = Flops(
            train=3 * (low_picks * self.towers.low + (picks - low_picks) * self.towers.full),
            learner=embedded * score,
            reference=uncached * score,
            baseline=3 * picks * self.towers.full,
        )
        self.total += step
        return step
