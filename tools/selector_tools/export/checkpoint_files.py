"""Reads what is in the files of a checkpoint, and runs none of the code that a pickle may name."""

import json
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from selector_proto import safetensors
from torch import Tensor

from selector_server.errors import SetupError
from selector_tools.mistakes import in_one_line

# The weights in a folder that transformers, accelerate or open_clip wrote, the best form first.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# Training loops leave numpy's numbers (a learning rate) in their checkpoints. What rebuilds a number runs nothing.
_NUMPY_SCALARS = tuple(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core"))
_NUMPY_NAMES = (*_NUMPY_SCALARS, "numpy.dtype")
_NUMPY_KINDS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")
_DEEPSPEED = "mp_rank_00_model_states.pt"


def entries(place: Path) -> Any:
    """Returns the content of a .safetensors or torch file, of the shards that an index lists, or of the weights in a
    folder. Raises SetupError."""
    file = _in_folder(place) if place.is_dir() else place
    try:
        if file.name.endswith(".index.json"):
            return _sharded(file)
        return _safetensors(file) if file.suffix == ".safetensors" else _torch(file)
    except OSError as error:
        raise SetupError("--checkpoint", file, str(error.strerror or error)) from error


def _in_folder(folder: Path) -> Path:
    for name in WEIGHT_FILES:
        if (folder / name).exists():
            return folder / name
    if (latest := folder / "latest").is_file():  # DeepSpeed's: it names the folder of the last step
        folder = folder / Path(latest.read_text().strip()).name
    if (folder / _DEEPSPEED).exists():
        return folder / _DEEPSPEED
    limit = f"has no weights; must be a file, or a folder with {', '.join(WEIGHT_FILES)}"
    if (folder / ".metadata").exists():
        limit = (
            "has the shards of torch.distributed.checkpoint; join them first: "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE"
        )
    raise SetupError("--checkpoint", folder, limit)


def _sharded(index: Path) -> dict[str, Any]:
    try:
        shards = set(json.loads(index.read_text())["weight_map"].values())
        if any(Path(shard).name != shard for shard in shards):
            raise ValueError("its shards must be files beside it")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SetupError("--checkpoint", index, f"cannot be read: {in_one_line(error, kind=True)}") from error
    whole: dict[str, Any] = {}
    for shard in sorted(shards):
        content = entries(index.parent / shard)
        if not isinstance(content, Mapping):
            raise SetupError("--checkpoint", index.parent / shard, "must hold a state_dict")
        whole |= content
    return whole


def _torch(file: Path) -> Any:
    rebuild: Any = np.float64(0).__reduce__()[0]
    scalars = [(rebuild, name) for name in _NUMPY_SCALARS]
    kinds = [type(np.dtype(kind)) for kind in _NUMPY_KINDS]
    try:
        with torch.serialization.safe_globals([*scalars, np.dtype, *kinds]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells of TorchScript, which is refused below
            return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError) as error:
        limit = f"must be a torch file of tensors or .safetensors: {_reason(file, error)}"
        raise SetupError("--checkpoint", file, limit) from error


def _reason(file: Path, error: Exception) -> str:
    """Says what is wrong in the file. Torch's own message advises to load it unsafely."""
    text = in_one_line(error)
    if "TorchScript" in text:
        return "it is a TorchScript archive, which is code; save the state_dict of the model"
    inner = re.search(r"WeightsUnpickler error: (.*?)(?:\. Please|\n|$)", str(error))
    if not inner:
        return text
    if not (odd := re.search(r"GLOBAL (\S+)", inner[1])):
        return inner[1]
    try:
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(file)) - set(_NUMPY_NAMES)
    except (ValueError, RuntimeError, pickle.UnpicklingError):
        names = set()  # an older format, of which only the first name is known
    named = ", ".join(sorted(names or {odd[1]}))
    return f"it holds {named}, which only code could load; save the model's state_dict alone"


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        views = safetensors.decode(memoryview(file.read_bytes()))
    except safetensors.LayoutError as error:
        raise SetupError("--checkpoint", file, str(error)) from error
    if odd := sorted({view.dtype for view in views.values()} - _DTYPES.keys()):
        raise SetupError("--checkpoint", file, f"has tensors of {', '.join(odd)}; must be {', '.join(_DTYPES)}")
    return {
        name: torch.from_numpy(np.frombuffer(view.data, np.uint8).copy()).view(_DTYPES[view.dtype]).reshape(view.shape)
        for name, view in views.items()
    }
