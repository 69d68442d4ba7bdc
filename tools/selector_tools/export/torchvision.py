"""Makes torchvision importable: open_clip and transformers import it for its transforms; the towers use none of its
operators."""

import sys
from typing import Any

_OPERATORS = ("nms", "qnms")
# A declaration lasts as long as the library object that made it.
_declared: list[Any] = []


def make_importable() -> None:
    """Imports torchvision, also where its compiled operators do not fit the installed torch (a CUDA build beside a
    CPU torch): the operators that it registers against are then declared without an implementation. Nothing happens
    where torchvision is not installed."""
    try:
        import torchvision  # noqa: PLC0415
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        return
    from torch import library as operators  # noqa: PLC0415

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library: Any = operators.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in _OPERATORS:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    import torchvision  # noqa: F401, PLC0415
