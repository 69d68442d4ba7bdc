"""Runs cells side by side, and keeps each run in a file as soon as it is over: nothing is lost or done twice."""

import json
import multiprocessing
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from selector_tools.study.cells import Cell

Job = tuple[Cell, int]  # a cell and the seed that it is run by


def execute(
    jobs: Sequence[Job],
    folder: Path,
    side_by_side: int,
    on_done: Callable[[str], None] = lambda _: None,
    device: str = "cpu",
    machine: str = "",
) -> list[dict[str, Any]]:
    """Returns the runs of these jobs on `device`, in their order; those that are in `folder` are not run again. A run
    says on which `machine` it was made. `on_done` is called with the name of each that is over.

    A run that fails stops no other one; the first failure is raised when all others are over."""
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    left = [job for job in jobs if not file_of(job, folder).exists()]
    for job in jobs:
        if job not in left:
            on_done(job[0].name)
    # What runs share is made by one process for each pool and seed.
    shared: dict[tuple[str, int], list[Job]] = defaultdict(list)
    for cell, seed in left:
        shared[cell.pool, seed].append((cell, seed))
    with ProcessPoolExecutor(side_by_side, multiprocessing.get_context("spawn")) as processes:
        made = {
            processes.submit(_ready, some, folder, device): f"{pool}, seed {seed}"
            for (pool, seed), some in shared.items()
        }
        _finish(made)
        _finish({processes.submit(_run, *job, folder, device, machine): job[0].name for job in left}, on_done)
    return [json.loads(file_of(job, folder).read_text()) for job in jobs]


def file_of(job: Job, folder: Path) -> Path:
    """Returns where the run of a job is kept."""
    cell, seed = job
    return folder / "runs" / f"{cell.key(seed)}.json"


def _finish(futures: dict["Future[None]", str], on_done: Callable[[str], None] = lambda _: None) -> None:
    failed: BaseException | None = None
    for future in as_completed(futures):
        if (error := future.exception()) is None:
            on_done(futures[future])
        elif failed is None:
            error.add_note(f"while running {futures[future]}")
            failed = error
    if failed is not None:
        raise failed


def _ready(jobs: Iterable[Job], folder: Path, device: str) -> None:
    from selector_tools.study.running import make_ready  # noqa: PLC0415 - each process loads torch when it begins

    for cell, seed in jobs:
        make_ready(cell, seed, folder, device)


def _run(cell: Cell, seed: int, folder: Path, device: str, machine: str) -> None:
    from selector_tools.study.running import run  # noqa: PLC0415

    document = run(cell, seed, folder, device=device) | {"machine": machine}
    file = file_of((cell, seed), folder)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(document) + "\n")
    part.replace(file)
    file.with_suffix(".checkpoint").unlink(missing_ok=True)
