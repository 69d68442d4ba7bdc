"""Requests with sample ids: what the reference cache saves, and what it never changes."""

import numpy as np
import pytest
from selector_client import Selector
from selector_proto.v1 import selector_pb2 as pb
from selector_tools.export.bundle_writer import export_learner, export_reference
from support.model import POLICIES, TOKENS, TwoTower, embed, plan, samples, source
from support.processes import eventually
from support.wire import Request, error_info, raw, some_losses

from selector_server.encoding.reference_cache import stat
from selector_server.sampling import Criterion, Embedded, Loss, PairScores

PIXELS, IDS = samples(40)
NAMES = [f"shard-1/{n}" for n in range(40)]


def with_ids(ids, rows=slice(None), **fields) -> Request:
    request = raw(PIXELS[rows], IDS[rows], **({"seed": 3} | fields))
    if isinstance(ids[0], str):
        packed = request.pack([name.encode() for name in ids])
        request.selection.sample_ids.strings.CopyFrom(packed)
    else:
        request.selection.sample_ids.integers.CopyFrom(request.add(np.asarray(ids, np.int64)))
    return request


def rounded(bundles, criterion=Criterion.LEARNABILITY):
    """Scores with the reference's embeddings as the cache keeps them."""
    fresh = embed(bundles.reference, PIXELS, IDS)
    kept = Embedded(fresh.image.half().float(), fresh.text.half().float(), fresh.scale, fresh.bias)
    return PairScores(criterion, embed(bundles.learner, PIXELS, IDS), kept)


@pytest.fixture
def cached(sidecar, bundles, tmp_path):
    return sidecar(bundles.flags | {"cache": tmp_path / "cache", "cache_bytes": 64 << 20})


def known(server, request):
    return server.select(request).cached_references


@pytest.mark.parametrize("ids", [list(range(100, 140)), NAMES])
def test_the_second_time_nothing_is_encoded_and_the_picks_are_the_same(cached, bundles, ids):
    first = cached.select(with_ids(ids))
    assert first.cached_references == 0
    assert first.stages.encode_reference > 0
    eventually(lambda: known(cached, with_ids(ids)) == 40)
    second = cached.select(with_ids(ids))
    assert second.stages.encode_reference == 0
    assert second.stages.cache > 0
    assert list(second.indices) == list(first.indices)
    assert list(second.scores) == list(first.scores)
    wanted = bundles.picks(PIXELS, IDS, plan(8, 8, seed=3))
    assert set(first.indices) == set(wanted), "float16 changes no pick here"


def test_ids_of_a_webdataset_that_do_not_match_are_noticed(sidecar, bundles, tmp_path, caplog):
    """The cache has SHARD/KEY, and the trainer sends KEY alone."""
    flags = bundles.flags | {"cache": tmp_path / "cache", "cache_bytes": 64 << 20}
    cold = sidecar(flags)
    assert not cold.info().reference.cached_samples
    eventually(lambda: known(cold, with_ids(NAMES)) == 40)
    cold.stop()
    warm = sidecar(flags)
    about = warm.info().reference
    assert (about.cached_samples, about.cached_id) == (40, "shard-1/0")
    for ids in (NAMES, [name.partition("/")[2] for name in NAMES]):
        assert not caplog.records
        with Selector(warm.address, on_error="raise") as selector:
            for step in range(3):
                selector.select(PIXELS, IDS, ids=[f"{name}" if "/" in name else f"{name}-{step}" for name in ids])
    assert "holds samples such as 'shard-1/0'" in caplog.text


def test_some_known_and_some_new(cached):
    cached.select(with_ids(NAMES[:25], slice(0, 25)))
    eventually(lambda: known(cached, with_ids(NAMES[:25], slice(0, 25))) == 25)
    mixed = cached.select(with_ids(NAMES))
    assert mixed.cached_references == 25
    eventually(lambda: known(cached, with_ids(NAMES)) == 40)
    assert list(cached.select(with_ids(NAMES)).indices) == list(mixed.indices)


def test_integers_and_strings_never_meet(cached):
    numbers = list(range(40))
    cached.select(with_ids(numbers))
    eventually(lambda: known(cached, with_ids(numbers)) == 40)
    assert known(cached, with_ids([str(n) for n in numbers])) == 0


