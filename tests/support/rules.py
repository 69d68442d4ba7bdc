"""What a rule makes of candidates, by the sampler, and the parts of requests that it may need: the reference's
embeddings beside samples, learner losses, recent picks."""

import numpy as np
import torch
from selector_proto.v1 import selector_pb2 as pb

from selector_server.sampling import Criterion, Embedded, PairScores
from support.model import POLICIES, samples
from support.wire import Request, embeddings, some_embeddings

COUNT, PICKS = 40, 8
PIXELS, TOKENS = samples(COUNT)
LEARNER, REFERENCE = some_embeddings(COUNT)
CRITERIA = {
    code: Criterion[pb.Criterion.Name(code).removeprefix("CRITERION_")]
    for code in pb.Criterion.values()
    if code != pb.CRITERION_UNSPECIFIED
}
LEARNABILITY, EASY, HARD, NONE = CRITERIA
MIXED = {"pair_criterion": EASY}


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


def scored(criterion=LEARNABILITY, pairs=None, learner=LEARNER, reference=REFERENCE, **more):
    """What (image, text, scale, bias) of both models are worth by a rule."""
    seen = [None if model is None else embedded(model) for model in (learner, reference)]
    pair_criterion = CRITERIA[criterion if pairs is None else pairs]
    return PairScores(CRITERIA[criterion], *seen, pair_criterion=pair_criterion, **more)


def picked(scores, wanted, policy="joint"):
    return POLICIES[policy].pick(scores, wanted).indices.tolist()


def kept(worth, most):
    """The open candidates after a prefilter: of those whose worth is known (no NaN), `most` of the largest."""
    worth = np.asarray(worth, np.float64)
    known = sorted(np.flatnonzero(~np.isnan(worth)).tolist(), key=lambda row: (-worth[row], row))
    open_ = torch.ones(len(worth), dtype=torch.bool)
    open_[known[most:]] = False
    return open_


def cosines(model):
    seen = embedded(model)
    return (seen.image.double() * seen.text.double()).sum(dim=1)
