"""Reads what `selector bench training --save` wrote: one document for each profile that was run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from selector_tools.study.cells import Cell
from selector_tools.study.summary import Summary, summaries

PATTERN = "training-*.json"
TOGETHER = ("cpu", "gpu", "full")  # What the page is about: none of these has another one's runs.
ELSE = "headline"  # or this, if there is none of them


@dataclass(frozen=True)
class Study:
    """The runs of one profile, and on what machine they were made."""

    document: Mapping[str, Any]

    @property
    def profile(self) -> str:
        """The profile's name."""
        return str(self.document["profile"])

    @cached_property
    def found(self) -> dict[Cell, Summary]:
        """All runs by cell, in the order of the profile."""
        return summaries(self.document["runs"])

    @property
    def machine(self) -> str:
        """What the runs were made on, and when, in one sentence."""
        told = self.document
        versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
        date, _, time = told["date"].partition("T")
        return (
            f"{told['device']}, {told['cores']} cores, {told['side_by_side']} runs side by side, {versions}; written "
            f"{date} {time[:5]} UTC"
        )


def read(folder: Path) -> dict[str, Study]:
    """Returns the studies in a folder by profile. Raises ValueError if there is none of the profiles that the page is
    about, or a file is not what --save writes."""
    studies = {}
    for file in sorted(folder.glob(PATTERN)):
        document = json.loads(file.read_text())
        if missing := {"profile", "runs", "references", "versions"} - document.keys():
            raise ValueError(f"{file} lacks {', '.join(sorted(missing))}; must be what bench training --save writes")
        studies[document["profile"]] = Study(document)
    if studies.keys().isdisjoint((*TOGETHER, ELSE)):
        told = ", ".join(studies) or "no profile"
        raise ValueError(f"{folder} holds {told}; must hold {PATTERN} of {', '.join((*TOGETHER, ELSE))}")
    return studies


def together(studies: Mapping[str, Study]) -> Study:
    """Returns what the page is about, as one study. Each run says on which machine it was made; of two runs of a cell
    by the same seed, the first one stays."""
    some = [studies[name] for name in TOGETHER if name in studies] or [studies[ELSE]]
    runs: dict[str, Mapping[str, Any]] = {}
    for document in (one.document for one in some):
        for run in document["runs"]:
            runs.setdefault(Cell.of(run["cell"]).key(run["seed"]), {"machine": document["device"], **run})
    whole: dict[str, Any] = {"profile": "", "runs": list(runs.values())}
    for name in ("pools", "references"):
        whole[name] = {key: told for one in some for key, told in one.document.get(name, {}).items()}
    return Study(whole)
