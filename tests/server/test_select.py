"""Select end to end against a real server: every kind of candidate, checked against torch and the sampler."""

import io
import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from selector_proto.v1 import selector_pb2 as pb
from support.model import POLICIES, SIDE, TOKENS, WORDS, embed, plan, samples
from support.wire import (
    BFLOAT16,
    Request,
    bfloat16_bits,
    embeddings,
    losses,
    raw,
    some_embeddings,
    some_losses,
)

from selector_server.encoding import bundle
from selector_server.encoding.device import Device
from selector_server.encoding.model import Model
from selector_server.sampling import Criterion, Draw, Embedded, PairScores, ScalarScores

CRITERIA = {
    pb.CRITERION_LEARNABILITY: Criterion.LEARNABILITY,
    pb.CRITERION_EASY_REFERENCE: Criterion.EASY_REFERENCE,
    pb.CRITERION_HARD_LEARNER: Criterion.HARD_LEARNER,
}
PIXELS, IDS = samples(120)


def torch_scores(learner, reference, criterion=Criterion.LEARNABILITY):
    models = [Embedded.normalise(*map(torch.from_numpy, (i, t)), s, b) for i, t, s, b in (learner, reference)]
    return PairScores(criterion, *models)


# Raw samples


def test_defaults_are_joint_with_a_fifth_picked_in_16_chunks_at_gain_100(server, bundles):
    reply = server.select(raw(PIXELS, IDS, seed=5))
    assert reply.policy == "joint"
    assert reply.sub_batch_size == len(reply.indices) == len(reply.scores) == 24
    assert list(reply.chunk_sizes) == [2] * 8 + [1] * 8
    assert reply.seed == 5
    assert list(reply.indices) == bundles.picks(PIXELS, IDS, plan(24, 16, gain=100.0, seed=5))


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("policy", ["joint", "independent"])
@pytest.mark.parametrize("draw", [pb.DRAW_SAMPLE, pb.DRAW_TOP_K])
def test_picks_are_those_of_torch_and_the_sampler(server, bundles, criterion, policy, draw):
    request = raw(PIXELS, IDS, seed=9, criterion=criterion, policy=policy, draw=draw, gain=3.0, chunks=5)
    reply = server.select(request.set(sub_batch_size=31))
    wanted = plan(31, 5, gain=3.0, seed=9, draw=Draw.TOP_K if draw == pb.DRAW_TOP_K else Draw.SAMPLE)
    scores = bundles.scores(PIXELS, IDS, CRITERIA[criterion])
    picks = POLICIES[policy].pick(scores, wanted)
    assert list(reply.indices) == picks.indices.tolist()
    np.testing.assert_allclose(reply.scores, picks.scores, rtol=1e-4, atol=1e-4)
    assert reply.objective == pytest.approx(picks.total / 31, rel=1e-4)
    assert reply.objective_uniform == pytest.approx(scores.uniform_total(31) / 31, rel=1e-4)
    assert reply.HasField("weights") == (criterion != pb.CRITERION_EASY_REFERENCE), "the learner scored"


def test_uniform_scores_nothing_and_is_deterministic(server):
    replies = [server.select(raw(PIXELS, IDS, policy="uniform", seed=seed)) for seed in (3, 3, 4)]
    first, again, other = (list(reply.indices) for reply in replies)
    assert first == again
    assert first != other
    assert len(set(first)) == 24
    assert not replies[0].scores
    for field in ("objective", "objective_uniform", "weights"):
        assert not replies[0].HasField(field), field


def test_same_seed_same_picks_and_without_one_the_reply_names_the_seed(server):
    unseeded = [server.select(raw(PIXELS, IDS, gain=0.1)) for _ in range(2)]
    assert unseeded[0].seed != unseeded[1].seed
    assert list(unseeded[0].indices) != list(unseeded[1].indices)
    again = server.select(raw(PIXELS, IDS, gain=0.1, seed=unseeded[0].seed))
    assert list(again.indices) == list(unseeded[0].indices)


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1])
def test_extreme_seeds(server, bundles, seed):
    reply = server.select(raw(PIXELS, IDS, seed=seed))
    assert reply.seed == seed
    assert list(reply.indices) == bundles.picks(PIXELS, IDS, plan(24, seed=seed))


def test_short_rows_of_tokens_are_padded_and_both_widths_are_taken(server, bundles):
    short = IDS[:, :2].astype(np.int64)
    reply = server.select(raw(PIXELS, short, seed=1))
    assert list(reply.indices) == bundles.picks(PIXELS, short, plan(24, seed=1))
    assert list(reply.indices) != bundles.picks(PIXELS, IDS, plan(24, seed=1))