def test_easy_reference_from_the_cache_alone(cached, bundles):
    request = {"criterion": pb.CRITERION_EASY_REFERENCE, "policy": "independent", "draw": pb.DRAW_TOP_K}
    cached.select(with_ids(NAMES, **request))
    eventually(lambda: known(cached, with_ids(NAMES, **request)) == 40)
    reply = cached.select(with_ids(NAMES, **request))
    assert reply.stages.encode_reference == reply.stages.encode_learner == 0
    best = rounded(bundles, Criterion.EASY_REFERENCE).own().argsort(descending=True)[:8]
    assert set(reply.indices) == set(best.tolist())


def test_a_changed_reference_starts_anew_and_both_are_held(sidecar, bundles, tmp_path):
    folder = tmp_path / "cache"
    server = sidecar(bundles.flags | {"cache": folder})
    server.select(with_ids(NAMES))
    server.stop()
    assert [held.entries for held in stat(folder).references] == [40]
    export_reference(source("other", TwoTower(9)), tmp_path / "other")
    server = sidecar(bundles.flags | {"reference": tmp_path / "other", "cache": folder})
    assert known(server, with_ids(NAMES)) == 0
    server.stop()
    assert sorted((held.name, held.entries) for held in stat(folder).references) == [("other", 40), ("tiny-ref", 40)]


def test_ids_without_a_cache_change_nothing(server):
    assert list(server.select(with_ids(NAMES)).indices) == list(server.select(raw(PIXELS, IDS, seed=3)).indices)
    assert known(server, with_ids(NAMES)) == 0


def test_the_client_sends_ids(cached):
    with Selector(cached.address, on_error="raise", filter_ratio=0.8) as selector:
        for ids in (NAMES, np.arange(40), list(range(40))):
            selector.select(PIXELS, IDS, ids=ids)
        eventually(lambda: selector.select(PIXELS, IDS, ids=NAMES).cached_references == 40)
        assert selector.select(PIXELS, IDS, ids=np.arange(40, dtype=np.uint16)).cached_references == 40
        with pytest.raises(ValueError, match="ids has 39 entries"):
            selector.select(PIXELS, IDS, ids=NAMES[:39])
        assert selector.select(PIXELS, IDS, ids=np.array(NAMES)).cached_references == 40
        assert selector.select(PIXELS, IDS, ids=np.arange(40.0)).cached_references == 40
        with pytest.raises(TypeError, match="must be integers or strings"):
            selector.select(PIXELS, IDS, ids=np.arange(40) + 0.5)
        with pytest.raises(ValueError, match="must be below 2\\^63"):
            selector.select(PIXELS, IDS, ids=np.arange(2**63, 2**63 + 40, dtype=np.uint64))


ODD_IDS = [
    ([7, *range(39)], "repeated", 8, "7 more than once"),
    ([*NAMES[:39], NAMES[0]], "repeated", 39, "shard-1/0 more than once"),
    (["", *NAMES[:39]], "missing", 0, r"ids\[0\] is ''"),
    ([*NAMES[:39], "é" * 121], "too_large", 39, r"ids\[39\] has 242 bytes; must have 1 to 240"),
]


@pytest.mark.parametrize(("ids", "reason", "index", "message"), ODD_IDS)
def test_a_sample_with_an_odd_id_is_left_out_or_refused_when_strict(cached, ids, reason, index, message):
    with Selector(cached.address, on_error="raise", filter_ratio=0.8) as selector:
        excluded = selector.select(PIXELS, IDS, ids=ids).excluded
        assert {name: one.indices.tolist() for name, one in excluded.items()} == {reason: [index]}
    with Selector(cached.address, on_error="raise", filter_ratio=0.8, strict=True) as selector:
        with pytest.raises(ValueError, match=message):
            selector.select(PIXELS, IDS, ids=ids)


