"""What a client sends: whole Select streams, up to the arrays that the models take."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf.message import DecodeError
from selector_proto import shared_memory as layout
from selector_proto.contract import MAX_WORDS
from selector_proto.tensors import WireError
from selector_proto.v1 import selector_pb2 as pb
from support import rules, wire

from fuzz.frames import each, joined, split
from fuzz.models import learner, reference
from fuzz.mutate_proto import message
from fuzz.mutation import repaired
from fuzz.target import Decode, Target
from selector_server.buffers import Pool
from selector_server.config import Config
from selector_server.encoding.decoder import Decoder
from selector_server.engine.candidates.base import Scorable
from selector_server.engine.candidates.preparation import Preparation
from selector_server.engine.candidates.samples import PreparedSamples, Samples
from selector_server.engine.models import Models, SamplerSettings
from selector_server.engine.request import Request
from selector_server.engine.task import Task
from selector_server.errors import SelectorError
from selector_server.rpc.exclusions import write_exclusions
from selector_server.rpc.read_candidates import KnownReference
from selector_server.rpc.receive import Patience, Receiver
from selector_server.rpc.shared_memory import SharedFolder
from selector_server.rpc.status import to_status
from selector_server.rpc.wire import Contract
from selector_server.sampling import Loss, Needs, load_policies
from selector_server.sampling.policies import pick_open

MOST = 1 << 20  # bytes of a payload
# gRPC refuses trailers above 8 KiB; then the client would not learn what was wrong.
MOST_STATUS = 4096
# Candidates of which picks are drawn, too.
MOST_DRAWN = 64
EXCLUDE = {"bad_samples": pb.BAD_SAMPLES_EXCLUDE, "max_excluded_share": 1.0, "sub_batch_size": 1}
NAME = f"selector-{'0' * 32}.payload"


@contextmanager
def streams(folder: Path) -> Iterator[Decode]:
    config = Config(max_payload_bytes=MOST, max_super_batch=4096, max_image_pixels=1 << 18, max_image_bytes=1 << 16)
    contract = Contract(config, load_policies(), Loss.SIGMOID, KnownReference("f" * 64, 16))
    shared = SharedFolder(folder / "shared")
    content = wire.some_losses().payload
    file = folder / "shared" / NAME
    file.write_bytes(layout.Header(7, len(content)).encode().ljust(layout.PAYLOAD_OFFSET, b"\0") + content)
    loop = asyncio.new_event_loop()

    async def messages(parts: list[bytes]) -> AsyncIterator[pb.SelectRequest]:
        for part in parts:
            yield pb.SelectRequest.FromString(part)

    pool = Pool()

    async def receive(parts: list[bytes]) -> tuple[pb.Selection, memoryview]:
        receiver = Receiver(messages(parts), Patience(30.0, 0), pool, shared)
        header = await receiver.header(config.max_payload_bytes)
        contract.member(header)
        return header, await receiver.payload()

    with Decoder(1) as decoder:
        preparation = Preparation(learner(decoder), reference(decoder), None)
        models = Models(torch.device("cpu"), None, None, None, None, SamplerSettings())

        def decode(data: bytes) -> str:
            try:
                header, payload = loop.run_until_complete(receive(split(data)))
                task = contract.task(header, payload)
                assert 1 <= task.plan.picks <= task.size
                prepared = task.candidates.prepare(task, preparation, Request())
                closed = prepared.closed
                assert task.excludes or not closed.reasons
                closed.check(task.size, task.plan.picks, task.max_excluded_share)
                assert all(0 <= index < task.size for index in closed.reasons)
                told = pb.SelectResponse(exclusions=write_exclusions(closed))
                assert sum(len(one.indices) for one in told.exclusions) == len(closed.reasons)
                assert all(len(one.first) <= MAX_WORDS and one.first.isprintable() for one in told.exclusions)
            except (WireError, SelectorError) as error:
                status = to_status(error)
                assert status.code != 13, "an internal error"
                assert status.ByteSize() <= MOST_STATUS, f"a status of {status.ByteSize()} bytes"
                raise
            if isinstance(prepared, PreparedSamples):
                inputs = (prepared.learner, prepared.reference)
                for part, own in zip(inputs, (learner(decoder), reference(decoder)), strict=True):
                    if part is None:
                        continue
                    image, text = own.image, own.text
                    assert part.pixels.shape == (task.size, image.height, image.width, image.channels)
                    assert part.tokens.shape == (task.size, text.max_tokens)
                    assert len(part) == task.size - len(closed)
                    tokens = part.tokens if part.rows is None else part.tokens[part.rows]
                    assert 0 <= tokens.min() <= tokens.max() < text.vocabulary
            if _needs_no_model(prepared, task):
                with torch.inference_mode():
                    scores, _ = prepared.scores(task, models, Request())
                    assert bool(torch.isfinite(scores.own()).all())
                    if task.size <= MOST_DRAWN:
                        open_ = closed.open(task.size)
                        picks = pick_open(task.policy, scores.with_open(torch.from_numpy(open_)), task.plan).indices
                        assert len(set(picks.tolist())) == task.plan.picks
                        assert open_[picks.numpy()].all()
            kind = type(task.candidates).__name__
            images = isinstance(task.candidates, Samples) and type(task.candidates.images).__name__
            return f"{kind} {images} {sorted(reason.name for reason in closed.first)}"

        yield decode
    shared.close()
    loop.close()


def _needs_no_model(prepared: Scorable, task: Task[Any]) -> bool:
    """Whether a policy can score these candidates by what the request brought."""
    if not isinstance(prepared, PreparedSamples):
        return True
    brought = prepared.brought is not None and not task.rule.needs_learner
    return brought and task.policy.needs is not Needs.NOTHING


def stream_seeds() -> list[bytes]:
    from fuzz.targets.images import files

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 8, 8, 3), np.uint8)
    tokens = rng.integers(1, 64, (6, 6), np.int32)
    encoded = wire.Request()
    encoded.selection.samples.encoded_images.CopyFrom(encoded.pack(files()[:3]))
    encoded.selection.samples.strings.CopyFrom(encoded.pack([b"w1 w2", b"w3", b"w4 w5 \xc3\xa9"]))
    ids = wire.raw(pixels, tokens)
    ids.selection.sample_ids.strings.CopyFrom(ids.pack([b"a", b"bb", b"c", b"d", b"e", b"f" * 200]))
    numbered = wire.raw(pixels, tokens, group="g", rank=1, world_size=2, trainer_step=5)
    numbered.selection.sample_ids.integers.CopyFrom(numbered.add(np.arange(6)))
    one, two = wire.some_embeddings(12, 4)
    shared = wire.some_losses()
    shared.selection.payload_bytes = len(shared.payload)
    shared.selection.shared_memory.name, shared.selection.shared_memory.generation = NAME, 7
    requests = [
        wire.raw(pixels, tokens, chunks=2, gain=3.0, draw=pb.DRAW_TOP_K, policy="joint"),
        encoded.set(loss=pb.LOSS_SOFTMAX, filter_ratio=0.5).with_crc(),
        ids.set(criterion=pb.CRITERION_EASY_REFERENCE, request_id="id", run="default"),
        numbered.set(max_lag_steps=3, max_age_seconds=5.0, when_stale=pb.STALENESS_POLICY_WAIT),
        wire.embeddings(one, two, sub_batch_size=4, min_weights_version=1),
        wire.embeddings(one, None, criterion=pb.CRITERION_HARD_LEARNER),
        wire.some_losses(),
    ]
    requests[4].cut = 100
    bad = wire.Request()
    bad.selection.samples.encoded_images.CopyFrom(bad.pack([*files()[:3], files()[0][:40], b"", files()[0]]))
    bad.selection.samples.strings.CopyFrom(bad.pack([b"w1 w2", b"\xff", b"w4", b"w5", b"w6", b"w1 w2"]))
    odd = wire.some_embeddings(12, 4)
    odd[0][0][3, 1] = np.nan
    twice = wire.raw(pixels, tokens, **EXCLUDE)
    twice.selection.sample_ids.integers.CopyFrom(twice.add(np.array([1, 2, 3, 1, 5, 6])))
    missing = pb.Exclusion(reason=pb.EXCLUSION_REASON_MISSING, indices=[1, 2], first="no caption")
    requests += [
        bad.set(**EXCLUDE),
        wire.embeddings(*odd, **EXCLUDE),
        twice.set(exclusions=[missing]),
        wire.some_losses(**EXCLUDE, policy="uniform", exclusions=[missing]),
    ]
    mixed = {"pair_criterion": pb.CRITERION_EASY_REFERENCE, "prefilter": 2.0, "explore": 0.4}
    fingerprint, seen = "f" * 64, rng.standard_normal((2, 6, 16)).astype(np.float32)
    beside = rules.bring(wire.raw(pixels, tokens), (*seen, 10.0, -5.0), fingerprint)
    apart = wire.embeddings(one, two, max_similarity=0.3, sub_batch_size=6, explore=0.2, return_losses=True)
    requests += [
        rules.bring(wire.raw(pixels, tokens, **mixed), (*seen, 10.0, -5.0), fingerprint),
        beside.set(criterion=pb.CRITERION_EASY_REFERENCE, prefilter=1.5, filter_ratio=0.5, max_similarity=0.5),
        rules.avoiding(apart, two[0][:2], two[1][:2]),
        rules.with_losses(rng.random(12, np.float32), two, **mixed),
        rules.with_losses(rng.random(12, np.float32), None, criterion=pb.CRITERION_HARD_LEARNER).set(
            pair_criterion=pb.CRITERION_NONE, policy="independent"
        ),
        rules.name(wire.raw(pixels, tokens, prefilter=1.0, return_losses=True), range(6)),
        wire.some_losses(prefilter=3.0, explore=0.5),
    ]
    seeds = [joined(one.SerializeToString() for one in request.messages()) for request in requests]
    return [*seeds, joined([pb.SelectRequest(selection=shared.selection).SerializeToString()])]


def _consistent(data: bytes) -> bytes:
    """Length and checksum of the payload as the messages have it."""
    parts = split(data, 1)
    try:
        messages = [pb.SelectRequest.FromString(part) for part in parts]
    except DecodeError:
        return data
    selection, payload = messages[0].selection, b"".join(one.payload for one in messages)
    if not selection.HasField("shared_memory"):
        selection.payload_bytes = len(payload)
    if selection.HasField("payload_crc32"):
        selection.payload_crc32 = zlib.crc32(payload)
    return joined(one.SerializeToString() for one in messages)


_TEXTS = ("joint", "independent", "uniform", "default", "g", NAME, f"../{NAME}")
TARGETS = (
    Target(
        "select-stream",
        "SelectRequest messages to the models' inputs",
        streams,
        stream_seeds,
        repaired(each([message(pb.SelectRequest, *_TEXTS)], move=0.03), _consistent, 0.85),
        (WireError, SelectorError),
        share=1.2,
    ),
)
