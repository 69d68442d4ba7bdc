"""What the reference makes of samples, where a data set keeps it with them: once made, it goes along with every
super-batch, and the sidecar needs no reference."""

import io
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.lib.format import read_array

from selector_client.loading.batch_layout import column_of
from selector_client.selecting.candidates import ModelEmbeddings
from selector_client.selecting.columns import as_rows

log = logging.getLogger(__name__)

# Where samples have it: one member with both, [2, D], as shards have it, or a column for each side, as tables do.
MEMBER = "ref.npy"
COLUMNS = ("reference_image", "reference_text")
# The key of a Parquet file's metadata under which scores say of which reference they are.
SCORES = "selector.scores"
Name = str | int  # of a column, or its position in samples or batches that are tuples


@dataclass(frozen=True)
class Reference:
    """The reference that made the embeddings which a data set keeps: its fingerprint, logit scale (not the scale's
    logarithm), logit bias and, if given, the width that rows must have. `columns` says where super-batches have them:
    the name of what has image and text together, [2, D] for a sample, or a name for each side; by default "ref.npy", or
    else "reference_image" and "reference_text"."""

    fingerprint: str
    logit_scale: float
    logit_bias: float = 0.0
    width: int | None = None
    columns: Name | tuple[Name, Name] | None = None

    @staticmethod
    def of(facts: Mapping[Any, Any], columns: Name | tuple[Name, Name] | None = None) -> "Reference":
        """Reads fingerprint, scale, bias and width from the metadata of a Parquet file that `selector reference score`
        wrote (`pyarrow.parquet.read_schema(file).metadata`), or from a mapping that has them itself. Raises
        ValueError."""
        packed = next((facts[key] for key in (SCORES, SCORES.encode()) if key in facts), None)
        found = facts if packed is None else json.loads(packed)
        try:
            width = None if found.get("width") is None else int(found["width"])
            return Reference(str(found["fingerprint"]), float(found["scale"]), float(found["bias"]), width, columns)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            words = f"must have fingerprint, scale and bias of the reference: {error!r}"
            raise ValueError(f"{str(found)[:200]} {words}") from error

    @staticmethod
    def read(file: str | Path, columns: Name | tuple[Name, Name] | None = None) -> "Reference":
        """Reads a JSON file that has them. Raises OSError and ValueError."""
        return Reference.of({SCORES: Path(file).read_text()}, columns)

    def embeddings(self, image: Any, text: Any) -> ModelEmbeddings:
        """Returns its embeddings of B samples as `Selector.select` takes them; `image` and `text` are [B, D], or
        columns of B rows, of which some may be missing."""
        return ModelEmbeddings(image, text, self.logit_scale, self.logit_bias, self.fingerprint, self.width)

    def find(self, super_batch: Any) -> ModelEmbeddings | None:
        """Returns its embeddings of a super-batch's samples, or None if no sample has any."""
        for place in (MEMBER, COLUMNS) if self.columns is None else (self.columns,):
            if isinstance(place, tuple):
                sides = [column_of(super_batch, name) for name in place]
                there = next((column for column in sides if column is not None), None)
                if there is not None:
                    return self.embeddings(*([None] * len(there) if column is None else column for column in sides))
            elif (both := column_of(super_batch, place)) is not None:
                return self.embeddings(*_halves(both))
        return None


class ViewWithReference:
    """Shows a selector what a `view` shows it, and what the `reference` made of the samples.

    The first super-batch must have that, and else raises ValueError, for the loader was set up wrongly. A later one
    that has none of it is sent without, and the log says so once: a sidecar that has the reference embeds it then, and
    any other refuses, so that its sub-batch is uniform."""

    def __init__(self, view: Callable[[Any], Mapping[str, Any]], reference: Reference) -> None:
        self._view, self._reference = view, reference
        self._found = self._said = False

    def __call__(self, super_batch: Any) -> Mapping[str, Any]:
        shown = self._view(super_batch)
        if "reference" in shown:
            return shown
        if (found := self._reference.find(super_batch)) is not None:
            self._found = True
            return {**shown, "reference": found}
        names = self._reference.columns or f"{MEMBER}, or {' and '.join(COLUMNS)}"
        if not self._found:
            raise ValueError(f"no sample of the first super-batch has what the reference makes of it ({names})")
        if not self._said:
            self._said = True
            log.warning("no sample of a super-batch has what the reference makes of it (%s); it is sent without", names)
        return shown


def _halves(column: Any) -> tuple[Any, Any]:
    """Returns the image rows and the text rows of a column that has both, [B, 2, D], or B times [2, D]."""
    rows = as_rows(column)
    if rows is None:
        return column[:, 0], column[:, 1]
    pairs = [_pair(row) for row in rows]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _pair(row: Any) -> Any:
    """Returns a sample's two rows. What is no pair stands for both, so that the sample is excluded for what it is."""
    found = _loaded(row) if isinstance(row, bytes | bytearray) else row
    is_pair = not isinstance(found, bytes | bytearray) and hasattr(found, "__len__") and len(found) == 2
    return found if is_pair else (found, found)


def _loaded(content: bytes | bytearray) -> Any:
    """Returns the array in an .npy file, or the content itself if it is none."""
    try:
        return read_array(io.BytesIO(content), allow_pickle=False)
    except Exception:  # numpy's reader raises what it likes for foreign bytes; the sample is excluded for that
        return content
