"""Links that are slow or cut in the middle of a request, sidecars that are killed there, and data that goes away."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from selector_client import SelectingLoader, Selector
from selector_tools.export.bundle_writer import export_learner, export_reference
from support.model import TEXT, TwoTower, samples, source
from support.processes import eventually, free_port
from support.proxy import Proxy
from torch.utils.data import DataLoader, Dataset

# 1.6 MB in all, two messages of a stream.
LEARNER, REFERENCE = np.random.default_rng(0).random((2, 200_000), dtype=np.float32)
SETTINGS = {"policy": "independent", "sub_batch_size": 10, "seed": 1}


def losses(selector):
    return selector.select_losses(LEARNER, REFERENCE)


@pytest.fixture
def link(sidecar):
    """A sidecar that takes such payloads, and a way to it that can be made worse."""
    server = sidecar({"max_super_batch": 1 << 18})
    host, _, port = server.address.rpartition(":")
    proxy = Proxy(int(port))
    yield server, proxy, f"{host}:{proxy.port}"
    proxy.close()


def test_a_slow_link_costs_the_timeout_and_no_more(link):
    server, proxy, address = link
    with Selector(address, timeout=1.0, **SETTINGS) as selector:
        wanted = losses(selector)
        assert wanted.fallback == ""
        proxy.bytes_per_second = 200_000
        started = time.monotonic()
        selection = losses(selector)
        assert 0.9 < time.monotonic() - started < 4, "at this rate the payload takes 8 s"
        assert selection.fallback == "deadline_exceeded"
        assert len(set(selection.indices.tolist())) == 10
        eventually(lambda: server.pending() == 0)
        proxy.bytes_per_second = float("inf")
        eventually(lambda: losses(selector).fallback == "", 15)


def test_a_link_that_is_cut_in_the_middle_of_a_request_costs_a_second_attempt(link):
    server, proxy, address = link
    with Selector(address, timeout=10.0, **SETTINGS) as selector, Selector(server.address, **SETTINGS) as direct:
        assert losses(selector).indices.tolist() == losses(direct).indices.tolist()
        proxy.cut(700_000)
        threading.Timer(0.02, lambda: (eventually(lambda: proxy.passed >= 700_000), proxy.mend())).start()
        selection = losses(selector)
        assert (selection.fallback, selection.indices.tolist()) == ("", losses(direct).indices.tolist())
        assert selector.statistics.retries >= 1
    eventually(lambda: server.pending() == 0)


def test_a_sidecar_that_is_killed_in_the_middle_of_a_request(sidecar):
    port = free_port()
    first = sidecar({"max_super_batch": 1 << 18}, port=port)
    proxy = Proxy(port)
    try:
        with Selector(f"127.0.0.1:{proxy.port}", timeout=20.0, **SETTINGS) as selector, ThreadPoolExecutor(1) as pool:
            assert losses(selector).fallback == ""
            proxy.passed = 0
            proxy.bytes_per_second = 400_000
            pending = pool.submit(losses, selector)
            eventually(lambda: proxy.passed > 300_000)
            first.process.kill()
            proxy.bytes_per_second = float("inf")
            started = time.monotonic()
            assert pending.result(20).fallback == "unavailable"
            assert time.monotonic() - started < 10, "half of its timeout"
            sidecar({"max_super_batch": 1 << 18}, port=port)
            eventually(lambda: losses(selector).fallback == "", 20)
    finally:
        proxy.close()


@pytest.mark.parametrize(
    ("strict", "reason", "said"),
    [
        (True, "invalid_argument", "samples.tokens.shape is [40, 6]"),
        (False, "failed_precondition", "candidates left is 0 of 40; 10 must be picked; excluded are 40 too_large"),
    ],
)
def test_a_sidecar_that_comes_back_with_another_model(sidecar, bundles, tmp_path, caplog, strict, reason, said):
    """It takes shorter texts: what fits the one before is refused now, and said once."""
    short = TEXT.model_copy(update={"max_tokens": 4})
    other = {"learner": tmp_path / "learner", "reference": tmp_path / "reference"}
    export_learner(source("other", TwoTower(7).eval(), text=short), other["learner"])
    export_reference(source("other", TwoTower(8).eval(), text=short), other["reference"])
    port, (pixels, ids) = free_port(), samples(40)
    first = sidecar(bundles.flags, port=port)
    with Selector(f"127.0.0.1:{port}", filter_ratio=0.75, timeout=20, strict=strict) as selector:
        assert selector.select(pixels, ids).fallback == ""
        first.process.kill()
        first.process.wait()
        sidecar({name: str(path) for name, path in other.items()}, port=port)
        eventually(lambda: selector.select(pixels, ids).fallback == reason, 20)
        assert len(selector.select(pixels, ids).indices) == 10
        assert selector.select(pixels, ids[:, :4]).fallback == ""
    assert said in caplog.text


class Fatal(Dataset):
    """Candidates whose reader dies."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        images, texts = samples(20, index)
        return {"images": images, "texts": texts}


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_worker_of_the_data_that_is_killed_is_an_error_and_no_hang(server, prefetch):
    """Nothing can be selected from data that is gone: the trainer's own data loader says so."""
    data = DataLoader(Fatal(), batch_size=None, num_workers=1, prefetch_factor=1, multiprocessing_context="spawn")
    with Selector(server.address, filter_ratio=0.75) as selector:
        with pytest.raises(RuntimeError, match=r"exited unexpectedly|is killed by signal"):
            for batch in SelectingLoader(data, selector, prefetch=prefetch):
                assert len(batch["images"]) == 5
