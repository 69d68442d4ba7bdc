"""`selector data` makes a data set that studies train on, and tells what is in it."""

import argparse
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selector_tools.datasets.dataset import Dataset, Progress


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "data",
        help="make a data set of pictures with captions",
        description="Makes a data set and keeps it in the user's cache folder: icons from the fonts of the demo, or "
        "from the icon sets of an npm package (iconify), which npm fetches.",
    )
    parser.set_defaults(handler=run, extra="data")
    parser.add_argument("name", choices=("icons", "iconify"), help="which data set")
    parser.add_argument("--package", type=Path, metavar="FILE", help="iconify's package as `npm pack` writes it")


def run(arguments: argparse.Namespace) -> int:
    from selector_tools.datasets.dataset import SourceError  # noqa: PLC0415 - not on a trainer, as all that follows

    try:
        data, place = _load(arguments.name, arguments.package)
    except SourceError as error:
        print(f"selector data: {error}", file=sys.stderr)
        return 2
    print(_described(data))
    print(f"kept in {place} ({place.stat().st_size / 1e6:.1f} MB)" if place.exists() else f"not kept in {place}")
    return 0


def _load(name: str, package: Path | None) -> tuple["Dataset", Path]:
    with ExitStack() as over:
        progress = _bars(over)
        if name == "icons":
            from selector_tools.datasets import icons  # noqa: PLC0415

            return icons.load(progress), icons.where()
        from selector_tools.datasets import iconify  # noqa: PLC0415

        return iconify.load(progress, archive=package), iconify.where()


def _bars(over: ExitStack) -> "Progress":
    """Returns what shows a bar for each stage until `over` is closed."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import TaskID  # noqa: PLC0415

    from selector_tools.progress import bars  # noqa: PLC0415

    shown = over.enter_context(bars(Console(stderr=True)))
    stages: dict[str, TaskID] = {}

    def progress(stage: str, done: int, total: int) -> None:
        if stage not in stages:
            stages[stage] = shown.add_task(stage)
        shown.update(stages[stage], completed=done, total=total)

    return progress


def _described(data: "Dataset") -> str:
    """Returns the counts of each part, and the licences by their share of all pictures."""
    parts = {"pool": data.pool, "curated": data.curated, "evaluation": data.evaluation}
    lines = [f"{'':12}{'pictures':>10}{'concepts':>10}{'families':>10}"]
    licences: Counter[str] = Counter()
    for name, part in parts.items():
        lines.append(f"{name:12}{len(part):10,}{len(set(part.concepts)):10,}{len(set(part.families)):10,}")
        licences.update(data.licences[family] for family in part.families)
    classes, members = len(data.class_names), int((data.labels >= 0).sum())
    lines.append(f"{classes:,} classes with at least {data.class_size} pictures each, {members:,} of the evaluation's")
    lines += [f"{count / licences.total():6.1%}  {licence}" for licence, count in licences.most_common()]
    return "\n".join(lines)
