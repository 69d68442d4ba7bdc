"""Writes the files of `selector reference report`; nothing is measured here."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from selector_tools import plots
from selector_tools.pools.exclusions import Exclusions
from selector_tools.progress import pace
from selector_tools.reference.separation import Separation, Word

LISTED = 20
_SHOWN = 5  # on the terminal
_BINS = 60


@dataclass(frozen=True)
class Report:
    """What the report says. `words` is None where the pool has tokens only and no tokenizer tells what they mean."""

    name: str
    fingerprint: str
    pool: str
    seconds: float
    separation: Separation
    words: list[Word] | None
    min_count: int
    exclusions: Exclusions


def headline(report: Report) -> str:
    """Sums the report up in one or two lines for the terminal."""
    count = len(report.separation.true)
    text = f"AUC {report.separation.auc:.3f} on {count:,} pairs {pace(count, report.seconds)}"
    if report.words is None:
        return f"{text}\nno words: the pool has tokens only, and the reference's bundle no tokenizer"
    if not report.words:
        return f"{text}\nno words: none is in {report.min_count} captions"
    worst = ", ".join(f"{word} {auc:.2f} ({many})" for word, many, auc in report.words[::-1][:_SHOWN])
    return f"{text}\nleast known words: {worst}"


def write(report: Report, folder: Path) -> None:
    """Writes report.json, report.md and report.svg into a new folder."""
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(_figures(report), indent=1, ensure_ascii=False) + "\n", "utf-8")
    (folder / "report.md").write_text(_page(report), "utf-8")
    _plot(report.separation, folder / "report.svg")


def _figures(report: Report) -> dict[str, object]:
    separation = report.separation
    return {
        "reference": report.name,
        "fingerprint": report.fingerprint,
        "pool": report.pool,
        "pairs": len(separation.true),
        "exclusions": report.exclusions.as_json(),
        "shuffled_pairs": int(separation.differs.sum()),
        "auc": separation.auc,
        "mean_loss": float(separation.true.mean()),
        "mean_loss_shuffled": float(separation.shuffled[separation.differs].mean()),
        "seconds": report.seconds,
        "min_count": report.min_count,
        "words": None if report.words is None else [word._asdict() for word in report.words],
    }


def _page(report: Report) -> str:
    separation = report.separation
    true, shuffled = (float(np.median(part)) for part in (separation.true, separation.shuffled[separation.differs]))
    lines = [
        f"# {report.name} on {report.pool}",
        "",
        f"**AUC {separation.auc:.3f}**: so often does an image with its own caption cost the reference less than one "
        f"with another's caption does ({len(separation.true):,} pairs; 0.5 is chance). Median losses: {true:.3f} and "
        f"{shuffled:.3f} nats.",
        "",
        *_excluded(report.exclusions),
        "![Losses of true and of shuffled captions](report.svg)",
        "",
        "## Words",
        "",
    ]
    if report.words is None:
        lines.append("Left out: the pool has tokens only, and the reference's bundle no tokenizer.")
    elif not report.words:
        lines.append(f"None is in {report.min_count} captions or more.")
    else:
        half = (len(report.words) + 1) // 2  # of few words, none is in both tables
        error = 1 / np.sqrt(6 * report.min_count)
        lines += [
            f"AUC among the pairs whose caption has the word, of {len(report.words):,} words in {report.min_count} "
            f"captions or more. For words that say nothing to the reference it is about 0.5 (at {report.min_count} "
            f"captions, give or take {error:.2f}), or less, where they make a caption stranger to it than others are.",
            "",
            *_table("Best known", report.words[: min(LISTED, half)]),
            "",
            *_table("Least known", report.words[::-1][: min(LISTED, len(report.words) - half)]),
        ]
    return "\n".join(lines) + "\n"


def _excluded(exclusions: Exclusions) -> list[str]:
    if not exclusions.reasons:
        return []
    counts = ", ".join(f"{reason.value} {found.count:,}" for reason, found in exclusions.reasons.items())
    return [f"{exclusions.count:,} of {exclusions.seen:,} pairs could not be used and were left out: {counts}.", ""]


def _table(title: str, words: Sequence[Word]) -> list[str]:
    rows = [f"| {word.word} | {word.captions:,} | {word.auc:.3f} |" for word in words]
    return [f"| {title} | captions | AUC |", "|---|---|---|", *rows]


def _plot(separation: Separation, path: Path) -> None:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    parts = (
        (separation.true, "own caption", "#0b62c4"),
        (
            separation.shuffled[separation.differs],
            "another's caption",
            "#c2570c",
        ),
    )
    everything = np.concatenate([part for part, _, _ in parts])
    bins = np.linspace(everything.min(), everything.max() + 1e-9, _BINS + 1)
    for part, label, colour in parts:
        axes.hist(part, bins.tolist(), density=True, histtype="stepfilled", alpha=0.45, color=colour, label=label)
    axes.set(xlabel="loss of the reference, nats", ylabel="density", title=f"AUC {separation.auc:.3f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    plots.save(figure, path)
