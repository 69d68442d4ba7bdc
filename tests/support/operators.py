"""torch's exporter learns once in a process what operators there are, not for each graph: a pytest plugin.

For each graph it parses the sources of a thousand functions again, and goes through all operators thirty times. That is
more than a second of computing, more than all the rest of an export of a tiny tower, and the tests export hundreds. The
answers differ only where somebody registers operators on the way, which no test does.
"""

import functools
import sys


def pytest_collection_finish() -> None:
    """Files whose tests export import torch when they are collected."""
    if "torch" not in sys.modules:
        return
    from torch._export import utils
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
    utils._materialize_cpp_cia_ops = functools.cache(utils._materialize_cpp_cia_ops)
