"""Models of the libraries that people train with, LoRA on them included, from a publisher to a real sidecar."""

import copy

import numpy as np
import pytest
import torch
from selector_client import WeightPublisher
from selector_client.publishing.adapters import Merged, Unmerged, merged_state
from selector_tools.export.torchvision import make_importable
from support.exports import export, randomise
from support.model import TwoTower, as_published
from support.processes import eventually
from support.runs import POLL, Run, newest
from support.wire import raw
from torch import nn

make_importable()  # transformers imports torchvision
import peft  # noqa: E402
import transformers  # noqa: E402

RUN = "served-models"
TEXT = {"vocab_size": 100, "max_position_embeddings": 7, "eos_token_id": 99, "bos_token_id": 98, "pad_token_id": 99}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def run(start_sidecars, bundles, redis_url):
    with start_sidecars() as start:
        server = start(bundles.flags | POLL | {"redis": redis_url, "run": RUN})
        one = Run(RUN, redis_url, server, bundles)
        yield one
        one.publisher.close()


def lora(model, **settings):
    """The model with an adapter that has been trained."""
    targets = {"target_modules": ["image", "words", "text"]}
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=6, **targets | settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    return adapted


def merged(adapted) -> TwoTower:
    """As peft itself merges it."""
    return copy.deepcopy(adapted).merge_and_unload()


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"lora_bias": True, "target_modules": ["image", "text"]}]
)
def test_lora_is_merged_for_publishing_and_the_trainers_model_stays(run, settings):
    adapted = lora(TwoTower(300), **settings)
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    run.take_over()
    run.publish(adapted)
    assert list(run.select().indices) == run.picks_of(as_published(merged(adapted)))
    assert set(newest(run.url, RUN).tensors) == set(TwoTower(0).state_dict())
    after = adapted.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


class Inside(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.clip = model


@pytest.mark.parametrize(
    ("wrap", "settings"),
    [
        (torch.compile, {}),
        (nn.DataParallel, {}),
        (Inside, {"strip_prefix": "clip"}),
        (lambda model: Inside(torch.compile(model)), {"weights": lambda model: model.clip}),
    ],
)
def test_lora_within_wrappers(run, wrap, settings):
    adapted = lora(TwoTower(301))
    with WeightPublisher(run.url, RUN, **settings) as publisher:
        assert publisher.publish(0, wrap(adapted)), publisher.last_error
        assert publisher.flush()
        version = publisher.last_version
    eventually(lambda: run.server.status().serving.version == version, 20, lambda: str(run.server.status()))
    assert list(run.select().indices) == run.picks_of(as_published(merged(adapted)))


def test_the_adapters_that_are_in_use_are_merged(run):
    adapted = lora(TwoTower(302))
    run.take_over()
    adapted.merge_adapter()
    run.publish(adapted)
    assert list(run.select().indices) == run.picks_of(as_published(merged(adapted)))
    adapted.unmerge_adapter()
    with adapted.disable_adapter():
        run.publish(adapted)
    assert list(run.select().indices) == run.picks_of(as_published(TwoTower(302)))


def test_modules_that_are_trained_whole_beside_the_adapter(run):
    config = peft.LoraConfig(r=2, target_modules=["image"], modules_to_save=["text"])
    adapted = peft.get_peft_model(TwoTower(303), config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3)
    run.take_over()
    run.publish(adapted)
    assert list(run.select().indices) == run.picks_of(as_published(merged(adapted)))


def test_an_adapter_that_transformers_put_in_itself():
    """`add_adapter` leaves the model as it is called and puts layers into it."""
    model = clip()
    wanted = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]))
    ours = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in wanted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
                ours[name.removeprefix("base_model.model.")].copy_(parameter)
    for name, value in wanted.merge_and_unload().state_dict().items():
        found = merged_state(model)[name]
        torch.testing.assert_close(found.whole() if isinstance(found, Merged) else found, value)


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "convolutions", "attention"])
def test_other_adapters_that_add_to_a_weight(kind):
    model = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 2), "attn": nn.MultiheadAttention(8, 2), "proj": nn.Linear(8, 4)})
    config = {
        "LoHa": lambda: peft.LoHaConfig(r=2, target_modules=["proj", "conv"]),
        "LoKr": lambda: peft.LoKrConfig(r=2, target_modules=["proj", "conv"]),
        "convolutions": lambda: peft.LoraConfig(r=2, target_modules=["conv"]),
        "attention": lambda: peft.LoraConfig(r=2, target_modules=["attn"]),
    }[kind]()
    model.prepare_inputs_for_generation = None
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3)
    state = merged_state(adapted)
    assert any(isinstance(value, Merged) for value in state.values())
    found = {name: value.whole() if isinstance(value, Merged) else value.clone() for name, value in state.items()}
    wanted = adapted.merge_and_unload().state_dict()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)


