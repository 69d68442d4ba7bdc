"""Checkpoints: what they are wrapped in, and what is refused."""

import pytest
import torch
from safetensors.torch import save_file
from selector_tools.export.checkpoint import load, read
from torch import nn

from selector_server.errors import SetupError


def module(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "module", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_and_prefixes_come_off(wrapper, prefix, tmp_path):
    wanted = module(1).state_dict()
    state = {prefix + name: value for name, value in wanted.items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "c.pt")
    target = module(2)
    load(target, tmp_path / "c.pt")
    assert_same(target.state_dict(), wanted)


def test_a_prefix_that_not_all_names_have_stays(tmp_path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "c.pt")
    assert read(tmp_path / "c.pt").keys() == {"module.a", "b"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_safetensors_in_every_precision(dtype, tmp_path):
    state = {
        name: value.to(dtype if value.is_floating_point() else value.dtype).contiguous()
        for name, value in module(1).state_dict().items()
    }
    save_file(state, tmp_path / "c.safetensors")
    assert_same(read(tmp_path / "c.safetensors"), state)
    target = module(2)
    load(target, tmp_path / "c.safetensors")
    assert torch.equal(target[0].weight, state["0.weight"].float())


def test_what_does_not_fit_is_named(tmp_path):
    state = module().state_dict()
    del state["0.bias"], state["1.bias"]
    state |= {f"extra{index}": torch.ones(1) for index in range(7)} | {"0.weight": torch.ones(2, 2)}
    torch.save(state, tmp_path / "c.pt")
    target = module(2)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(SetupError) as error:
        load(target, tmp_path / "c.pt")
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
        ("c.pt", lambda file: torch.save(Harmful(), file), "must be a torch file of tensors"),
        ("c.pt", lambda file: torch.save([torch.ones(1)], file), "holds a list; must hold a state_dict"),
        ("c.pt", lambda file: torch.save({}, file), "must hold a state_dict"),
        ("c.pt", lambda file: torch.save({"a": 3}, file), "entry 'a' is a int; must be a tensor"),
        ("c.pt", lambda file: file.write_bytes(b"no"), "must be a torch file of tensors"),
        ("c.pt", lambda file: file.write_bytes(b""), "must be a torch file of tensors"),
        ("c.pt", lambda file: None, "No such file"),
        ("c.safetensors", lambda file: file.write_bytes(b"x" * 20), "header length"),
        ("c.safetensors", lambda file: None, "No such file"),
    ],
)
def test_files_that_hold_no_weights_are_refused(name, write, limit, tmp_path, capsys):
    write(tmp_path / name)
    with pytest.raises(SetupError) as error:
        read(tmp_path / name)
    assert str(error.value).startswith(f"--checkpoint is {tmp_path / name}; ")
    assert limit in str(error.value)
    assert "run" not in capsys.readouterr().out
