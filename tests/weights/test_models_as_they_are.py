"""Models as trainers have them, compiled, averaged, wrapped and renamed, from a publisher to a real sidecar: served, or
refused at the trainer."""

import copy

import pytest
import redis
import torch
from selector_client import PublishError, WeightPublisher
from selector_proto.v1 import selector_pb2 as pb
from support.model import TwoTower, as_published, plan
from support.processes import eventually
from support.runs import IDS, PIXELS, POLL, chunk_key, fetch, newest
from support.wire import raw
from torch import nn

from selector_server.weights.fetcher import Fetcher, Incomplete


class Wrapped(nn.Module):
    """A trainer's own module, with the model in one of its attributes."""

    def __init__(self, model):
        super().__init__()
        self.clip, self.head = model, nn.Linear(3, 3)


def published(run, model, step=0, **settings):
    """Publishes by a publisher of its own, and waits until it is served."""
    with WeightPublisher(run.url, run.keys.run, **settings) as publisher:
        assert publisher.publish(step, model), publisher.last_error
        assert publisher.flush(20), publisher.last_error
        version = publisher.last_version
    eventually(lambda: run.server.status().serving.version == version, 20, lambda: str(run.server.status()))


def served(run, model):
    assert list(run.select().indices) == run.picks_of(as_published(model))


def compiled_submodule(model):
    model.image = torch.compile(model.image)
    assert "image._orig_mod.weight" in model.state_dict()
    return model


def submodule_of_ddp(model):
    model.text = nn.DataParallel(model.text)
    assert "text.module.weight" in model.state_dict()
    return model


def averaged(model):
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    assert "n_averaged" in average.state_dict()
    return average


def compiled_average_of_compiled_submodules(model):
    return torch.compile(averaged(compiled_submodule(model)))


def old_hugging_face_checkpoint(model):
    return model.state_dict() | {"text_model.embeddings.position_ids": torch.arange(6).unsqueeze(0)}


@pytest.mark.parametrize(
    "wrap",
    [
        compiled_submodule,
        submodule_of_ddp,
        averaged,
        compiled_average_of_compiled_submodules,
        old_hugging_face_checkpoint,
    ],
)
def test_what_wraps_a_model_does_not_count(run, wrap):
    model = TwoTower(100)
    published(run, wrap(copy.deepcopy(model)))
    served(run, model)


@pytest.mark.parametrize(
    "settings",
    [
        {"strip_prefix": "clip"},
        {"strip_prefix": "clip."},
        {"weights": lambda model: model.clip},
        {"weights": {"clip.": ""}},
        {"weights": {"clip.image": "image", "clip.": ""}},
    ],
    ids=["prefix", "prefix with a dot", "function", "beginnings", "two beginnings"],
)
def test_a_model_within_another(run, settings):
    model = TwoTower(101)
    published(run, Wrapped(copy.deepcopy(model)), **settings)
    served(run, model)
    assert set(newest(run.url, run.keys.run).tensors) == set(model.state_dict())


def test_custom_names(run):
    model = TwoTower(102)
    state = {f"my.{name}" if name.startswith("text") else name: value for name, value in model.state_dict().items()}
    rest = {name: name for name in ("image", "words", "logit_scale", "logit_bias")}
    published(run, state, weights={"my.text": "text"} | rest)
    served(run, model)


# Refused at the trainer


def refused(run, model, **settings) -> str:
    """What the publisher says; nothing was sent."""
    before = run.server.status()
    with WeightPublisher(run.url, run.keys.run, **settings) as publisher:
        assert not (publisher.publish(0, model) and publisher.flush(20))
        assert (publisher.refused, publisher.published) == (1, 0)
        reason = publisher.last_error
    after = run.server.status()
    assert (after.newest_version, after.state) == (before.newest_version, before.state)
    return reason


@pytest.mark.parametrize("known", ["by a bundle", "by a report"])
def test_a_model_of_other_names_is_refused_at_the_trainer(run, bundles, known, caplog):
    eventually(lambda: run.redis.keys(f"selector:{{{run.keys.run}}}:weights:report:*"))
    learner = {"learner": bundles.learner_path} if known == "by a bundle" else {}
    reason = refused(run, nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), **learner)
    assert reason.startswith("7 of 7 parameters are missing: image.bias, image.weight, logit_bias and 4 more; 4 others")
    assert "came instead: 1.bias, 1.weight, 0.bias and 1 more" in reason
    assert [r.getMessage() for r in caplog.records if reason in r.getMessage()], "it is logged"
    assert "publish with strip_prefix='clip.'" in refused(run, Wrapped(TwoTower(0)), **learner)
    reason = refused(run, TwoTower(0).state_dict() | {"image.weight": torch.zeros(16, 100)}, **learner)
    assert reason == "parameter image.weight is [16, 100]; the learner needs shape [16, 192]"


def test_a_version_with_nothing_of_the_learner_is_never_shipped(run):
    assert refused(run, {}) == "the model has no tensors"
    assert "no name begins with 'model.'; they are logit_scale, logit_bias" in refused(
        run, TwoTower(0), strip_prefix="model"
    )


