"""Training runs of the demo's model that tell how long the trainer waits for its loader."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from selector_client import SelectingLoader, Selector, WeightPublisher

from selector_tools.bench import pinning
from selector_tools.datasets import icons
from selector_tools.datasets.pairs import Pairs, make_tokenizer
from selector_tools.export.bundle_writer import export_learner, export_reference
from selector_tools.processes import redis_server, sidecar
from selector_tools.study.model import SmallSigLip, exportable

CHUNKS = 16
PUBLISH_EVERY = 10
AHEAD = 2  # selections made ahead, the loader's default
WARM_UP = 30  # steps that do not count
RATIOS = {"third": 1 / 3, "half": 0.5, "most": 0.8}


class Icons:
    """The demo's pool as files, read one at a time as a dataset's are. What the sidecar sees of it lies in memory."""

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs
        self._files = [_png(pixels[..., 0]) for pixels in pairs.pixels]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        pixels = np.asarray(Image.open(io.BytesIO(self._files[index])))
        return torch.from_numpy(pixels.copy())[..., None], torch.from_numpy(self._pairs.tokens[index])

    def view(self, indices: NDArray[np.int64]) -> dict[str, Any]:
        """Returns what `Selector.select` takes."""
        return {"images": self._pairs.pixels[indices], "texts": self._pairs.tokens[indices]}


def measured(folder: Path, batch: int, steps: int, on_stage: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """Returns for each filter ratio the seconds of a step and of a selection, and the shares of time waited."""
    torch.set_num_threads(1)
    data = icons.load(lambda *_: None)
    tokenizer = make_tokenizer(data.pool.captions, folder / "tokenizer.json")
    dataset = Icons(Pairs.of(data.pool, data.pool.captions, tokenizer))
    torch.manual_seed(0)
    model, reference = (SmallSigLip(tokenizer.get_vocab_size()) for _ in range(2))
    for module, export in ((model, export_learner), (reference, export_reference)):
        words = folder / "tokenizer.json"
        export(exportable("demo", module, tokenizer.get_vocab_size(), words), folder / export.__name__)
    flags = ["--learner", str(folder / "export_learner"), "--reference", str(folder / "export_reference")]
    flags += ["--cache", str(folder / "cache"), "--threads", "1", "--log-level", "warning"]
    with (
        redis_server() as url,
        sidecar(folder / "log", "--redis", url, "--metrics-listen", "", *flags) as (address, pid),
        WeightPublisher(url, "default", every=PUBLISH_EVERY) as publisher,
    ):
        cores = pinning.cores()
        usable = sorted(os.sched_getaffinity(0))
        if cores is not None:
            pinning.pin(pid, {cores[0]})
            pinning.pin(os.getpid(), {cores[1]})
        try:
            on_stage("fill the cache")
            with Selector(address, timeout=60.0, on_error="raise") as selector:
                for _ in _loader(dataset, selector, batch, 0.5, AHEAD):
                    pass
            tables = {}
            for name, ratio in RATIOS.items():
                runs = {}
                for prefetch in (AHEAD, 0):
                    on_stage(f"f = {ratio}, {'ahead' if prefetch else 'not ahead'}")
                    runs[prefetch] = _run(dataset, address, publisher, model, batch, ratio, prefetch, steps)
                tables[name] = _table(ratio, runs[AHEAD], runs[0])
        finally:
            if cores is not None:
                pinning.pin(os.getpid(), usable)
    return tables


def _run(
    dataset: Icons,
    address: str,
    publisher: WeightPublisher,
    model: SmallSigLip,
    batch: int,
    ratio: float,
    prefetch: int,
    steps: int,
) -> dict[str, Any]:
    """Trains, and returns what the loader counted after the warm-up."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    with Selector(
        address,
        timeout=60.0,
        on_error="raise",
        policy="joint",
        sub_batch_size=batch,
        chunks=CHUNKS,
        max_lag_steps=1_000_000,
    ) as selector:
        loader = _loader(dataset, selector, batch, ratio, prefetch)
        scoring: list[float] = []
        waited = worked = 0.0
        while loader.progress.steps < WARM_UP + steps:
            for images, tokens in loader:
                optimizer.zero_grad(set_to_none=True)
                model.loss(images, tokens).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                publisher.publish(loader.progress.steps, model)
                assert loader.last is not None
                scoring.append(sum(loader.last.stage_seconds.values()))
                if loader.progress.steps == WARM_UP:
                    waited, worked = loader.progress.wait_seconds, loader.progress.step_seconds
                if loader.progress.steps == WARM_UP + steps:
                    break
        progress = loader.progress
        return {
            "waited": progress.wait_seconds - waited,
            "worked": progress.step_seconds - worked,
            "steps": steps,
            "scoring": median(scoring[WARM_UP:]),
            "decoded": progress.picks / progress.candidates,
        }


def _loader(dataset: Icons, selector: Selector, batch: int, ratio: float, prefetch: int) -> SelectingLoader:
    size = round(batch / (1 - ratio))
    return SelectingLoader.over(
        dataset, selector, super_batch_size=size, view=dataset.view, prefetch=prefetch, workers=0, deadline=60.0
    )


def _table(ratio: float, ahead: dict[str, Any], alone: dict[str, Any]) -> dict[str, float]:
    step = alone["worked"] / alone["steps"]
    return {
        "filter_ratio": ratio,
        "step_seconds": step,
        "scoring_seconds": alone["scoring"],
        "scoring_over_step": alone["scoring"] / step,
        "wait_share": ahead["waited"] / (ahead["waited"] + ahead["worked"]),
        "wait_share_without_prefetch": alone["waited"] / (alone["waited"] + alone["worked"]),
        "decodes_saved": 1 - ahead["decoded"],
    }


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
