"""What the page says beside its tables: what was done, by which rules of evidence, and how to read it."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from selector_tools.study.model import SIDE
from selector_tools.study.results.documents import Study

HEADER = """# What selection brings to training

This page is written by `make results` from `benchmarks/results/training-*.json`, which `selector bench training --save`
writes; nothing here is typed by hand. Each row of a table has a name to link to.

```sh
selector bench training --profile tuning --save benchmarks/results/training-tuning.json     # learning rates
selector bench training --profile cpu --save benchmarks/results/training-cpu.json           # an hour and a half
selector bench training --profile gpu_tuning --device cuda --save benchmarks/results/training-gpu_tuning.json
selector bench training --profile gpu --device cuda --save benchmarks/results/training-gpu.json # larger pools, batches
selector bench training --profile headline --save benchmarks/results/training-headline.json # a quarter of an hour
make results                                                                                # this page and its plots
```"""

IN_SHORT = """The arm is the best one by any rule and filter ratio, chosen after the runs: it flatters a little.
The baseline is chosen after the runs, too, and by its end."""

NEGATIVE = """Everything below is listed by a rule and not by hand: whatever meets the condition is in it."""

EVIDENCE = """- **Task.** A small two-tower SigLIP learns icons and their names, fed by real sidecars through the real
  client and a real Redis-protocol server. Accuracy is zero-shot top-1, in percent: naming held-out pictures among all
  class names.
- **Splits.** Validation and test are different families of icons, and nothing was trained on either. The validation
  made every choice, and all curves and targets are its own. Test families were looked at once, by final learners.
  *Known* classes are those that the reference was shown, *unknown* ones the others.
- **Seeds.** A seed decides first weights, order, which captions are wrong, and the reference: each seed trains its own.
  ± is the standard deviation over seeds for accuracies, and the standard error for differences. All seeds share the
  held-out pictures, whose choice is in no error. With two or three seeds an error is itself rough: twice the error is
  a low bar, and a figure of one seed has none.
- **Learning rates** were tuned on the validation by a seed of their own, for baselines and for selection alike, by
  stream, wrong captions and horizon ([table](#learning-rates)). All rules that select have the rate that was best for
  *mixed*, and those with a warm start that of the baseline with one; offline filters that keep a tenth or a twentieth
  have that of the one that keeps a quarter; where a stream or a horizon is not in the table,
  the rate is that of the natural stream at the usual horizon.
- **Baselines.** A gain counts against the baseline that ends highest, and it may be shuffled though the arm reads the
  stream as it comes: shuffling is open to everybody. One that asks the reference must ask the same one. As published
  figures are against uniform batches, the best *uniform* baseline, which does not ask the reference, is told beside
  it. Starting from the reference's weights is [told apart](#9-a-learner-that-starts-from-the-references-weights).
- **Speed-ups** say how many times less an arm needs until its mean curve first reaches a target. Both were run by the
  same seeds, and in brackets are the lowest and the highest of single seeds. A baseline's end comes after its learning
  rate has decayed and an arm's curve on the way does not, so the ratios err to the low side. Below 1, the arm needs
  more. Batches are equally large, so that steps also count examples trained on.
- **Costs.** FLOPs are counted products of matrices: training, scoring, encoding by the reference what its cache lacks,
  and the draw. The paper's model (Evans et al. 2024, A.4) counts three forward passes a trained example and one a
  scored one. CPU seconds are those of trainer and sidecar. Wall clock is that of training without evaluation, while
  other runs shared the cores; both are compared only where all runs were made on one machine. The reference's training
  and its embeddings of the pool are one-off costs, in none of these, and [apart](#one-off-costs).
- **Limits.** This is a laptop's scale: pictures of {side} pixels, towers of a million FLOPs, batches of {batches},
  {steps} steps. At that size the draw and the messages weigh more than with large towers, and the
  reference is better than the learner for longer. What holds here may not hold for your data: try it there."""


def evidence(study: Study) -> str:
    """Returns the rules of evidence, with the sizes of what was run."""

    def sizes(name: str) -> str:
        return " or ".join(f"{value:,}" for value in sorted({getattr(cell, name) for cell in study.found}))

    return EVIDENCE.format(side=SIDE, batches=sizes("batch"), steps=sizes("steps"))


def machines(studies: Mapping[str, Study]) -> str:
    """Returns on what machine each profile was run, and by how many runs."""
    lines = []
    for name, study in studies.items():
        runs = study.document["runs"]
        seeds = sorted({run["seed"] for run in runs})
        hours = sum(run["wall_seconds"] for run in runs) / 3600
        lines.append(
            f"- `{name}`: {len(study.found)} cells, {len(runs)} runs (seeds {', '.join(map(str, seeds))}), "
            f"{hours:.1f} hours of runs one after the other. {study.machine}.{_elsewhere(study)}"
        )
    return "\n".join(lines)


def _elsewhere(study: Study) -> str:
    """Says how many runs were made on another machine than the one that wrote the document."""
    here = study.document["device"]
    others = Counter(run["machine"] for run in study.document["runs"] if run.get("machine", here) != here)
    return "".join(f" {count} of its runs were made on {machine}." for machine, count in others.items())


def recipes(document: Mapping[str, Any]) -> str:
    """Returns how each kind of reference was trained."""
    used = {run["cell"]["reference"] for run in document["runs"]}
    return "\n".join(
        f"- *{name}*: {recipe['about']}." for name, recipe in document["references"].items() if name in used
    )


def pools(document: Mapping[str, Any]) -> str:
    """Returns how large the pools are, if the document says so."""
    lines = []
    for name, told in document.get("pools", {}).items():
        parts = (f"{told[part]['pictures']:,} pictures of {told[part]['classes']:,} classes" for part in HELD_OUT)
        validation, test = parts
        lines.append(
            f"- *{name}*: {told['about']}. {told['pairs']:,} pairs, {told['curated']:,} curated ones for the "
            f"reference; validation: {validation}; test: {test}, {told['test']['unknown']:,} of these pictures of "
            "unknown classes."
        )
    return "Pools:\n\n" + "\n".join(lines) if lines else ""


HELD_OUT = ("validation", "test")
