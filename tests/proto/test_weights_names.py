"""What wrappers do to names, and the words for names that do not fit."""

import pytest
from selector_proto.weights.names import adapted, difference, match, misfit, plain, stripped

NEEDED = {"visual.proj": (4, 2), "text.proj": (4, 2), "logit_scale": ()}


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("visual.proj", "visual.proj"),
        ("module.module.visual.proj", "visual.proj"),
        ("_orig_mod.module.visual.proj", "visual.proj"),
        ("visual._orig_mod.blocks.0._orig_mod.proj", "visual.blocks.0.proj"),
        ("_fsdp_wrapped_module.visual.blocks.0._checkpoint_wrapped_module.proj", "visual.blocks.0.proj"),
        ("visual.module.proj", "visual.module.proj"),  # it may be the model's own
        ("submodule.proj_orig_mod.w", "submodule.proj_orig_mod.w"),
    ],
)
def test_what_wrappers_put_into_names(name, published):
    assert stripped(name) == published
    assert plain(name) == published.replace(".module", "")


def test_names_match_whatever_wraps_parts_of_the_model():
    given = {"visual.module.proj", "text._orig_mod.proj", "logit_scale", "n_averaged"}
    assert match(NEEDED, given) == {
        "visual.proj": "visual.module.proj",
        "text.proj": "text._orig_mod.proj",
        "logit_scale": "logit_scale",
    }
    assert match(["a.module.w", "a.w"], ["a.module.w", "a.w"]) == {"a.module.w": "a.module.w", "a.w": "a.w"}
    assert match(["w"], ["module.w", "_orig_mod.w"]) == {}, "nobody knows which"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"clip." + name: None for name in NEEDED}, "below 'clip.': publish with strip_prefix='clip.'"),
        (
            {"visual.proj": None, "text.projection": None, "logit_scale": None},
            "1 of 3 parameters are missing: text.proj; another came instead: text.projection",
        ),
        ({f"vit.block.{i}.w": None for i in range(9)}, "and 6 more; each of those begins with 'vit.block.'"),
        (
            {"vit.a.w": None, "vit.b.w": None},
            "2 others came instead: vit.a.w, vit.b.w; each of those begins with 'vit.'",
        ),
        ({}, "3 of 3 parameters are missing: logit_scale, text.proj, visual.proj; nothing came"),
        ({"visual.proj": None}, "nothing came instead"),
        ({"visual.proj.lora_A.default.weight": None}, "belongs to an adapter that is not merged"),
        (
            {"visual.proj": (4, 2), "text.proj": (4, 3), "logit_scale": ()},
            "text.proj is [4, 3]; the learner needs shape",
        ),
    ],
)
def test_what_does_not_fit_is_said_with_what_came_instead(given, said):
    assert said in misfit(NEEDED, given)


def test_a_prefix_to_add_is_seen():
    needed = {"model.clip." + name: shape for name, shape in NEEDED.items()}
    assert "without 'model.clip.': publish with add_prefix='model.clip.'" in misfit(needed, dict.fromkeys(NEEDED))


def test_a_scalar_may_have_one_dimension():
    assert misfit(NEEDED, NEEDED | {"logit_scale": (1,)}) == ""
    assert misfit(NEEDED, NEEDED | {"logit_scale": (2,)})


def test_hostile_names_are_cut():
    hostile = [f"{'x' * 10_000}{i}" for i in range(5000)]
    assert len(difference(NEEDED, hostile)) < 1000


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("visual.proj.weight", None),
        ("visual.proj.lora_A.default.weight", "visual.proj.weight"),
        ("visual.proj.lora_A", "visual.proj.weight"),  # loralib
        ("words.lora_embedding_B.default", "words.weight"),
        ("head.modules_to_save.default.bias", "head.bias"),
        ("visual.proj.lora_scale", None),
    ],
)
def test_what_an_adapter_changes(name, changes):
    assert adapted(name) == changes
