"""`selector bench training` trains with and without selection, through a real sidecar, and says what it brings."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selector_tools.bench import harness, training_own
from selector_tools.reference import flags as shared
from selector_tools.study.names import PROFILE_NAMES

if TYPE_CHECKING:
    from selector_tools.study.summary import Summary

SEEDS = {"cpu": 3, "gpu": 2, "full": 3}  # of a profile; 1 for others


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "training",
        help="what selection brings to training",
        description="Trains a small SigLIP on icons, fed at random and by sidecars, and compares when each is as good. "
        "Runs that are over are kept in --out and not run again. With --pool, it trains a model of yours on a pool of "
        "yours, and writes one page that says whether selection helps there.",
    )
    parser.set_defaults(handler=run, extra="demo,export,metrics")
    _add_profile(parser)
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="runs of a cell (default: 1; 2 for gpu; 3 for cpu, full and --pool)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("training-out"), help="folder of runs and models (default %(default)s)"
    )
    shared.add_device(parser)
    training_own.add(parser)


def _add_profile(parser: Any) -> None:
    """Adds the flags that do not go with --pool."""
    about = (
        "headline: a quarter of an hour; cpu: an hour and a half; gpu: larger pools and batches, a quarter of an hour "
        "on 16 cores and a GPU; full: half a day; tuning and gpu_tuning: how learning rates were chosen"
    )
    parser.add_argument(
        "--profile", choices=PROFILE_NAMES, default=PROFILE_NAMES[0], help=f"{about} (default %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs side by side (default %(default)s)")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write every run into one JSON file, too")


def run(a: argparse.Namespace) -> int:
    seeds = (a.seeds is not None and not 1 <= a.seeds <= 100, "--seeds", a.seeds, "must be 1 to 100")
    if a.pool is not None:
        mistakes = [seeds, *_foreign(a, _add_profile, "there is a --pool; leave it out"), *training_own.checks(a)]
        return harness.run(a, mistakes, lambda _: training_own.measure(a), training_own.table)
    mistakes = [
        seeds,
        *_foreign(a, training_own.add, "only --pool takes it"),
        (not 1 <= a.jobs <= 256, "--jobs", a.jobs, "must be 1 to 256"),
        (a.out.exists() and not a.out.is_dir(), "--out", a.out, "must be a folder"),
        *shared.device_checks(a),
        (a.threads != 0, "--threads", a.threads, "only --pool takes it; a run's trainer and sidecar have one each"),
    ]
    return harness.run(a, mistakes, lambda _: _measure(a), _table)


def _foreign(a: argparse.Namespace, add: Callable[[Any], None], limit: str) -> Iterator[harness.Mistake]:
    """Yields the flags that `add` adds, each of which is a mistake if it has a value of its own; all share --json."""
    others = argparse.ArgumentParser(add_help=False)
    add(others)
    for name, usual in vars(others.parse_args([])).items():
        value = getattr(a, name)
        yield name != "json" and value != usual, f"--{name.replace('_', '-')}", value, limit


def _measure(a: argparse.Namespace) -> dict[str, Any]:
    import json  # noqa: PLC0415 - heavy, as all that follows

    from selector_server.encoding.device import Device  # noqa: PLC0415
    from selector_tools.bench.measuring import describe  # noqa: PLC0415
    from selector_tools.progress import bar  # noqa: PLC0415
    from selector_tools.study import references, task  # noqa: PLC0415
    from selector_tools.study.executing import execute  # noqa: PLC0415
    from selector_tools.study.profiles import PROFILES  # noqa: PLC0415
    from selector_tools.study.summary import summaries  # noqa: PLC0415

    Device(a.device)  # fails now if it is not there
    jobs = PROFILES[a.profile](a.seeds or SEEDS.get(a.profile, 1))
    machine = describe(a.device)
    with bar("runs", len(jobs)) as advance:
        runs = execute(jobs, a.out, a.jobs, lambda name: advance(1, name), a.device, machine["device"])
    if a.save is not None:
        pools = {pool: task.described(pool, a.out) for pool in sorted({cell.pool for cell, _ in jobs})}
        about = {"profile": a.profile, "side_by_side": a.jobs, **machine}
        whole = {**about, "pools": pools, "references": references.described(), "runs": runs}
        a.save.write_text(json.dumps(whole, indent=1) + "\n")
    return {"profile": a.profile, "arms": _arms(summaries(runs)), "side_by_side": a.jobs, **machine}


def _arms(found: "dict[Any, Summary]") -> dict[str, Any]:
    """Returns what each cell reached, and how many times sooner than the best of all its baselines, and than the best
    of those that do not ask the reference (`uniform_…`). None stands for never."""
    from selector_tools.study.comparing import RIVALS, sooner  # noqa: PLC0415

    rows = {}
    for cell, one in found.items():
        row: dict[str, Any] = {
            "rule": cell.rule,
            "stream": cell.stream,
            "noise": cell.noise,
            "validation": one.final,
            "test": one.mean("test"),
            "seeds": len(one.runs),
        }
        for rivals in RIVALS:
            if (compared := sooner(one, found, rivals=rivals)) is None:
                continue
            prefix = "" if rivals == "any" else "uniform_"
            row[f"{prefix}baseline"] = compared.baseline.cell.rule
            for short, kind in (("step", "steps"), ("flop", "flops"), ("cpu", "cpu")):
                row[f"{prefix}{short}_speedup"] = compared.ratios.get(kind)
        rows[cell.name] = row
    return rows


def _table(result: dict[str, Any]) -> str:
    width, kinds = max(map(len, result["arms"])), ("step", "flop", "cpu")
    heads = " ".join(f"{kind:>6}" for kind in ("steps", "FLOPs", "CPU"))
    lines = [f"{'cell':{width}} {'test':>6} {'valid.':>7} | {heads}  sooner than  | {heads}  sooner than"]
    for name, row in result["arms"].items():
        parts = [f"{name:{width}} {row['test']:6.1%} {row['validation']:7.1%}"]
        for prefix in ("", "uniform_"):
            ratios = [row.get(f"{prefix}{kind}_speedup") for kind in kinds]
            told = " ".join("never".rjust(6) if ratio is None else f"{ratio:5.1f}x" for ratio in ratios)
            parts.append(f"{told}  {row.get(f'{prefix}baseline', ''):12}")
        lines.append(" | ".join(parts).rstrip())
    lines.append(f"{result['device']}, {result['cores']} cores, {result['side_by_side']} runs side by side")
    return "\n".join(lines)
