"""Super-batches as Parquet, a row for each candidate, for notebooks and for opening again (docs/inspector.md)."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from selector_proto.v1 import inspection_pb2 as pb

from selector_server.encoding.reference_cache import integer_key, key_text, string_key
from selector_server.engine.task import ServedWeights
from selector_server.errors import Exclusion, NotPossible
from selector_server.inspection.messages import caption_text
from selector_server.inspection.observation import Content, Fate, Losses, Observation
from selector_server.inspection.stores import tag_text
from selector_server.sampling.locality import Locality

INSTALL = "pyarrow is not installed: pip install 'jest-selector[inspect]'"
_FATES = {fate: pb.Fate.Name(pb.Fate.ValueType(fate)).removeprefix("FATE_").lower() for fate in Fate}
_LOSSES = {"learner_loss": "learner", "reference_loss": "reference", "score": "scores"}


def pyarrow_modules() -> tuple[Any, Any]:
    """pyarrow and its part for Parquet. Raises NotPossible where they are not installed."""
    try:
        import pyarrow as pa  # noqa: PLC0415 - only the extra inspect brings it
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise NotPossible("parquet", "missing", INSTALL) from error
    return pa, pq


def written(seen: Sequence[Observation], run: str, content: bool) -> bytes:
    """A file of these super-batches of a run, with ids, captions and tags only if `content` says so. Raises
    NotPossible."""
    pa, pq = pyarrow_modules()
    tables = [_table(pa, one, run, content) for one in seen]
    file = BytesIO()
    pq.write_table(pa.concat_tables(tables, promote_options="default"), file, compression="zstd")
    return file.getvalue()


def _table(pa: Any, one: Observation, run: str, content: bool) -> Any:
    size = one.size

    def same(value: Any, kind: Any) -> Any:
        """One value for every candidate, null for None."""
        return pa.repeat(pa.scalar(value, kind), size)

    weights, alike = one.weights, one.locality
    columns = {
        "run": same(run, pa.string()).dictionary_encode(),
        "super_batch": same(one.number, pa.uint64()),
        "trainer_step": same(one.step, pa.uint64()),
        "at": same(round(one.at * 1e6), pa.timestamp("us", "UTC")),
        "index": pa.array(np.arange(size, dtype=np.uint32)),
        "fate": _fates(pa, one),
        "order": pa.array(one.order),
        **{name: _floats(pa, getattr(one, field), size) for name, field in _LOSSES.items()},
        "reason": _reasons(pa, one),
        "weights_version": same(None if weights is None else weights.version, pa.uint64()),
        "weights_step": same(None if weights is None else weights.trainer_step, pa.uint64()),
        "weights_age_seconds": same(None if weights is None else weights.age_seconds, pa.float64()),
        "weights_lag_steps": same(None if weights is None else weights.lag_steps, pa.int64()),
        "cosine_adjacent": same(None if alike is None else alike.adjacent, pa.float64()),
        "cosine_random": same(None if alike is None else alike.random, pa.float64()),
        "near_duplicates": same(None if alike is None else alike.near_duplicates, pa.float64()),
        "shuffled_loss": same(one.shuffled_loss, pa.float64()),
        "rule": same(json.dumps(dict(one.rule)), pa.string()).dictionary_encode(),
        "trainer": same(one.trainer, pa.string()).dictionary_encode(),
        "fallbacks": same(one.fallbacks, pa.uint64()),
    }
    if content:
        columns |= _content_columns(pa, one.content or Content(), size)
    return pa.table(columns)


def _content_columns(pa: Any, content: Content, size: int) -> dict[str, Any]:
    nothing: list[str | None] = [None] * size
    ids = [key_text(key) if key else None for key in content.ids] or nothing
    captions = [caption_text(caption) for caption in content.captions] or nothing
    tags = [(tag_text(tag) if isinstance(tag, bytes) else str(tag)) or None for tag in content.tags] or nothing
    whole = bool(len(content.ids)) and all(key[:1] == b"i" for key in content.ids)
    return {
        "id": pa.array(ids, pa.string()),
        "id_is_integer": pa.repeat(pa.scalar(whole), size),
        "caption": pa.array(captions, pa.string()),
        "tag": pa.array(tags, pa.string()),
    }


def _fates(pa: Any, one: Observation) -> Any:
    return pa.DictionaryArray.from_arrays(
        pa.array(one.fates.astype(np.int32) - min(Fate)), pa.array([*_FATES.values()])
    )


def _reasons(pa: Any, one: Observation) -> Any:
    words: list[str | None] = [None] * one.size
    for row, why in one.reasons.items():
        words[row] = why.value
    return pa.array(words, pa.string()).dictionary_encode()


def _floats(pa: Any, values: Losses | None, size: int) -> Any:
    if values is None:
        return pa.nulls(size, pa.float32())
    return pa.array(values, pa.float32(), from_pandas=True)  # NaN becomes null.


def read(file: Path) -> Iterator[tuple[str, Observation]]:
    """The super-batches of a file that `written` made, in their order, each with its run. Raises NotPossible for what
    is no such file."""
    pa, pq = pyarrow_modules()
    try:
        yield from _observations(pq.ParquetFile(file).read())
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        raise NotPossible("file", file, f"is none that was recorded: {' '.join(str(error).split())[:200]}") from error


def _observations(table: Any) -> Iterator[tuple[str, Observation]]:
    numbers = np.asarray(table["super_batch"])
    starts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist()] if len(numbers) else []
    for start, stop in zip(starts, [*starts[1:], len(numbers)], strict=True):
        part = table.slice(start, stop - start)
        yield part["run"][0].as_py(), _observation(part)


_CODES = {name: fate for fate, name in _FATES.items()}


def _observation(table: Any) -> Observation:
    first = {name: table[name][0].as_py() for name in table.column_names}
    columns = set(table.column_names)
    fates = np.array([_CODES[name] for name in table["fate"].to_pylist()], np.uint8)
    reasons = {row: Exclusion(why) for row, why in enumerate(table["reason"].to_pylist()) if why is not None}
    losses: dict[str, Any] = {}
    for name, field in _LOSSES.items():
        values = table[name].to_numpy().astype(np.float32)
        losses[field] = None if np.isnan(values).all() else values
    version, near = first["weights_version"], first["near_duplicates"]
    seen = Observation(
        at=first["at"].timestamp(),
        step=first["trainer_step"],
        rule=json.loads(first["rule"]),
        fates=fates,
        order=table["order"].to_numpy().astype(np.uint32),
        reasons=reasons,
        weights=None
        if version is None
        else ServedWeights(
            version, first["weights_step"], first["weights_age_seconds"], first["weights_lag_steps"], stale=False
        ),
        locality=None if near is None else Locality(first["cosine_adjacent"], first["cosine_random"], near),
        shuffled_loss=first["shuffled_loss"],
        trainer=first["trainer"],
        fallbacks=first["fallbacks"],
        number=first["super_batch"],
        **losses,
    )
    return replace(seen, content=_content(table, first["id_is_integer"])) if "id" in columns else seen


def _content(table: Any, integers: bool) -> Content:
    ids = [
        b"" if name is None else integer_key(int(name)) if integers else string_key(name)
        for name in table["id"].to_pylist()
    ]
    captions = [(caption or "").encode() for caption in table["caption"].to_pylist()]
    tags = [(tag or "").encode() for tag in table["tag"].to_pylist()]
    return Content(
        ids if any(ids) else (),
        captions if any(captions) else (),
        tags if any(tags) else (),
        no_picture="pictures are not recorded",
        no_caption="" if any(captions) else "there are no captions in the file",
    )
