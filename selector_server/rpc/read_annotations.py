"""What a Selection says of its candidates for people who look on: checked always, kept where somebody looks on."""

import numpy as np
from selector_proto.contract import MAX_TAG_BYTES
from selector_proto.tensors import INTEGERS, read, read_bytes

from selector_server.engine.annotations import NOTHING, Annotations
from selector_server.engine.candidates.samples import Samples
from selector_server.engine.task import SuperBatch
from selector_server.errors import InvalidRequest
from selector_server.rpc.read_candidates import Reading


def read_annotations(request: Reading, candidates: SuperBatch) -> Annotations:
    """Raises WireError or InvalidRequest."""
    selection, config = request.selection, request.config
    has_tags, has_strings = selection.HasField("tags"), selection.HasField("tag_strings")
    if has_tags and has_strings:
        raise InvalidRequest("tag_strings", "set", "tags is set, too; send one of the two")
    told = {"fallbacks": selection.fallbacks if selection.HasField("fallbacks") else None, "trainer": selection.group}
    tags: object = ()
    if has_tags:
        tags = np.array(read(selection.tags, request.payload, "tags", INTEGERS, [candidates.size]))
    elif has_strings:
        tags = read_bytes(selection.tag_strings, request.payload, "tag_strings", candidates.size, MAX_TAG_BYTES)
    if not config.observes:
        return NOTHING
    if not (config.inspect_content or config.record_content):
        return Annotations(**told)  # type: ignore[arg-type]
    if not isinstance(candidates, Samples):
        return Annotations(tags=tags, **told)  # type: ignore[arg-type]
    return Annotations(
        ids=candidates.ids,
        captions=candidates.texts if isinstance(candidates.texts, list) else (),
        tags=tags,  # type: ignore[arg-type]
        pixels=None if isinstance(candidates.images, list) else candidates.images,
        **told,  # type: ignore[arg-type]
    )
