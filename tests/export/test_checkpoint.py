"""Checkpoints: what they are wrapped in, and what is refused."""

import argparse
import json
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from selector_tools.export.checkpoint import Checkpoint, load, read
from support.checkpoints import assert_same, module
from torch import nn

from selector_server.errors import SetupError

PREFIXES = [
    "",
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.",
    "clip._orig_mod.",
    "a.b.c.",
]


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "module", None])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_wrappers_and_prefixes_come_off(wrapper, prefix, tmp_path):
    wanted = module(1).state_dict()
    state = {prefix + name: value for name, value in wanted.items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "c.pt")
    target = module(2)
    assert load(target, Checkpoint(tmp_path / "c.pt")) == ""
    assert_same(target.state_dict(), wanted)


class Nested(nn.Module):
    """Has a submodule that is called as torch's wrappers call theirs."""

    def __init__(self, seed, wrap=lambda part: part):
        super().__init__()
        torch.manual_seed(seed)
        self.module = wrap(nn.Linear(3, 4))
        self.blocks = nn.Sequential(wrap(nn.Linear(4, 4)), nn.Linear(4, 4))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model,
        torch.compile,
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        lambda model: nn.DataParallel(torch.compile(model)),
    ],
    ids=["plain", "compiled", "parallel", "averaged", "both"],
)
@pytest.mark.parametrize("inner", [lambda part: part, torch.compile], ids=["plain blocks", "compiled blocks"])
def test_a_model_that_was_wrapped_as_a_whole_or_in_parts(wrap, inner, tmp_path):
    torch.save(wrap(Nested(1, inner)).state_dict(), tmp_path / "c.pt")
    target = Nested(2)
    load(target, Checkpoint(tmp_path / "c.pt"))
    assert_same(target.state_dict(), Nested(1).state_dict())


def test_a_model_that_is_a_part_of_what_was_trained(tmp_path):
    state = {f"clip.{name}": value for name, value in module(1).state_dict().items()}
    torch.save({"state_dict": state | {"loss.scale": torch.ones(1)}}, tmp_path / "c.ckpt")
    target = module(2)
    assert load(target, Checkpoint(tmp_path / "c.ckpt")) == "taking what is called clip.*, and none of 1 other entries"
    assert_same(target.state_dict(), module(1).state_dict())
    twice = state | {f"ema.{name}": value for name, value in module(1).state_dict().items()}
    torch.save({"state_dict": twice}, tmp_path / "c.ckpt")
    with pytest.raises(
        SetupError, match=r"holds the model more than once, as clip\., ema\.; --strip-prefix says which"
    ):
        load(module(2), Checkpoint(tmp_path / "c.ckpt"))
    del state["clip.0.weight"]
    torch.save({"state_dict": state}, tmp_path / "c.ckpt")
    with pytest.raises(SetupError, match=r"does not fit the model: missing 0\.weight$"):
        load(module(2), Checkpoint(tmp_path / "c.ckpt"))


@pytest.mark.parametrize("prefix", ["model.clip", "model.clip.", "module.model.clip"])
def test_what_a_prefix_names_is_taken_and_the_rest_is_left(prefix, tmp_path):
    """As a LightningModule has it: its model, and an average of it beside."""
    wanted = module(1).state_dict()
    state = {f"model.clip.{name}": value for name, value in wanted.items()}
    state |= {f"model.ema.{name}": value for name, value in module(3).state_dict().items()}
    state |= {"model.clipping": torch.ones(1)}
    for wrapper in ("", "module.", "_orig_mod."):
        torch.save({"state_dict": {wrapper + name: value for name, value in state.items()}}, tmp_path / "c.ckpt")
        target = module(2)
        note = load(target, Checkpoint(tmp_path / "c.ckpt", strip_prefix=prefix))
        assert note == f"taking what is called {prefix}, and none of {len(wanted) + 1} other entries"
        assert_same(target.state_dict(), wanted)