def test_attention_is_published_as_it_computes():
    """peft's attention adds the adapter of `out_proj` twice, in what it computes and in what it merges."""
    attention = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2)})
    attention.prepare_inputs_for_generation = None
    adapted = peft.get_peft_model(attention, peft.LoraConfig(r=2, target_modules=["attn"])).eval()
    samples, plain = torch.randn(5, 1, 8), nn.MultiheadAttention(8, 2).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3)
        wanted = adapted.base_model.model["attn"](samples, samples, samples)[0]
        state = merged_state(Inside(adapted))
        assert set(state) == {f"clip.attn.{name}" for name in plain.state_dict()}
        for name, parameter in plain.named_parameters():
            value = state[f"clip.attn.{name}"]
            parameter.copy_(value.whole() if isinstance(value, Merged) else value)
        torch.testing.assert_close(plain(samples, samples, samples)[0], wanted)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (lambda: peft.LoraConfig(r=2, target_modules=["image"], use_dora=True), "a variant of LoRA (Dora"),
        (lambda: peft.IA3Config(target_modules=["image"], feedforward_modules=[]), "another kind than LoRA"),
        (lambda: peft.OFTConfig(r=0, oft_block_size=4, target_modules=["image"]), "another kind than LoRA"),
    ],
    ids=["DoRA", "IA3", "OFT"],
)
def test_an_adapter_that_cannot_be_merged_is_refused_at_the_trainer(run, config, said):
    run.take_over()
    adapted = peft.get_peft_model(TwoTower(304), config())
    before = run.server.status().newest_version
    assert not run.publisher.publish(0, adapted)
    assert said in run.publisher.last_error
    assert "base_model.model.image has" in run.publisher.last_error
    assert run.publisher.refused == 1
    assert run.server.status().newest_version == before


def test_the_state_of_an_unmerged_adapter_is_refused_at_the_trainer(run):
    run.take_over()
    adapted = lora(TwoTower(305))
    for state in (adapted.state_dict(), peft.get_peft_model_state_dict(adapted)):
        assert not run.publisher.publish(0, state)
        assert "belongs to an adapter that is not merged" in run.publisher.last_error


def test_a_quantised_base_is_refused():
    adapted = lora(TwoTower(306))
    adapted.base_model.model.image.base_layer.weight = nn.Parameter(
        torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False
    )
    found = merged_state(adapted)["image.weight"]
    assert isinstance(found, Unmerged)
    assert "quantised" in found.reason


# A CLIP of transformers


def clip():
    vision = SIZES | {"image_size": 32, "patch_size": 16}
    config = transformers.CLIPConfig(text_config=TEXT | SIZES, vision_config=vision, projection_dim=24)
    return transformers.CLIPModel(config)


def pooled(features):
    return features if isinstance(features, torch.Tensor) else features.pooler_output


def picks(server, pixels, tokens) -> list[int]:
    return list(
        server.select(raw(pixels, tokens, seed=3, criterion="CRITERION_HARD_LEARNER", sub_batch_size=8)).indices
    )


def test_a_clip_of_transformers_is_served_trained_averaged_or_with_lora(sidecar, redis_url, run_name, tmp_path):
    source = clip()
    source.config.save_pretrained(tmp_path / "model")
    assert export("--transformers", tmp_path / "model", "--out", tmp_path / "B") == 0
    server = sidecar(POLL | {"learner": tmp_path / "B", "redis": redis_url, "run": run_name})
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    tokens = rng.integers(1, 98, (40, 7), dtype=np.int32)
    tokens[:, 5:] = 99
    model = randomise(clip(), seed=3)
    average = torch.optim.swa_utils.AveragedModel(randomise(clip(), seed=4))
    average.update_parameters(model)
    old = model.state_dict() | {"text_model.embeddings.position_ids": torch.arange(7)[None]}
    tuned = peft.get_peft_model(clip(), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "fc1"]))
    randomise(tuned, seed=5)
    answers = []
    with WeightPublisher(redis_url, run_name, dtype="fp32", learner=tmp_path / "B") as publisher:
        for published in (model, average, old, tuned):
            assert publisher.publish(0, published), publisher.last_error
            assert publisher.flush(20), publisher.last_error
            version = publisher.last_version
            eventually(lambda: server.status().serving.version == version, 20, lambda: str(server.status()))  # noqa: B023
            answers.append(picks(server, pixels, tokens))
            plain = copy.deepcopy(tuned).merge_and_unload() if published is tuned else None
            if plain is not None:
                assert publisher.publish(0, plain)
                assert publisher.flush(20)
                version = publisher.last_version
                eventually(lambda: server.status().serving.version == version)  # noqa: B023
                assert picks(server, pixels, tokens) == answers[-1]
    assert answers[0] == answers[1] == answers[2] != answers[3]