@pytest.mark.parametrize("micro_batch", [1, 7, 120])
def test_micro_batches_change_nothing(bundles, micro_batch):
    model = Model(bundle.load(bundles.learner_path, "learner"), Device("cpu"), micro_batch)
    seen = model.encode(PIXELS, IDS.astype(np.int64), model.bundled_weights())
    wanted = embed(bundles.learner, PIXELS, IDS)
    torch.testing.assert_close(seen.image, wanted.image, rtol=0, atol=1e-6)
    torch.testing.assert_close(seen.text, wanted.text, rtol=0, atol=1e-6)
    assert (seen.scale, seen.bias) == (pytest.approx(10.0), -10.0)


def image_file(pixels, kind, size=(SIDE, SIDE)):
    out = io.BytesIO()
    image = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
    image.save(out, kind, **({"lossless": True} if kind == "WEBP" else {"quality": 95}))
    return out.getvalue()


def as_encoded(files, texts, **fields) -> Request:
    request = Request()
    request.selection.samples.encoded_images.CopyFrom(request.pack(files))
    request.selection.samples.strings.CopyFrom(request.pack([text.encode() for text in texts]))
    return request.set(**fields)


def sentences(ids):
    return [" ".join(WORDS[i] for i in row) for row in ids]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_files_and_strings_give_the_picks_of_their_pixels_and_tokens(server, bundles, kind):
    files = [image_file(image, kind) for image in PIXELS]
    reply = server.select(as_encoded(files, sentences(IDS), seed=4))
    assert list(reply.indices) == bundles.picks(PIXELS, IDS, plan(24, seed=4))