@pytest.mark.parametrize(
    ("request_of", "message"),
    [
        (lambda: with_ids([7, *range(39)]), r"sample_ids[8] is 7; candidate 0 has the same"),
        (lambda: with_ids(["a", "b", "a", *NAMES[:37]]), "sample_ids[2] is b'a'; candidate 0 has the same"),
        (lambda: with_ids(["", *NAMES[:39]]), "sample_ids.strings is ''; must have 1 to 240 bytes"),
        (lambda: with_ids(["x" * 241, *NAMES[:39]]), "240"),
        (lambda: with_ids(list(range(39))), "sample_ids.integers.shape is [39]; must be [40]"),
        (lambda: _on_losses(), "sample_ids is set; only raw samples are looked up by id"),
    ],
)
def test_ids_that_are_wrong(server, request_of, message):
    error = server.refuse(request_of())
    assert error.code().name in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")
    assert message in error.details()
    assert error_info(error)["field"].startswith("sample_ids")
    assert server.select(some_losses()).indices


def _on_losses():
    request = some_losses()
    request.selection.sample_ids.integers.CopyFrom(request.add(np.arange(20)))
    return request


# Models with inputs and losses of their own


def test_the_models_loss_is_the_default(sidecar, tmp_path):
    learner, reference = TwoTower(1).eval(), TwoTower(2).eval()
    export_learner(source("clip", learner, loss="softmax"), tmp_path / "learner")
    export_reference(source("clip-ref", reference, loss="softmax"), tmp_path / "reference")
    server = sidecar({"learner": tmp_path / "learner", "reference": tmp_path / "reference"})
    by_loss = {}
    for loss in (Loss.SIGMOID, Loss.SOFTMAX):
        embedded = (embed(model, PIXELS, IDS) for model in (learner, reference))
        scores = PairScores(Criterion.LEARNABILITY, *embedded, loss)
        by_loss[loss] = POLICIES["joint"].pick(scores, plan(8, 8, seed=1)).indices.tolist()
    assert by_loss[Loss.SIGMOID] != by_loss[Loss.SOFTMAX]
    assert list(server.select(raw(PIXELS, IDS, seed=1)).indices) == by_loss[Loss.SOFTMAX]
    assert list(server.select(raw(PIXELS, IDS, seed=1, loss=pb.LOSS_SIGMOID)).indices) == by_loss[Loss.SIGMOID]


def test_a_reference_that_takes_longer_texts_than_the_learner(sidecar, bundles, tmp_path):
    """Files and strings fit both; token ids of the learner do not fit a reference with fewer of them."""
    text = bundles_text(TOKENS - 2)
    export_reference(source("short", TwoTower(5), text=text), tmp_path / "short")
    server = sidecar(bundles.flags | {"reference": tmp_path / "short"})
    error = server.refuse(raw(PIXELS, IDS, seed=1))
    assert error.code().name == "FAILED_PRECONDITION"
    assert "the reference takes other inputs than the learner" in error.details()
    assert len(server.select(raw(PIXELS, IDS[:, : TOKENS - 2], seed=1)).indices) == 8


def bundles_text(max_tokens):
    from support.model import TEXT

    return TEXT.model_copy(update={"max_tokens": max_tokens})


def test_tokens_mean_nothing_to_a_reference_with_another_tokenizer(sidecar, bundles, tmp_path):
    other = tmp_path / "tokenizer.json"
    other.write_text(bundles.tokenizer.read_text().replace('"w1"', '"x1"'))
    export_reference(source("other", TwoTower(5), other), tmp_path / "other")
    server = sidecar(bundles.flags | {"reference": tmp_path / "other", "cache": tmp_path / "cache"})
    error = server.refuse(with_ids(NAMES))
    assert error.code().name == "FAILED_PRECONDITION"
    assert "the reference has a tokenizer of its own" in error.details()
    assert stat(tmp_path / "cache").references[0].entries == 0


def test_room_for_decoded_files_is_admitted(sidecar, bundles):
    server = sidecar(bundles.flags | {"max_inflight_bytes": 20_000})
    request = Request()
    request.selection.samples.encoded_images.CopyFrom(request.pack([b""] * 60))
    request.selection.samples.tokens.CopyFrom(request.add(np.ones((60, 2), np.int32)))
    error = server.refuse(request)
    assert error.code().name == "RESOURCE_EXHAUSTED"
    assert "bytes of all requests, decoded is " in error.details()
    assert server.select(some_losses()).indices