def test_a_prefix_is_put_before_all_names_or_in_the_place_of_another(tmp_path):
    class Trained(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.clip, self.more = module(seed), nn.Module()

    wanted = Trained(1).state_dict()
    for before, prefixes in (("", {}), ("old.name.", {"strip_prefix": "old.name"})):
        torch.save({before + name.removeprefix("clip."): value for name, value in wanted.items()}, tmp_path / "c.pt")
        target = Trained(2)
        assert load(target, Checkpoint(tmp_path / "c.pt", add_prefix="clip", **prefixes)) == ""
        assert_same(target.state_dict(), wanted)
        with pytest.raises(SetupError, match=r"does not fit the model: missing clip\.0\.bias"):
            load(Trained(2), Checkpoint(tmp_path / "c.pt"))


def test_a_prefix_that_no_name_has_is_refused_with_names_that_are_there(tmp_path):
    torch.save(module(1).state_dict(), tmp_path / "c.pt")
    with pytest.raises(SetupError) as error:
        load(module(2), Checkpoint(tmp_path / "c.pt", strip_prefix="clip", add_prefix="x"))
    assert str(error.value) == (
        "--strip-prefix is clip; no name begins with 'clip.'; they are 0.weight, 0.bias, 1.weight and so on"
    )
    with pytest.raises(SetupError, match=r"no name begins with '0\.w\.'"):
        load(module(2), Checkpoint(tmp_path / "c.pt", strip_prefix="0.w"))


def test_two_tensors_of_one_name_are_refused(tmp_path):
    torch.save({"clip.a": torch.ones(1), "module.clip.a": torch.ones(1)}, tmp_path / "c.pt")
    with pytest.raises(SetupError, match=r"more than one tensor that would be called a, the last of them as module\."):
        load(module(2), Checkpoint(tmp_path / "c.pt", strip_prefix="clip"))


def test_a_training_checkpoint_with_numpy_scalars(tmp_path):
    """open_clip_train's: until it used math, its schedule set the learning rate to one of numpy's numbers."""
    scaler = {"scale": 65536.0, "growth_tracker": 3}
    groups = [{"lr": np.float64(1e-4), "betas": (0.9, 0.98), "step": np.int64(3), "fused": np.bool_(True)}]
    content = {"epoch": 3, "name": "a-run", "state_dict": module(1).state_dict(), "scaler": scaler}
    content["optimizer"] = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": groups}
    torch.save(content, tmp_path / "epoch_3.pt")
    target = module(2)
    load(target, Checkpoint(tmp_path / "epoch_3.pt"))
    assert_same(target.state_dict(), module(1).state_dict())
    renamed(tmp_path / "epoch_3.pt", b"numpy._core.multiarray", b"numpy.core.multiarray")  # as numpy 1 is called
    target = module(2)
    load(target, Checkpoint(tmp_path / "epoch_3.pt"))
    assert_same(target.state_dict(), module(1).state_dict())


def renamed(file, old, new):
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data.replace(old, new) if name.endswith("data.pkl") else data)
    assert any(new in data.replace(old, new) for data in parts.values())


def test_old_tables_of_positions_and_logit_scales_of_another_shape(tmp_path):
    class Scaled(nn.Module):
        def __init__(self, shape):
            super().__init__()
            self.logit_scale = nn.Parameter(torch.full(shape, 2.0))

    state = {"logit_scale": torch.full((1,), 3.0), "text_model.embeddings.position_ids": torch.arange(7)[None]}
    torch.save(state, tmp_path / "c.pt")
    target = Scaled(())
    load(target, Checkpoint(tmp_path / "c.pt"))
    assert target.logit_scale.item() == 3
    torch.save(state | {"text_model.embeddings.position_ids": torch.zeros(7)}, tmp_path / "c.pt")
    with pytest.raises(SetupError, match=r"unexpected text_model\.embeddings\.position_ids"):
        load(target, Checkpoint(tmp_path / "c.pt"))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_folders_and_shards(kind, tmp_path):
    """As transformers and accelerate write them."""
    state, shards = module(1).state_dict(), {}
    for index, name in enumerate(state):
        shards[name] = f"model-{index % 2}.{kind}"
    for file in set(shards.values()):
        part = {name: state[name].contiguous() for name in shards if shards[name] == file}
        save_file(part, tmp_path / file) if kind == "safetensors" else torch.save(part, tmp_path / file)
    index = tmp_path / ("model.safetensors.index.json" if kind == "safetensors" else "pytorch_model.bin.index.json")
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": shards}))
    for place in (index, tmp_path):
        target = module(2)
        load(target, Checkpoint(place))
        assert_same(target.state_dict(), state)
    index.write_text(json.dumps({"weight_map": {"a": "../secret.bin"}}))
    with pytest.raises(SetupError, match="its shards must be files beside it"):
        read(index)


