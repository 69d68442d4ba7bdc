"""The kinds of devices that a sidecar can run on: one table, by name, of plain data.

To add an accelerator that torch and ONNX Runtime both know, give it a line in KINDS, and an extra with its ONNX Runtime
in pyproject.toml. Settings and flags take their pattern from here, and encoding/device.py finds all else at torch's
module for that kind of device.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class DeviceKind:
    """One kind of device.

    `name` is its name in settings. `torch_type` is what torch calls it, and ONNX Runtime when it is told where a tensor
    lies. `provider` is ONNX Runtime's execution provider. `group_backend` is the backend of torch.distributed that
    exchanges tensors on it. `micro_batch` is how many samples are encoded at once, on a CPU by each thread, unless
    somebody says it: more would gain nothing, and would delay what runs beside.
    """

    name: str
    torch_type: str
    provider: str
    group_backend: str
    micro_batch: int

    @property
    def is_host(self) -> bool:
        """Whether its memory is the process's own. There is one such device; of others there may be several."""
        return self.torch_type == "cpu"

    def provider_options(self, index: int) -> dict[str, int]:
        """ONNX Runtime's options for the device of this index."""
        return {} if self.is_host else {"device_id": index}


KINDS = {
    kind.name: kind
    for kind in (
        DeviceKind("cpu", "cpu", "CPUExecutionProvider", "gloo", 16),
        DeviceKind("cuda", "cuda", "CUDAExecutionProvider", "nccl", 1024),
    )
}
_HOSTS = [kind.name for kind in KINDS.values() if kind.is_host]
_ACCELERATORS = [kind.name for kind in KINDS.values() if not kind.is_host]
# A device's name, as a regular expression and in words.
DEVICE_PATTERN = "^(" + "|".join([*_HOSTS, *(rf"{name}(:\d+)?" for name in _ACCELERATORS)]) + ")$"
DEVICE_NAMES = ", ".join([*_HOSTS, *_ACCELERATORS]) + "".join(f" or {name}:N" for name in _ACCELERATORS)


def is_device(name: str) -> bool:
    """Whether this is a device's name; it says nothing about whether there is one."""
    return re.fullmatch(DEVICE_PATTERN, name) is not None
