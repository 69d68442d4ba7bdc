"""Runs one arm by one seed, on a user's pool and model, as the studies run theirs."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from selector_tools.datasets.pairs import Pairs
from selector_tools.export.torch_model import TorchModel
from selector_tools.study.cells import Cell
from selector_tools.study.costs import measured
from selector_tools.study.fed import train_fed
from selector_tools.study.feeds import Service, Source
from selector_tools.study.own.learner import OwnLearner
from selector_tools.study.own.reference import OwnReference, stored
from selector_tools.study.own.retrieval import Retrieval

COUNTED = 4  # examples by which FLOPs are counted


@dataclass(frozen=True)
class Machine:
    """Where it is computed: a device, and so many CPU threads, of which trainer and sidecar have half each."""

    device: str
    threads: int

    @property
    def trainer(self) -> int:
        """The threads of the trainer."""
        return max(1, self.threads // 2)

    @property
    def sidecar(self) -> int:
        """The threads of the sidecar."""
        return max(1, self.threads - self.trainer)


@dataclass(frozen=True)
class Setting:
    """What the runs of a seed share: what is trained on, what judges, and once they are there, the reference and the
    learner's bundle."""

    seed: int
    train: Pairs
    validation: Retrieval
    test: Retrieval
    machine: Machine
    log: Path
    reference: OwnReference | None = None
    bundle: Path | None = None


def run(cell: Cell, setting: Setting, model: TorchModel) -> dict[str, Any]:
    """Trains a copy of the model, and returns the run as JSON takes it. Raises SetupError if its loss is no number."""
    machine, image = setting.machine, model.image
    torch.set_num_threads(machine.trainer)
    learner = OwnLearner(model, machine.device)
    source = Source(setting.train, stored(setting.train), cell.batch, cell.super_batch, setting.seed)
    shape = image.height, image.width, image.channels
    flops = measured(OwnLearner(model, machine.device), None, COUNTED, shape, model.text.max_tokens)

    def service(redis: str) -> Service:
        assert setting.reference is not None
        assert setting.bundle is not None
        reference = setting.reference
        return Service(
            setting.bundle, reference.bundle, reference.cache, redis, setting.log, machine.device, machine.sidecar
        )

    with torch.random.fork_rng(devices=[]):  # dropout draws from it
        torch.manual_seed(setting.seed)
        own = None if setting.reference is None else setting.reference.own
        told, _ = train_fed(cell, source, learner, service, flops=flops, judge=setting.validation, own=own)
    found = setting.test.of(learner)
    once = {}
    if (reference := setting.reference) is not None:
        once = {
            "train_cpu_seconds": reference.train_cpu_seconds,
            "embed_cpu_seconds": reference.embed_cpu_seconds,
        }
    return told | {"test": found.rank, "found": asdict(found), "reference": once}