def test_deepspeeds_folder(tmp_path):
    (tmp_path / "global_step7").mkdir()
    (tmp_path / "latest").write_text("global_step7\n")
    shapes = [OrderedDict((name, value.shape) for name, value in module(1).named_parameters())]
    content = {"module": module(1).state_dict(), "param_shapes": shapes, "ds_version": "0.16", "global_steps": 7}
    file = tmp_path / "global_step7" / "mp_rank_00_model_states.pt"
    torch.save(content, file)
    target = module(2)
    load(target, Checkpoint(tmp_path))
    assert_same(target.state_dict(), module(1).state_dict())
    torch.save(content | {"module": {name: torch.empty(0) for name in module(1).state_dict()}}, file)
    with pytest.raises(SetupError, match="ZeRO 3: gather them first"):
        load(target, Checkpoint(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_safetensors_in_every_precision(dtype, tmp_path):
    state = {
        name: value.to(dtype if value.is_floating_point() else value.dtype).contiguous()
        for name, value in module(1).state_dict().items()
    }
    save_file(state, tmp_path / "c.safetensors")
    assert_same(read(tmp_path / "c.safetensors"), state)
    target = module(2)
    load(target, Checkpoint(tmp_path / "c.safetensors"))
    assert torch.equal(target[0].weight, state["0.weight"].float())


def test_what_does_not_fit_is_named(tmp_path):
    state = module().state_dict()
    del state["0.bias"], state["1.bias"]
    state |= {f"extra{index}": torch.ones(1) for index in range(7)} | {"0.weight": torch.ones(2, 2)}
    torch.save(state, tmp_path / "c.pt")
    target = module(2)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(SetupError) as error:
        load(target, Checkpoint(tmp_path / "c.pt"))
    text = str(error.value)
    assert "missing 0.bias, 1.bias" in text
    assert "unexpected extra0, extra1, extra2, extra3, extra4 and 2 more" in text
    assert "misshapen 0.weight [2, 2] for [4, 3]" in text
    assert "\n" not in text
    assert_same(target.state_dict(), before)


class Harmful:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("name", "write", "limit"),
    [
        ("c.pt", lambda file: torch.save(Harmful(), file), "it holds builtins.print, which only code could load"),
        (
            "c.pt",
            lambda file: torch.save({"args": argparse.Namespace(), "e": {"lr": np.float64(1), "h": Harmful()}}, file),
            "it holds argparse.Namespace, builtins.print, which only code could load; save the model's",
        ),
        ("c.pt", lambda file: torch.save({"o": np.array([None])}, file), "which only code could load"),
        (
            "c.pt",
            lambda file: torch.save(Harmful(), file, _use_new_zipfile_serialization=False),
            "it holds print, which only code could load",
        ),
        ("c.pt", lambda file: torch.jit.script(nn.Linear(1, 1)).save(file), "it is a TorchScript archive"),
        ("c.pt", lambda file: torch.save([torch.ones(1)], file), "holds a list; must hold a state_dict"),
        ("c.pt", lambda file: torch.save({}, file), "must hold a state_dict"),
        ("c.pt", lambda file: torch.save({"a": 3}, file), "entry 'a' is a int; must be a tensor"),
        ("c.pt", lambda file: file.write_bytes(b"no"), "must be a torch file of tensors"),
        ("c.pt", lambda file: file.write_bytes(b""), "must be a torch file of tensors"),
        ("c.pt", lambda file: None, "No such file"),
        ("c.safetensors", lambda file: file.write_bytes(b"x" * 20), "header length"),
        ("c.safetensors", lambda file: None, "No such file"),
        ("folder", lambda file: file.mkdir(), "has no weights; must be a file, or a folder with model.safetensors"),
        ("x.index.json", lambda file: file.write_text("[]"), "cannot be read: TypeError"),
    ],
)
def test_files_that_hold_no_weights_are_refused(name, write, limit, tmp_path, capsys):
    write(tmp_path / name)
    with pytest.raises(SetupError) as error:
        read(tmp_path / name)
    assert str(error.value).startswith(f"--checkpoint is {tmp_path / name}; ")
    assert limit in str(error.value)
    assert "\x1b" not in str(error.value)
    assert "\n" not in str(error.value)
    assert "run" not in capsys.readouterr().out
