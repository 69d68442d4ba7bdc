"""Memory that runs out: the micro-batch shrinks, the embeddings stay the same, and it is counted."""

import subprocess
import sys

import numpy as np
import pytest
from selector_tools.export.bundle_writer import export_reference
from support.model import TOKENS, TwoTower, samples, source

from selector_server.encoding.bundle import load
from selector_server.encoding.device import PATIENCE, Device, MicroBatch, OutOfMemory
from selector_server.encoding.model import Model
from selector_server.errors import NotPossible
from selector_server.sampling import threads
from selector_server.sampling.threads import Threads
from selector_server.telemetry.encoding_metrics import EncodingMetrics


class Tight(Device):
    """A device that holds `most` samples at once: a GPU's memory runs out like this, a CPU's cannot be made to
    without taking the whole process along."""

    def __init__(self, most):
        super().__init__("cpu")
        self.most, self.tried = most, []

    def run(self, session, binding, data, output):
        size = len(output[1])
        self.tried.append(size)
        if size > self.most:
            output[1].fill_(float("nan"))
            raise OutOfMemory("made up")
        super().run(session, binding, data, output)


def _value(metric, ending="_total"):
    [family] = metric.collect()
    return next(sample.value for sample in family.samples if sample.name.endswith(ending))


@pytest.mark.parametrize("count", [1, 3], ids=["one thread", "three threads"])
@pytest.mark.parametrize("most", [1, 3, 7, 200])
def test_halved_until_it_fits(bundles, most, count, monkeypatch):
    monkeypatch.setattr(threads, "_threads", Threads(count))
    metrics = EncodingMetrics()
    tight = Tight(most)
    model = Model(load(bundles.reference_path, "reference"), tight, 64, metrics)
    free = Model(load(bundles.reference_path, "reference"), Device("cpu"), 64)
    pixels, tokens = samples(150)
    tokens = tokens.astype(np.int64)
    ours, theirs = (m.encode(pixels, tokens, m.constant_weights()) for m in (model, free))
    np.testing.assert_allclose(ours.image, theirs.image, atol=1e-6)
    np.testing.assert_allclose(ours.text, theirs.text, atol=1e-6)
    halvings, ran = _value(metrics.halvings), metrics.micro_batch
    assert halvings == sum(size > most for size in tight.tried)
    assert (halvings == 0) == (most == 200)
    assert _value(ran, "_count") == sum(size <= most for size in tight.tried)
    assert _value(ran, "_sum") == 300


def test_one_sample_that_does_not_fit_is_refused_and_the_next_request_served(bundles):
    device = Tight(0)
    model = Model(load(bundles.reference_path, "reference"), device, 8)
    pixels, tokens = samples(20)
    with pytest.raises(NotPossible, match="does not hold one sample"):
        model.encode(pixels, tokens.astype(np.int64), model.constant_weights())
    device.most = 8
    model.encode(pixels, tokens.astype(np.int64), model.constant_weights())


def test_what_a_thread_says_late_makes_it_no_larger():
    batch = MicroBatch(16)
    batch.halve(8)
    batch.halve(16)
    assert batch.size == 4


def test_it_creeps_back():
    batch = MicroBatch(64)
    batch.halve(64)
    assert batch.size == 32
    sizes = []
    for _ in range(6 * PATIENCE):
        batch.fitted()
        sizes.append(batch.size)
    assert sizes[PATIENCE - 2] == 32
    assert sizes[PATIENCE - 1] == 40
    assert sizes[-1] == 64


# Runs a tower under a limit on memory that a micro-batch of 4096 images breaks and one of a few hundred does not.
_STARVED = """
import resource, sys
import numpy as np
import torch
from pathlib import Path
from selector_server.encoding.bundle import load
from selector_server.encoding.device import Device
from selector_server.encoding.model import Model
from selector_server.telemetry.encoding_metrics import EncodingMetrics
torch.set_num_threads(1)
metrics = EncodingMetrics()
model = Model(load(Path(sys.argv[1]), "reference"), Device("cpu"), 4096, metrics)
pixels = np.zeros((4096, 8, 8, 3), np.uint8)
tokens = np.ones((4096, int(sys.argv[2])), np.int64)
model.warm_up(model.constant_weights())
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (300 << 20), resource.RLIM_INFINITY))
embedded = model.encode(pixels, tokens, model.constant_weights())
[halvings] = metrics.halvings.collect()
print(int(halvings.samples[0].value), float(embedded.image.norm(dim=1).min()))
"""


class Greedy(TwoTower):
    """Needs about 400 kB of activations for an image."""

    def encode_image(self, images):
        wide = images.flatten(1).repeat(1, 512)
        return super().encode_image((wide.sin() * wide.cos()).reshape(-1, 512, 192).mean(dim=1))


def test_a_process_that_really_runs_out_of_memory(tmp_path):
    export_reference(source("greedy", Greedy(3)), tmp_path / "greedy")
    command = [sys.executable, "-c", _STARVED, str(tmp_path / "greedy"), str(TOKENS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-2000:]
    halvings, norm = done.stdout.split()
    assert int(halvings) >= 1
    assert float(norm) == pytest.approx(1, abs=1e-3)