def test_an_adapter_in_a_mapping_is_refused(run):
    state = TwoTower(0).state_dict() | {"image.lora_A": torch.zeros(2, 192), "image.lora_B": torch.zeros(16, 2)}
    assert "image.lora_A belongs to an adapter that is not merged; merge it" in refused(run, state)
    # That of a part that no learner needs is the trainer's own business.
    model = TwoTower(103)
    other = {"llm.q.weight": torch.zeros(2, 2), "llm.q.lora_A.default.weight": torch.zeros(1, 2)}
    published(run, model.state_dict() | other, learner=run.models.learner_path)
    served(run, model)


def test_strict_publishers_raise_and_others_do_not(run, bundles):
    with WeightPublisher(run.url, run.keys.run, on_error="raise", learner=bundles.learner_path) as publisher:
        with pytest.raises(PublishError, match="7 of 7 parameters are missing"):
            publisher.publish(0, {"w": torch.zeros(2)})
        assert publisher.publish(1, TwoTower(104)), "it was told"


def test_two_tensors_of_one_name_are_counted(run):
    with WeightPublisher(run.url, run.keys.run) as publisher:
        assert not publisher.publish(0, {"a._orig_mod.w": torch.zeros(2), "a.w": torch.zeros(2)})
        assert "is a second tensor named a.w" in publisher.last_error


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"weights": {"a": "b"}, "strip_prefix": "c"}, "leave strip_prefix and add_prefix out"),
        ({"weights": 3}, "weights must be a function"),
        ({"learner": "/nowhere"}, "learner is /nowhere; must be the folder of a learner's bundle"),
    ],
)
def test_mistakes_of_the_caller(redis_url, settings, named):
    with pytest.raises(ValueError, match=named):
        WeightPublisher(redis_url, "mistakes", **settings)


# A frozen tower


def freeze(model, *parts):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(parts))
    return model


def test_a_frozen_tower_travels_once(run):
    model = freeze(TwoTower(105), "image")
    with WeightPublisher(run.url, run.keys.run, skip_frozen=True) as publisher:

        def publish() -> bytes:
            """Publishes, and returns the manifest of what is then served."""
            assert publisher.publish(0, model)
            assert publisher.flush(20), publisher.last_error
            version = publisher.last_version
            eventually(lambda: run.server.status().serving.version == version, 20, lambda: str(run.server.status()))
            served(run, model)
            assert set(fetch(run.url, run.keys.run, version).tensors) == set(model.state_dict())
            return run.redis.get(run.keys.manifest(version))

        assert b"base_version" not in publish()
        for seed in range(106, 112):  # more than are kept, so that the base must be
            with torch.no_grad():
                model.text.weight.copy_(TwoTower(seed).text.weight)
                model.words.weight.copy_(TwoTower(seed).words.weight)
            assert b"base_version" in publish()
        size = len(run.redis.get(chunk_key(run.redis, run.keys, publisher.last_version, 0)))
        assert size < 16 * 192 * 2, "the image tower is not in it"
        with torch.no_grad():
            model.image.weight.copy_(TwoTower(113).image.weight)  # a checkpoint was loaded, say
        assert b"base_version" in publish(), "the bias alone is still the same"
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        assert b"base_version" not in publish(), "whole again"


def test_whoever_fetches_puts_a_frozen_tower_and_the_rest_together(redis_url, run_name):
    model = freeze(TwoTower(114), "image")
    with WeightPublisher(redis_url, run_name, dtype="fp32", skip_frozen=True) as publisher:
        for seed in (115, 116):
            with torch.no_grad():
                model.text.weight.copy_(TwoTower(seed).text.weight)
            assert publisher.publish(0, model)
            assert publisher.flush()
    found = fetch(redis_url, run_name, 2)
    assert found.manifest.base_version == 1
    wanted = {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}
    assert {name: bytes(view.data) for name, view in found.tensors.items()} == wanted
    small = Fetcher(redis_url, run_name, found.manifest.payload_bytes)
    with pytest.raises(Incomplete, match="version 2: payload_bytes is"):  # of the version that it rests on
        small.fetch(2, small.manifest(2))
    small.close()


def test_a_sidecar_that_comes_later_composes_and_a_lost_base_is_published_again(sidecar, bundles, redis_url, run_name):
    client = redis.Redis.from_url(redis_url)
    model = freeze(TwoTower(120), "image", "words")
    with WeightPublisher(redis_url, run_name, skip_frozen=True) as publisher:
        for seed in (121, 122):
            with torch.no_grad():
                model.text.weight.copy_(TwoTower(seed).text.weight)
            assert publisher.publish(0, model)
            assert publisher.flush()
        server = sidecar(bundles.flags | POLL | {"redis": redis_url, "run": run_name})
        eventually(lambda: server.status().serving.version == 2, 20, lambda: str(server.status()))
        wanted = bundles.picks(PIXELS, IDS, plan(12, seed=3), learner=as_published(model))
        assert list(server.select(raw(PIXELS, IDS, seed=3)).indices) == wanted
        for key in client.scan_iter(f"selector:{{{run_name}}}:weights:*"):
            client.delete(key)
        publisher._next_beat = 0.0
        with publisher._changed:
            publisher._changed.notify_all()
        eventually(lambda: publisher._base is None, 20)
        assert publisher.publish(0, model)
        assert publisher.flush()
        eventually(lambda: server.status().state == pb.SYNC_STATE_CURRENT, 20, lambda: str(server.status()))
        assert newest(redis_url, run_name).manifest.base_version == 0
