"""What is run: a cell is one way to train, and it is run by one seed after the other."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from selector_tools.study.rules import Rule, rule
from selector_tools.study.streams import Kind

Resolution = Literal["full", "low", "flexi"]


@dataclass(frozen=True)
class Cell:
    """One way to train. `noise` is the share of captions that are shuffled, and `learning_rate` is that of the peak.
    `resolution` says how a transformer's candidates are scored: as it is trained ("full"), from larger patches
    ("low"), or so after co-training at both ("flexi"); None stands for the convolutional learner."""

    pool: str
    rule: str
    stream: Kind = "natural"
    noise: float = 0.0
    reference: str = "strong"
    steps: int = 600
    batch: int = 128
    filter_ratio: float = 0.8
    learning_rate: float = 2e-3
    publish_every: int = 10
    resolution: Resolution | None = None

    @property
    def how(self) -> Rule:
        """The rule that the cell names."""
        return rule(self.rule)

    @property
    def super_batch(self) -> int:
        """B, the candidates of a step."""
        return round(self.batch / (1 - self.filter_ratio))

    @property
    def name(self) -> str:
        """What people call it: what is not as usual, in a fixed order."""
        words = [self.pool, self.stream, f"noise {self.noise:g}", self.rule]
        usual = {field.name: field.default for field in fields(self)}
        for key in ("reference", "steps", "batch", "filter_ratio", "publish_every", "resolution"):
            if (value := getattr(self, key)) != usual[key]:
                words.append(f"{key.replace('_', ' ')} {value}")
        return ", ".join(words)

    def key(self, seed: int) -> str:
        """Returns the name of the run's file: readable, and different for whatever differs."""
        told = json.dumps(asdict(self) | {"seed": seed}, sort_keys=True)
        return f"{self.pool}-{self.rule}-{seed}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"

    @staticmethod
    def of(document: dict[str, Any]) -> "Cell":
        """Returns the cell that `asdict` told of."""
        return Cell(**document)
