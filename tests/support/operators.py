"""torch's exporter reads what it knows of operators once in a process, not for each graph: a pytest plugin.

For each graph it parses the sources of a thousand functions again. That is a second of computing, more than all the
rest of an export of a tiny tower, and the tests export hundreds of them.
"""

import functools
import sys


def pytest_collection_finish() -> None:
    """Files whose tests export import torch when they are collected."""
    if "torch" in sys.modules:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
