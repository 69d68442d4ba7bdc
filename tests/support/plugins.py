"""Another package in a sidecar's environment."""

import os
from pathlib import Path

# A policy that takes the first candidates, whosever they are.
FIRST = """
import torch
from selector_server.sampling import Needs, Picks, Policy

class First(Policy):
    name, needs = "first", Needs.SCALARS
    def pick(self, scores, plan):
        picks = torch.arange(plan.picks)
        return Picks(picks, scores.own()[picks], scores.total(picks))
"""


def with_policies(folder: Path, code: str, **classes) -> dict[str, str]:
    """The environment of a process that finds an installed package of this code, whose `classes` are policies."""
    (folder / "foreign.py").write_text(code)
    info = folder / "foreign-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 1.0\n")
    points = "".join(f"{name} = foreign:{kind}\n" for name, kind in classes.items())
    (info / "entry_points.txt").write_text(f"[selector_server.policies]\n{points}")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}
