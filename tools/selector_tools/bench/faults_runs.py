"""Training runs over faulty shards, without a trainer: only the selections count."""

import time
from collections import Counter
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from selector_client import SelectingLoader, Selector

from selector_tools.bench.faulty_shards import COLOURS, Shards
from selector_tools.bench.sidecars import LoadedSidecar
from selector_tools.datasets.pairs import make_tokenizer
from selector_tools.export.bundle_writer import export_learner, export_reference
from selector_tools.study.model import SmallSigLip, exportable

FILTER_RATIO = 0.8
# A breaker that a killed sidecar opened is closed again so soon after another one serves.
BACK_SECONDS = 30.0
DEADLINE_SECONDS = 60.0
# So many of the last sub-batches tell whether selections go on. One more was asked for before the sidecar was back.
LAST = 2


def bundles(folder: Path) -> tuple[str, ...]:
    """Exports a learner and a reference, and returns the flags of a sidecar that has them."""
    file = folder / "tokenizer.json"
    tokenizer = make_tokenizer([f"{colour} number {n}" for n in range(1000) for colour in COLOURS], file)
    flags: list[str] = []
    for seed, (role, export) in enumerate({"learner": export_learner, "reference": export_reference}.items()):
        torch.manual_seed(seed)
        model = SmallSigLip(tokenizer.get_vocab_size())
        export(exportable(f"demo-{role}", model, tokenizer.get_vocab_size(), file), folder / role)
        flags += [f"--{role}", str(folder / role)]
    return tuple(flags)


def run(folder: Path, flags: tuple[str, ...], shards: Shards, *, killed: bool) -> dict[str, Any]:
    """Selects from all super-batches. If the sidecar is to be `killed`, that happens after a third of the steps; the
    trainer goes on, and waits before the last third until another one has taken its place."""
    sizes, exception, started = set[int](), "", time.perf_counter()
    last: list[bool] = []
    cache = ("--cache", mkdtemp(dir=folder, prefix="cache-"))
    with (
        LoadedSidecar(folder, None, *flags, *cache) as sidecar,
        Selector(sidecar.address, policy="joint", filter_ratio=FILTER_RATIO, seed=0) as selector,
    ):
        # There is no trainer whose steps could tell how long a selection may take.
        loader = SelectingLoader(shards.super_batches(), selector, prefetch=1, deadline=DEADLINE_SECONDS)
        try:
            for step, batch in enumerate(loader, 1):
                sizes |= {len(column) for column in batch.values()}
                last = [*last, loader.last is not None and not loader.last.fallback][-LAST:]
                if killed and step == shards.steps // 3:
                    sidecar.kill()
                if killed and step == 2 * shards.steps // 3:
                    sidecar.restart()
                    _wait_until_asked(selector)
        except Exception as error:  # that there is none is what is measured
            exception = f"{type(error).__name__}: {error}"
        counted = selector.statistics
    return {
        "b": int(shards.size * (1 - FILTER_RATIO) + 1e-6),
        "sizes": sorted(sizes),
        "uniform_share": counted.fallbacks.total() / counted.requests,
        "excluded_share": counted.excluded.total() / counted.candidates,
        "planted_share": shards.planted.total() / (shards.size * shards.steps),
        "excluded": dict(sorted(counted.excluded.items())),
        "planted": dict(sorted(shards.planted.items())),
        "fallbacks": dict(Counter(counted.fallbacks)),
        "requests": counted.requests,
        "selected_at_the_end": all(last),
        "exception": exception,
        "seconds": time.perf_counter() - started,
    }


def _wait_until_asked(selector: Selector) -> None:
    """Waits until the selector has found out that the sidecar serves again."""
    until = time.perf_counter() + BACK_SECONDS
    while selector.breaker.open and time.perf_counter() < until:
        time.sleep(0.05)
