"""`selector bench training --pool`: what selection brings to a user's own model on a user's own pool."""

import argparse
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selector_tools.bench import harness
from selector_tools.export import flags as model_flags
from selector_tools.reference import flags as shared

if TYPE_CHECKING:
    from selector_tools.study.own.comparing import Asked

COMMAND = "selector bench training"
SEEDS, RUN, MOST_CANDIDATES = 3, 32, 65536
PREFILTER = 2.5  # The rule with a prefilter keeps so many candidates a pick, so there must be more.


def add(parser: Any) -> None:
    """Adds the flags that go with --pool."""
    model_flags.add_model(parser, required=False)
    shared.add_pool(parser, required=False)
    add = parser.add_argument
    add("--reference", type=Path, metavar="BUNDLE", help="the reference's bundle")
    curated = "or pairs to train references on (default: a tenth of the pool, which is then left out of it)"
    add("--curated", metavar="PATH", help=curated)
    add("--steps", type=int, default=600, metavar="N", help="at most; cut to the budget (default %(default)s)")
    add("--batch", type=int, default=128, metavar="N", help="pairs of a step, b (default %(default)s)")
    add("--filter-ratio", type=float, default=0.8, metavar="F", help="1 - b / B (default %(default)s)")
    add("--learning-rate", type=float, default=1e-3, metavar="X", help="of all arms, at its peak (default %(default)s)")
    add("--budget-minutes", type=float, default=10.0, metavar="M", help="for all of it (default %(default)s)")
    add("--memory-bytes", type=int, default=8 << 30, metavar="N", help="largest pool, decoded (default %(default)s)")
    shared.add_exclusions(parser)


def checks(a: argparse.Namespace) -> list[harness.Mistake]:
    """Checks the values of `add`'s flags, and of --seeds and --out."""
    ratio = a.filter_ratio
    fine = 1 - 1 / PREFILTER < ratio <= 0.95
    candidates = round(a.batch / (1 - ratio)) if fine else RUN
    nearest = max(1, round(candidates / RUN)) * RUN
    limit = f"makes super-batches of {candidates}; they must be a multiple of {RUN}, such as {nearest}"
    source = any(getattr(a, name) is not None for name in ("open_clip", "transformers", "module"))
    return [
        (not source, "--pool", a.pool, "needs a model: one of --open-clip, --transformers and --module"),
        (a.out.exists(), "--out", a.out, "must not exist yet"),
        (a.seeds is not None and a.seeds < 2, "--seeds", a.seeds, "must be at least 2: one has no error"),
        (not 24 <= a.steps <= 1_000_000, "--steps", a.steps, "must be 24 to 1000000"),
        (not 8 <= a.batch <= shared.MAX_BATCH, "--batch", a.batch, f"must be 8 to {shared.MAX_BATCH}"),
        (not fine, "--filter-ratio", ratio, f"must be above {1 - 1 / PREFILTER:g} and at most 0.95"),
        (candidates % RUN != 0, "--batch", a.batch, limit),
        (candidates > MOST_CANDIDATES, "--batch", a.batch, f"makes super-batches of {candidates}; at most 65536"),
        (not 0 < a.learning_rate <= 10, "--learning-rate", a.learning_rate, "must be above 0 and at most 10"),
        (not 0 < a.budget_minutes <= 1e6, "--budget-minutes", a.budget_minutes, "must be above 0 and at most 1e6"),
        (a.memory_bytes < 1, "--memory-bytes", a.memory_bytes, "must be at least 1"),
        (
            a.reference is not None and a.curated is not None,
            "--curated",
            a.curated,
            "there is a --reference; leave one of the two out",
        ),
        *shared.device_checks(a),
        shared.exclusions_check(a),
        *(model_flags.model_checks(a) if source else ()),
    ]


def measure(a: argparse.Namespace) -> dict[str, Any]:
    """Compares, and writes the page. Returns what is told of it."""
    from selector_server.encoding.device import Device  # noqa: PLC0415 - heavy, as all that follows
    from selector_server.errors import SelectorError  # noqa: PLC0415
    from selector_tools.bench.measuring import describe  # noqa: PLC0415
    from selector_tools.study.own import page  # noqa: PLC0415
    from selector_tools.study.own.comparing import compare  # noqa: PLC0415
    from selector_tools.study.own.models import Models  # noqa: PLC0415
    from selector_tools.study.own.pool import reader  # noqa: PLC0415

    Device(a.device)  # fails now if it is not there
    asked, machine = _asked(a), describe(a.device)
    excluded = {place: shared.exclusions(a) for place in (a.pool, a.curated) if place is not None}
    with ExitStack() as stack:
        models = Models(a, COMMAND, stack)
        read = reader(models(a.seed), lambda place: excluded[place], a.memory_bytes, asked.machine.threads)
        try:
            outcome = compare(asked, models, read)
        except SelectorError:
            shutil.rmtree(a.out, ignore_errors=True)  # nothing in it is of use, and the next try needs the place
            raise
    lines = []
    for place, found in excluded.items():
        shared.tell_excluded(COMMAND, found)
        if found.reasons:
            lines.append(f"{place}: {found.lines()[0]}.")
    told = {place: found.as_json() for place, found in excluded.items()}
    return page.write(outcome, lines, {"exclusions": told, **machine}) | {"page": str(a.out / "report.md")}


def _asked(a: argparse.Namespace) -> "Asked":
    from selector_server.machine import usable_cpus  # noqa: PLC0415
    from selector_tools.study.cells import Cell  # noqa: PLC0415
    from selector_tools.study.own.comparing import Asked  # noqa: PLC0415
    from selector_tools.study.own.running import Machine  # noqa: PLC0415

    cell = Cell(
        "own",
        "buffer",
        reference="own",
        steps=a.steps,
        batch=a.batch,
        filter_ratio=a.filter_ratio,
        learning_rate=a.learning_rate,
    )
    return Asked(
        pool=a.pool,
        reference=a.reference,
        curated=a.curated,
        cell=cell,
        seeds=a.seeds or SEEDS,
        first=a.seed,
        budget_seconds=60 * a.budget_minutes,
        machine=Machine(a.device, a.threads or usable_cpus()),
        folder=a.out,
    )


def table(result: dict[str, Any]) -> str:
    """Returns what is printed: the finding, and where the page is."""
    return f"{result['headline'].replace('**', '')}\npage: {result['page']}"
