"""Observations as messages: numbers as they are, content clipped to what somebody can read."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from selector_proto.v1 import inspection_pb2 as pb
from selector_proto.v1 import selector_pb2

from selector_server.encoding.reference_cache import key_text
from selector_server.errors import Exclusion
from selector_server.inspection.observation import Fate, Losses, Observation
from selector_server.inspection.stores import tag_text

# So many characters of an id or a caption are shown.
SHOWN = 512
_REASONS = {reason: selector_pb2.ExclusionReason.Value(f"EXCLUSION_REASON_{reason.name}") for reason in Exclusion}
_NO_CONTENT = "what this super-batch showed is no longer kept"


def super_batch(seen: Observation) -> pb.GetSuperBatchResponse:
    """The losses and fates of all its candidates."""
    return pb.GetSuperBatchResponse(
        point=seen.point,
        fates=seen.fates.tolist(),
        learner_losses=_listed(seen.learner),
        reference_losses=_listed(seen.reference),
        scores=_listed(seen.scores),
        order=seen.order.tolist(),
    )


def candidates(seen: Observation, rows: Iterable[int], pixels: bool = True) -> list[pb.Candidate]:
    """These candidates, as far as they are known."""
    return [_candidate(seen, row, pixels) for row in rows]


def _candidate(seen: Observation, row: int, pixels: bool) -> pb.Candidate:
    numbers = {"learner_loss": seen.learner, "reference_loss": seen.reference, "score": seen.scores}
    one = pb.Candidate(
        index=row,
        fate=pb.Fate.ValueType(int(seen.fates[row])),
        order=int(seen.order[row]),
        reason=_reason(seen.reasons.get(row)),
        **{
            name: float(values[row])
            for name, values in numbers.items()
            if values is not None and not np.isnan(values[row])
        },  # type: ignore[arg-type]
    )
    if (content := seen.content) is None:
        one.missing = _NO_CONTENT
        return one
    one.id = key_text(content.ids[row])[:SHOWN] if len(content.ids) and content.ids[row] else ""
    one.caption = caption_text(content.captions[row]) if len(content.captions) else ""
    if len(content.tags):
        tag = content.tags[row]
        one.tag = tag_text(tag) if isinstance(tag, bytes) else str(tag)
    lacking = [content.no_caption] if not one.caption else []
    if (picture := content.pictures.get(row)) is not None:
        one.picture.CopyFrom(message_of(picture, pixels))
    elif seen.fates[row] == Fate.PREFILTERED:
        lacking.append("the picture was not decoded: the prefilter left it out")
    else:
        lacking.append(content.no_picture)
    one.missing = "; ".join(word for word in lacking if word)
    return one


def message_of(picture: NDArray[np.uint8], pixels: bool = True) -> pb.Picture:
    """A picture, without its bytes if nobody wants them."""
    height, width, channels = picture.shape
    return pb.Picture(height=height, width=width, channels=channels, pixels=picture.tobytes() if pixels else b"")


def caption_text(caption: bytes) -> str:
    """A caption as it is shown."""
    return caption.decode(errors="replace")[:SHOWN]


def _reason(reason: Exclusion | None) -> selector_pb2.ExclusionReason.ValueType:
    return selector_pb2.ExclusionReason.ValueType(0 if reason is None else _REASONS[reason])


def _listed(values: Losses | None) -> list[float]:
    return [] if values is None else values.tolist()
