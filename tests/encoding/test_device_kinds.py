"""The table of devices: names, what settings and flags take from it, and that reading it costs nothing."""

import subprocess
import sys

import pytest
import torch

from selector_server.config import Config, load
from selector_server.device_kinds import DEVICE_NAMES, DEVICE_PATTERN, KINDS, is_device
from selector_server.encoding.device import Device
from selector_server.errors import SetupError


def test_names_and_pattern_come_from_the_table():
    assert DEVICE_PATTERN == r"^(cpu|cuda(:\d+)?)$"
    assert DEVICE_NAMES == "cpu, cuda or cuda:N"
    assert DEVICE_NAMES in Config.model_fields["device"].description


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:0", "cuda:17"])
def test_settings_take_devices_by_name(name):
    assert is_device(name)
    assert load({"device": name}, {}, None).device == name


@pytest.mark.parametrize("name", ["", "CPU", "cpu:0", "cuda:", "cuda:x", "cuda:0 ", "cpu\n", "mps", "cpu|cuda"])
def test_settings_refuse_all_else(name):
    assert not is_device(name)
    with pytest.raises(SetupError, match=r"^device is"):
        load({"device": name}, {}, None)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_torch_knows_each_kind(kind):
    assert torch.device(kind.torch_type).type == kind.torch_type
    assert kind.is_host == (kind.provider_options(3) == {})
    # What encoding/device.py asks of the module.
    module = torch.get_device_module(kind.torch_type)
    asked = {"is_available", "device_count", "Stream", "stream", "synchronize"}
    memory = {"Event", "mem_get_info", "memory_allocated", "memory_reserved"}
    assert not {name for name in asked | (set() if kind.is_host else memory) if not hasattr(module, name)}


def test_a_device_is_of_its_kind():
    device = Device("cpu")
    assert (device.kind, device.provider) == (KINDS["cpu"], "CPUExecutionProvider")
    assert (device.kind.group_backend, device.kind.micro_batch) == ("gloo", 16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_named():
    with pytest.raises(SetupError, match="device is cuda:3; torch sees 0 CUDA devices"):
        Device("cuda:3")


def test_a_device_of_no_kind_is_refused_instead_of_taken_for_a_cpu():
    with pytest.raises(SetupError, match="device is tpu; must be cpu, cuda or cuda:N"):
        Device("tpu")


def test_settings_are_read_without_torch():
    code = "import sys, selector_server.config; print(*{'torch', 'onnxruntime', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
