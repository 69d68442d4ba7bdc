"""open_clip and transformers import torchvision, for its transforms; the towers use none of its operators."""

import sys
from typing import Any

_OPERATORS = ("nms", "qnms")
# Declarations last as long as the library object.
_declared: list[Any] = []


def make_importable() -> None:
    """Imports torchvision, also where its compiled operators do not fit the installed torch (a CUDA build beside a
    CPU torch): then the operators that it registers against are declared, without an implementation. Without
    torchvision nothing happens."""
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
