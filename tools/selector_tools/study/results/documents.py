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
LARGEST_FIRST = ("full", "cpu", "headline")  # what the page may be about


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
    if studies.keys().isdisjoint(LARGEST_FIRST):
        told = ", ".join(studies) or "no profile"
        raise ValueError(f"{folder} holds {told}; must hold {PATTERN} of {', '.join(LARGEST_FIRST)}")
    return studies


def main(studies: Mapping[str, Study]) -> Study:
    """Returns the study that the page is about: the largest one."""
    return next(studies[name] for name in LARGEST_FIRST if name in studies)
