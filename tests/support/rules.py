"""Parts of requests that a rule may need: the reference's embeddings beside samples, learner losses, recent picks."""

import numpy as np
import torch

from selector_server.sampling import Embedded
from support.wire import Request, embeddings


def arrays_of(embedded: Embedded):
    """(image, text, scale, bias), as requests take them."""
    return embedded.image.numpy(), embedded.text.numpy(), embedded.scale, embedded.bias


def bring(request: Request, reference, fingerprint: str) -> Request:
    """The samples, with what the reference of that fingerprint makes of them."""
    image, text, scale, bias = reference
    part = request.selection.samples.reference
    part.fingerprint = fingerprint
    part.embeddings.image.CopyFrom(request.add(image))
    part.embeddings.text.CopyFrom(request.add(text))
    part.embeddings.logit_scale, part.embeddings.logit_bias = scale, bias
    return request


def name(request: Request, ids) -> Request:
    """The samples, with integers as their names."""
    request.selection.sample_ids.integers.CopyFrom(request.add(np.asarray(ids, np.int64)))
    return request


def avoiding(request: Request, image, text) -> Request:
    """The request, with picks of earlier steps."""
    request.selection.recent.image.CopyFrom(request.add(image))
    request.selection.recent.text.CopyFrom(request.add(text))
    return request


def with_losses(losses, reference, **fields) -> Request:
    """The reference's embeddings beside one learner loss a candidate."""
    request = embeddings(None, reference, **fields)
    request.selection.embeddings.learner_losses.CopyFrom(request.add(losses))
    return request


def embedded(model) -> Embedded:
    """What the server makes of (image, text, scale, bias)."""
    image, text, scale, bias = model
    return Embedded.normalise(torch.from_numpy(image).float(), torch.from_numpy(text).float(), scale, bias)
