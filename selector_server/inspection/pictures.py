"""Which candidates of a selection are worth a look, and their pictures, small enough to be kept."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from selector_proto.v1 import inspection_pb2 as pb

from selector_server.engine.candidates.samples import PreparedSamples
from selector_server.engine.task import Task
from selector_server.inspection.observation import Fate, Observation

# So many candidates are in each gallery.
SHOWN = 8
# A picture that is kept has at most so many pixels a side.
SIDE = 96

Rows = NDArray[np.int64]
Pixels = NDArray[np.uint8]


def galleries(seen: Observation) -> dict[int, Rows]:
    """The candidates of each gallery that has any, by its number in the contract: int64 [n], n at most SHOWN. What is
    drawn at random is the same whenever it is asked for."""
    rows = {fate: np.flatnonzero(seen.fates == fate) for fate in Fate}
    picked = rows[Fate.PICKED]
    worth = seen.scores
    if worth is None:
        in_order = picked[np.argsort(seen.order[picked], kind="stable")]
        highest, lowest = in_order[:SHOWN], in_order[::-1][:SHOWN]
    else:
        highest, lowest = _best(picked, worth), _best(picked, -worth)
    found = {
        pb.GALLERY_HIGHEST_PICKED: highest,
        pb.GALLERY_LOWEST_PICKED: lowest,
        pb.GALLERY_HIGHEST_DROPPED: rows[Fate.DROPPED][:0] if worth is None else _best(rows[Fate.DROPPED], worth),
        pb.GALLERY_RANDOM_DROPPED: _some(rows[Fate.DROPPED], seen),
        pb.GALLERY_KEPT_APART: rows[Fate.KEPT_APART][:SHOWN] if worth is None else _best(rows[Fate.KEPT_APART], worth),
        pb.GALLERY_EXCLUDED: rows[Fate.EXCLUDED][:SHOWN],
        pb.GALLERY_PREFILTERED: _some(rows[Fate.PREFILTERED], seen),
    }
    return {int(gallery): chosen for gallery, chosen in found.items() if len(chosen)}


def shown_rows(chosen: Mapping[int, Rows]) -> Rows:
    """All of them, each once, ascending."""
    return np.unique(np.concatenate([*chosen.values(), np.zeros(0, np.int64)]))


def _best(rows: Rows, worth: NDArray[Any]) -> Rows:
    """Those of these rows that are worth most, the best first."""
    if len(rows) > 4 * SHOWN:
        rows = rows[np.argpartition(-worth[rows], SHOWN)[:SHOWN]]
    return rows[np.argsort(-worth[rows], kind="stable")][:SHOWN]


def _some(rows: Rows, seen: Observation) -> Rows:
    random = np.random.default_rng([len(rows), int(seen.at * 1e6)])
    return rows if len(rows) <= SHOWN else np.sort(random.choice(rows, SHOWN, replace=False))


def taken(task: Task[Any], rows: Rows) -> tuple[dict[int, Pixels], str]:
    """Copies of the pictures of these candidates as far as they are there, thinned out to less than twice SIDE, by
    index; and why others have none."""
    if (pixels := task.annotations.pixels) is not None:
        return _copied(pixels, rows, rows), ""
    prepared = task.candidates
    if not isinstance(prepared, PreparedSamples):
        return {}, f"candidates came as {prepared.form}: there are no pictures"
    models, reason = (prepared.learner, prepared.reference), "the picture was not decoded"
    if (inputs := models[0] or models[1]) is None:
        return {}, f"{reason}: what is needed of it was known"
    places = np.full(task.size, -1)
    open_rows = prepared.closed.open_rows(task.size)
    if inputs is not prepared.learner and prepared.found is not None:
        open_rows = open_rows[~prepared.found.known]
        reason += ": what is needed of it was known"
    places[open_rows] = np.arange(len(inputs)) if inputs.rows is None else inputs.rows
    there = rows[places[rows] >= 0]
    return _copied(inputs.pixels, there, places[there]), reason


def _copied(pixels: Pixels, rows: Rows, places: Rows) -> dict[int, Pixels]:
    step = max(1, max(pixels.shape[1:3]) // SIDE)
    copies = pixels[places, ::step, ::step]
    return dict(zip(rows.tolist(), copies, strict=True))


def reduced(picture: Pixels) -> Pixels:
    """The picture with at most SIDE pixels a side, and one or three channels."""
    height, width, channels = picture.shape
    if channels not in (1, 3):
        picture = picture[:, :, :1]
    scale = SIDE / max(height, width)
    if scale >= 1:
        return np.ascontiguousarray(picture)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
    small: Pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    return small[:, :, None] if small.ndim == 2 else small