def test_mixed_formats_and_sizes_are_decoded_and_resized(server, bundles):
    """Files of another size equal what Pillow decodes and resizes bicubically."""
    kinds = itertools.cycle(["JPEG", "PNG", "WEBP"])
    files = [image_file(image, kind, (13, 24)) for image, kind in zip(PIXELS, kinds, strict=False)]
    pixels = np.stack(
        [np.asarray(Image.open(io.BytesIO(file)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for file in files]
    )
    reply = server.select(as_encoded(files, sentences(IDS), seed=6))
    assert list(reply.indices) == bundles.picks(pixels, IDS, plan(24, seed=6))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_images_of_every_colour_mode_are_taken(server, mode):
    image = Image.fromarray(PIXELS[0])
    image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
    out = io.BytesIO()
    image.save(out, "JPEG" if mode == "CMYK" else "PNG")
    assert len(server.select(as_encoded([out.getvalue()] * 5, sentences(IDS[:5]))).indices) == 1


def test_long_empty_and_unknown_texts_are_cut_padded_and_mapped(server, bundles):
    texts = ["w3 " * 50, "", "unheard-of w5", *sentences(IDS[3:])]
    ids = IDS.copy()
    ids[0], ids[1] = 3, 0
    # Whitespace splits "unheard-of" into three pieces, all unknown.
    ids[2] = [0, 0, 0, 5, 0, 0]
    files = [image_file(image, "PNG") for image in PIXELS]
    reply = server.select(as_encoded(files, texts, seed=8, sub_batch_size=100))
    assert list(reply.indices) == bundles.picks(PIXELS, ids, plan(100, seed=8))


# Embeddings


@pytest.mark.parametrize("criterion", CRITERIA)
def test_float32_embeddings(plain_server, criterion):
    learner, reference = some_embeddings()
    reply = plain_server.select(embeddings(learner, reference, criterion=criterion, seed=3))
    picks = POLICIES["joint"].pick(torch_scores(learner, reference, CRITERIA[criterion]), plan(8, seed=3))
    assert list(reply.indices) == picks.indices.tolist()
    assert reply.objective == pytest.approx(picks.total / 8, rel=1e-4)
    assert not reply.HasField("weights"), "the server's learner did not score"


@pytest.mark.parametrize(("dtype", "torch_dtype"), [(None, torch.float16), (BFLOAT16, torch.bfloat16)])
def test_half_precision_embeddings(plain_server, dtype, torch_dtype):
    models = some_embeddings()
    rounded = [
        (*(torch.from_numpy(z).to(torch_dtype).float().numpy() for z in (image, text)), scale, bias)
        for image, text, scale, bias in models
    ]
    convert = bfloat16_bits if dtype else (lambda z: z.astype(np.float16))
    sent = [(convert(image), convert(text), scale, bias) for image, text, scale, bias in models]
    reply = plain_server.select(embeddings(*sent, dtype=dtype, seed=3, sub_batch_size=30))
    want = POLICIES["joint"].pick(torch_scores(*rounded), plan(30, seed=3))
    assert list(reply.indices) == want.indices.tolist()


def test_only_the_models_that_the_criterion_needs_have_to_be_there(plain_server):
    learner, reference = some_embeddings()
    hard = plain_server.select(embeddings(learner, None, criterion=pb.CRITERION_HARD_LEARNER, seed=1))
    both = plain_server.select(embeddings(learner, reference, criterion=pb.CRITERION_HARD_LEARNER, seed=1))
    assert list(hard.indices) == list(both.indices)
    easy = plain_server.select(embeddings(None, reference, criterion=pb.CRITERION_EASY_REFERENCE, seed=1))
    assert list(easy.indices) != list(hard.indices)


def test_models_may_have_different_widths(plain_server):
    learner, _ = some_embeddings(width=8)
    _, reference = some_embeddings(width=24)
    reply = plain_server.select(embeddings(learner, reference, seed=1))
    picks = POLICIES["joint"].pick(torch_scores(learner, reference), plan(8, seed=1))
    assert list(reply.indices) == picks.indices.tolist()


def test_the_objective_beats_uniform_where_pairs_can_be_learned(plain_server):
    """Half of the pairs match for the reference and not yet for the learner; the other half for neither."""
    rng = np.random.default_rng(0)
    image, noise, unlearned = rng.standard_normal((3, 200, 32)).astype(np.float32)
    matched = np.where(np.arange(200)[:, None] < 100, image + 0.1 * noise, noise)
    learner, reference = (image, unlearned, 10.0, -5.0), (image, matched, 10.0, -5.0)
    reply = plain_server.select(embeddings(learner, reference, seed=0, sub_batch_size=40))
    assert reply.objective > reply.objective_uniform + 1.0
    assert sum(index < 100 for index in reply.indices) >= 38
    flat = plain_server.select(embeddings(learner, learner, seed=0, sub_batch_size=40))
    assert flat.objective == pytest.approx(flat.objective_uniform, abs=1e-6), "nothing to be learned"


@pytest.mark.parametrize("criterion", list(CRITERIA.values()))
def test_no_gain_and_no_scores_make_the_sampler_repeat_a_pick(criterion):
    """The server refuses such gains and scales; the sampler must not rely on it."""
    learner, reference = some_embeddings()
    huge = [(image, text, 1e30, bias) for image, text, _, bias in (learner, reference)]
    for models in ((learner, reference), huge):
        wanted = replace(plan(40, 20), gain=1e308)
        picks = POLICIES["joint"].pick(torch_scores(*models, criterion), wanted).indices.tolist()
        assert sorted(picks) == list(range(40))


# Losses


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_scalar_losses(plain_server, criterion, dtype):
    learner, reference = np.random.default_rng(1).random((2, 50)).astype(dtype)
    reply = plain_server.select(losses(learner, reference, criterion=criterion, seed=2, gain=7.0))
    of_learner, of_reference = CRITERIA[criterion].value
    values = torch.from_numpy(of_learner * learner.astype(np.float64) + of_reference * reference.astype(np.float64))
    picks = POLICIES["independent"].pick(ScalarScores(values), plan(10, gain=7.0, seed=2))
    assert list(reply.indices) == picks.indices.tolist()
    np.testing.assert_allclose(reply.scores, values[picks.indices], rtol=1e-6)
    assert reply.objective == pytest.approx(float(values[picks.indices].mean()))
    assert reply.objective_uniform == pytest.approx(float(values.mean()))


def test_top_k_of_losses_is_a_plain_sort(plain_server):
    learner = np.array([0.1, 9, 3, 7, 7, 0], np.float32)
    reply = plain_server.select(
        losses(learner, criterion=pb.CRITERION_HARD_LEARNER, draw=pb.DRAW_TOP_K, sub_batch_size=4)
    )
    assert list(reply.indices) == [1, 3, 4, 2]
    assert list(reply.scores) == [9, 7, 7, 3]


# The stream, and what the reply says


def test_a_payload_of_many_messages(plain_server):
    """Over 4 MiB in all, in messages of odd sizes that cut through tensors."""
    learner, reference = some_embeddings(count=3000, width=120)
    request = embeddings(learner, reference, seed=1, chunks=2).with_crc()
    request.cut = 999_983
    assert len(request.payload) > 5 << 20
    reply = plain_server.select(request)
    picks = POLICIES["joint"].pick(torch_scores(learner, reference), plan(600, 2, seed=1))
    wanted = picks.indices.tolist()
    assert len(set(reply.indices) & set(wanted)) >= 597, "float32 strips may swap a near tie, no more"
    assert len(set(reply.indices)) == 600


def test_payload_in_messages_after_an_empty_first_one(plain_server):
    request = some_losses()
    first, *_ = request.messages()
    whole = [pb.SelectRequest(selection=first.selection), pb.SelectRequest(), pb.SelectRequest(payload=first.payload)]
    reply = plain_server.stub.Select(iter(whole), timeout=20)
    assert list(reply.indices) == list(plain_server.select(request).indices)


def test_a_correct_checksum_is_accepted_and_a_wrong_one_refused(plain_server):
    plain_server.select(some_losses().with_crc())
    request = some_losses().with_crc()
    request.payload = request.payload[:-1] + bytes([request.payload[-1] ^ 1])
    error = plain_server.refuse(request)
    assert error.code().name == "INVALID_ARGUMENT"
    assert f"payload_crc32 is {request.selection.payload_crc32}; the payload received has" in error.details()


@pytest.mark.parametrize("request_id", ["", "step-17/rank-3", "ü" * 128])
def test_the_request_id_is_echoed(plain_server, request_id):
    assert plain_server.select(some_losses(request_id=request_id)).request_id == request_id


def test_stages_are_measured(server):
    request = raw(PIXELS, IDS)
    stages = server.select(request).stages
    for stage in ("receive", "queue", "preprocess", "encode_learner", "encode_reference", "sample"):
        assert 0 < getattr(stages, stage) < 30, stage
    stages = server.select(raw(PIXELS, IDS, criterion=pb.CRITERION_EASY_REFERENCE)).stages
    assert stages.encode_learner == 0 < stages.encode_reference


def test_bundled_weights_are_version_0_and_lag_counts_from_step_0(server):
    weights = server.select(raw(PIXELS, IDS, trainer_step=12)).weights
    assert (weights.version, weights.trainer_step, weights.lag_steps) == (0, 0, 12)
    assert 0 < weights.age_seconds < time.time() - server.started
    assert not server.select(raw(PIXELS, IDS)).weights.HasField("lag_steps")


@pytest.mark.parametrize(
    ("size", "fields", "sizes"),
    [
        (20, {}, [1, 1, 1, 1]),
        (20, {"filter_ratio": 0.5}, [1] * 10),
        (20, {"filter_ratio": 0.5, "chunks": 4}, [3, 3, 2, 2]),
        (20, {"sub_batch_size": 20, "chunks": 1}, [20]),
        (1, {"sub_batch_size": 1}, [1]),
        (640, {}, [8] * 16),
        (20, {"filter_ratio": 0.95}, [1]),
    ],
)
def test_sizes_of_sub_batch_and_chunks(plain_server, size, fields, sizes):
    reply = plain_server.select(embeddings(*some_embeddings(size), **fields))
    assert list(reply.chunk_sizes) == sizes
    assert reply.sub_batch_size == len(set(reply.indices)) == sum(sizes)
    assert all(index < size for index in reply.indices)


@pytest.mark.parametrize("world_size", [0, 1])
def test_a_world_of_one_rank_is_no_group(plain_server, world_size):
    assert len(plain_server.select(some_losses(world_size=world_size)).indices) == 4


def test_the_server_tells_its_limits_models_and_settings(server, bundles):
    info = server.info()
    assert info.limits.max_message_bytes == 4 << 20
    assert info.limits.max_pending_requests == 16
    assert list(info.policies) == ["independent", "joint", "uniform"]
    assert list(info.criteria) == list(CRITERIA)
    assert list(info.losses) == [code for code in pb.Loss.values() if code != pb.LOSS_UNSPECIFIED]
    assert (info.learner.name, info.reference.name, info.learner.width) == ("tiny", "tiny-ref", 16)
    assert (info.learner.image.height, info.learner.image.width, info.learner.image.channels) == (SIDE, SIDE, 3)
    assert (info.learner.text.max_tokens, info.learner.text.vocabulary) == (TOKENS, len(WORDS))
    assert info.learner.text.has_tokenizer
    assert list(info.learner.providers) == ["CPUExecutionProvider"]
    assert len(info.learner.fingerprint) == 64 != info.reference.fingerprint
    assert (info.device, info.run) == ("cpu", "")
    assert {"torch", "onnxruntime", "protobuf", "grpcio"} <= info.versions.keys()
    assert info.config["learner"] == str(bundles.learner_path)
    assert info.config["threads"] == "2"
