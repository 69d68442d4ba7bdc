"""Two sidecars that select the same in turns, one of them looked at; and many selections on end."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from selector_client import Selector
from torch import Tensor, nn

from selector_server.encoding.bundle import ImageInput, Logit, TextInput
from selector_tools.bench.inspect_page import OpenPage
from selector_tools.bench.serve_loops import Bundles, exported, trifle
from selector_tools.bench.sidecars import LoadedSidecar
from selector_tools.bench.synthetic import WORDS, Samples, sentences
from selector_tools.datasets.pairs import MAX_TOKENS, make_tokenizer
from selector_tools.export.torch_model import TorchModel
from selector_tools.processes import free_port

FILTER_RATIO = 0.8
SIDE, WIDTH = 112, 128
VOCABULARY = 64
TAGS = ["birds", "boats", "food", "maps", "people", "plants", "towns"]
# So many super-batches are made; after the last one comes the first one again, with other ids.
BATCHES = 4
WARM_UP = 4  # selections by each that do not count: they pay for pages and pools
# After a selection, what is kept of it is kept by then.
SETTLE_SECONDS = 0.1
# By then most of what is kept has its full size: content of 16 super-batches, of 256 the numbers.
SETTLED_AFTER = 300

IMAGE = ImageInput(height=SIDE, width=SIDE, channels=3)
TEXT = TextInput(max_tokens=MAX_TOKENS, vocabulary=VOCABULARY)


class Towers(nn.Module):
    """A few convolutions and a bag of words: real work, in about a millisecond a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(3, 32, 8, stride=4, padding=2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, WIDTH, 3, stride=2, padding=1),
        )
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode_image(self, images: Tensor) -> Tensor:
        """Takes float [B, 3, 112, 112] and returns [B, 128]."""
        return self.image(images).mean(dim=(2, 3))  # type: ignore[no-any-return]

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Takes int64 [B, T] and returns [B, 128]."""
        return self.words(tokens).mean(dim=1)  # type: ignore[no-any-return]


def in_pairs(
    folder: Path, core: int | None, candidates: int, pairs: int, rounds: int, on_pair: Callable[[], object]
) -> tuple[dict[str, list[float]], Counter[str]]:
    """Returns the processor seconds of each selection, by `on` and `off`, and what the page was shown meanwhile. Each
    of the `rounds` has new processes, as one may be quicker than another by itself."""
    bundles = _bundles(folder / "towers")
    spent: dict[str, list[float]] = {"off": [], "on": []}
    shown: Counter[str] = Counter()
    for number in range(rounds):
        part = folder / str(number)
        part.mkdir()
        shown.update(
            _round(part, core, bundles, _super_batches(candidates, files=True), pairs // rounds, spent, on_pair)
        )
    return spent, shown


def _round(
    folder: Path,
    core: int | None,
    bundles: Bundles,
    batches: Iterator[dict[str, Any]],
    pairs: int,
    spent: dict[str, list[float]],
    on_pair: Callable[[], object],
) -> dict[str, int]:
    """Adds what a new pair of sidecars spends to `spent`, and returns what the page was shown."""
    with (
        _sidecar(folder / "off", core, bundles) as off,
        _sidecar(folder / "on", core, bundles, *_inspected(page := OpenPage(free_port()))) as on,
        _selector(off) as without,
        _selector(on) as looked_at,
        page,
    ):

        def turn(sidecar: LoadedSidecar, selector: Selector, batch: dict[str, Any]) -> float:
            before = _processor_seconds(sidecar.pid)
            # Before the first selection there is nothing to look at, and the page would wait before it asks again.
            with page.looked_at() if sidecar is on and number else nullcontext():
                selector.select(**batch)
                time.sleep(SETTLE_SECONDS)
            return _processor_seconds(sidecar.pid) - before

        contenders = {"off": (off, without), "on": (on, looked_at)}
        for number in range(WARM_UP + pairs):
            batch = next(batches)
            for name in sorted(contenders, reverse=number % 2 == 0):  # each is the first one in every other pair
                seconds = turn(*contenders[name], batch)
                if number >= WARM_UP:
                    spent[name].append(seconds)
            if number >= WARM_UP:
                on_pair()
        return page.shown


def soak(
    folder: Path, core: int | None, candidates: int, selections: int, on_selection: Callable[[], object]
) -> dict[str, Any]:
    """Returns by how much a sidecar that is looked at grows, once what it keeps is there. One look at its memory says
    little, as a request's own comes and goes: medians of a tenth of the selections are compared."""
    towers = folder / "trifle"
    towers.mkdir()
    source = replace(trifle(IMAGE, MAX_TOKENS), tokenizer=_tokenizer(towers))
    settled, tenth = min(SETTLED_AFTER, selections // 2), max(1, selections // 10)
    resident: list[tuple[int, int]] = []
    page, batches = OpenPage(free_port()), _super_batches(candidates, files=False)
    started = time.perf_counter()
    with (
        _sidecar(folder / "soak", core, exported(source, towers), *_inspected(page)) as sidecar,
        _selector(sidecar) as selector,
        page,
        page.looked_at(),
    ):
        for number in range(1, selections + 1):
            selector.select(**next(batches))
            on_selection()
            if number % max(1, selections // 100) == 0:
                resident.append((number, sidecar.resident_bytes()))
        early, late = (
            median(size for number, size in resident if start < number <= start + tenth)
            for start in (settled, selections - tenth)
        )
        return {
            "rss_growth": late / early - 1,
            "selections": selections,
            "settled_after": settled,
            "resident_bytes": resident,
            "page": page.shown,
            "seconds": time.perf_counter() - started,
        }


def _bundles(folder: Path) -> Bundles:
    """Exports two models that disagree, so that their losses tell candidates apart."""
    folder.mkdir()
    tokenizer = _tokenizer(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        learner, reference = (
            TorchModel(
                name="towers",
                module=Towers(),
                image=IMAGE,
                text=TEXT,
                logit=Logit(scale_parameter="logit_scale", scale_is_log=True),
                tokenizer=tokenizer,
            )
            for _ in range(2)
        )
    return exported(learner, folder, reference)


def _tokenizer(folder: Path) -> Path:
    file = folder / "tokenizer.json"
    make_tokenizer(WORDS, file)
    return file


def _super_batches(candidates: int, *, files: bool) -> Iterator[dict[str, Any]]:
    """Yields super-batches as `Selector.select` takes them. No id is in two of them, and each has new words."""
    rng = np.random.default_rng(0)
    made = [Samples.random(candidates, IMAGE, TEXT, rng, files=files) for _ in range(BATCHES)]
    number = 0
    while True:
        for samples in made:
            captions = [
                f"{words} w{word}"
                for words, word in zip(sentences(candidates, rng), rng.integers(1 << 40, size=candidates), strict=True)
            ]
            yield {
                "images": samples.jpegs if files else samples.pixels,
                "texts": captions,
                "ids": np.arange(candidates) + number * candidates,
                "tags": rng.choice(TAGS, candidates).tolist(),
                "step": number,
            }
            number += 1


def _sidecar(folder: Path, core: int | None, bundles: Bundles, *flags: str) -> LoadedSidecar:
    folder.mkdir()
    models = ("--learner", str(bundles.learner.path), "--reference", str(bundles.reference.path))
    return LoadedSidecar(folder, core, *models, *flags)


def _inspected(page: OpenPage) -> tuple[str, ...]:
    return ("--inspect-listen", page.address, "--inspect-content", "true")


def _selector(sidecar: LoadedSidecar) -> Selector:
    return Selector(sidecar.address, filter_ratio=FILTER_RATIO, seed=0, timeout=600.0, on_error="raise")


def _processor_seconds(pid: int) -> float:
    """Returns the processor time of all threads that a process ever had, in nanoseconds' resolution; Linux only."""
    clock = ~pid << 3 | 2  # As clock_getcpuclockid(3) of the C library makes it.
    return time.clock_gettime(clock)
