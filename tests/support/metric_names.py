"""Every metric of ours: its name, type, labels and help, as the code has them."""

from pathlib import Path
from types import SimpleNamespace

import selector_client.metrics as client
from selector_client.loading.loader_progress import Progress
from selector_client.selecting.breaker import Breaker
from selector_client.selecting.selection import Locality, Statistics

from selector_server.telemetry.metrics import Metrics

_ENDINGS = {"counter": ["_total"], "info": ["_info"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
Row = tuple[str, str, tuple[str, ...], str]


def of_server() -> list[Row]:
    metrics = Metrics()
    groups = metrics, metrics.encoding, metrics.quality, metrics.weights
    found = [collector for group in groups for collector in vars(group).values()]
    collectors = [c for c in found if hasattr(c, "collect") and c not in (metrics.registry, metrics.process)]
    rows = []
    for collector in collectors:
        labels = ("version", "device", "provider") if collector is metrics.build else collector._labelnames
        rows += [_row(family, tuple(labels)) for family in collector.collect()]
    registered = {family.name for family in metrics.registry.collect()}
    assert {name for name in registered if not name.startswith(("process_", "python_"))} == {
        family.name for collector in collectors for family in collector.collect()
    }
    return sorted(rows)


def of_client() -> list[Row]:
    sources = (
        client._Selector(
            SimpleNamespace(statistics=Statistics(locality=Locality(0.5, 0.2, 0.1)), breaker=Breaker(lambda: True))
        ),
        client._Loader(SimpleNamespace(progress=Progress(lag_steps=1))),
        client._Publisher(
            SimpleNamespace(published=0, superseded=0, failures=0, refused=0, refusals=0, last_version=0, unsafe="")
        ),
    )
    return sorted(_row(family, tuple(_labels(family))) for source in sources for family in source.collect())


def sample_names(rows: list[Row]) -> set[str]:
    """Names of the series."""
    plain = {name.removesuffix("_total").removesuffix("_info"): kind for name, kind, _, _ in rows}
    return {name + ending for name, kind in plain.items() for ending in _ENDINGS[kind]}


def table(rows: list[Row]) -> str:
    """As docs/monitoring.md has it."""
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    lines += [f"| `{n}` | {kind} | {', '.join(f'`{x}`' for x in labels)} | {text} |" for n, kind, labels, text in rows]
    return "\n".join(lines)


def in_docs(page: Path) -> list[str]:
    """The tables of a page that begin as ours."""
    text, found = page.read_text(), []
    while (at := text.find("| metric |")) >= 0:
        block, _, text = text[at:].partition("\n\n")
        found.append(block.strip())
    return found


def _labels(family) -> list[str]:
    return sorted({name for sample in family.samples for name in sample.labels})


def _row(family, labels) -> Row:
    ending = _ENDINGS[family.type][0] if family.type in ("counter", "info") else ""
    return family.name + ending, family.type, labels, family.documentation
