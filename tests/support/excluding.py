"""Requests some of whose candidates cannot be used, what a reply says of them, and what is picked of the others."""

import io

import numpy as np
import torch
from PIL import Image
from selector_proto.v1 import selector_pb2 as pb

from selector_server.sampling import Criterion
from support.model import POLICIES, WORDS, plan, samples
from support.wire import Request, raw

COUNT = 40
PIXELS, IDS = samples(COUNT)
EXCLUDE = pb.BAD_SAMPLES_EXCLUDE


def saved(pixels, kind="PNG", size=None) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if size is None else image.resize(size)).save(out, kind)
    return out.getvalue()


FILES = [saved(image) for image in PIXELS]
TEXTS = [" ".join(WORDS[i] for i in row).encode() for row in IDS]
JPEG = saved(PIXELS[0], "JPEG", (64, 64))


def encoded(files=None, texts=None, **fields) -> Request:
    """Files and strings, of which some are replaced by others."""
    request = Request()
    for changes, plain, part in (
        (files, FILES, request.selection.samples.encoded_images),
        (texts, TEXTS, request.selection.samples.strings),
    ):
        part.CopyFrom(request.pack([(changes or {}).get(i, item) for i, item in enumerate(plain)]))
    return request.set(**({"bad_samples": EXCLUDE, "seed": 5} | fields))


def tokens(changes, **fields) -> Request:
    ids = IDS.astype(np.int64)
    for row, value in changes.items():
        ids[row] = value
    return raw(PIXELS, ids, **({"bad_samples": EXCLUDE, "seed": 5} | fields))


def exclusion(reason, indices, first="") -> pb.Exclusion:
    return pb.Exclusion(reason=f"EXCLUSION_REASON_{reason}", indices=indices, first=first)


def excluded(reply) -> dict[str, list[int]]:
    names = {one.reason: pb.ExclusionReason.Name(one.reason) for one in reply.exclusions}
    assert len(names) == len(reply.exclusions), "one entry a reason"
    assert all(one.indices and list(one.indices) == sorted(set(one.indices)) for one in reply.exclusions)
    return {names[one.reason].removeprefix("EXCLUSION_REASON_"): list(one.indices) for one in reply.exclusions}


def opened(count, closed):
    open_ = torch.ones(count, dtype=torch.bool)
    open_[list(closed)] = False
    return open_


def picked(bundles, closed, *, policy="joint", picks=8, seed=5, criterion=Criterion.LEARNABILITY, sides=(PIXELS, IDS)):
    scores = bundles.scores(*sides, criterion).with_open(opened(COUNT, closed))
    return POLICIES[policy].pick(scores, plan(picks, picks if policy == "joint" else 1, seed=seed)).indices.tolist()
