"""Runs of a study as `selector bench training --save` writes them, with made-up figures."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from selector_tools.study.cells import Cell
from selector_tools.study.references import described
from selector_tools.study.results.prose import HELD_OUT

REFERENCE = {
    "validation": 0.5,
    "test": 0.4,
    "test_apart": {"known": 0.5, "unknown": 0.05},
    "train_cpu_seconds": 30.0,
    "embed_cpu_seconds": 2.0,
    "train_flops": 9e11,
    "embed_flops": 3e10,
}


PART = {"pictures": 100, "classes": 20, "unknown": 7}


def made_run(
    cell: Cell,
    seed: int = 0,
    curve: Sequence[tuple[int, float]] = ((300, 0.2), (600, 0.4)),
    *,
    test: float | None = None,
    unknown: float | None = 0.1,
    flops: float = 1e12,
    cpu: tuple[float, float] = (10.0, 0.0),
    reference: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns a run whose test is the end of its curve, unless told; `cpu` are the seconds of trainer and sidecar."""
    end = curve[-1][1]
    trained = cell.steps * cell.batch
    shown = cell.steps * cell.super_batch if cell.how.selects else 0
    return {
        "cell": asdict(cell),
        "seed": seed,
        "curve": [list(point) for point in curve],
        "validation": end,
        "test": end if test is None else test,
        "test_apart": {"known": end if test is None else test, "unknown": unknown},
        "reference": REFERENCE | (reference or {}),
        "counts": {"trained": trained, "shown": shown, "decoded": shown, "scored": shown, "embedded": 0},
        "flops": flops,
        "flops_by_paper": 1.1 * flops,
        "trainer_cpu_seconds": cpu[0],
        "sidecar_cpu_seconds": cpu[1],
        "wall_seconds": 1.1 * sum(cpu),
        "train_seconds": sum(cpu),
        "wait_seconds": 0.5 * cpu[1],
        "versions": cell.steps // cell.publish_every,
        "fallbacks": 0,
        "concepts": 100.0,
        "mislabelled": cell.noise,
    }


def made_document(profile: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns what --save writes of these runs."""
    return {
        "profile": profile,
        "side_by_side": 2,
        "date": "2026-01-02T03:04:05+00:00",
        "device": "a processor",
        "cores": 2,
        "threads": 1,
        "load_average": [0.0, 0.0, 0.0],
        "versions": {"python": "3.11.7", "torch": "2.13.0", "jest-selector": "0.0.0"},
        "pools": {"icons": {"about": "a few", "pairs": 1000, "curated": 200} | dict.fromkeys(HELD_OUT, PART)},
        "references": described(),
        "runs": list(runs),
    }
