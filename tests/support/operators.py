"""torch's exporter reads what it knows of operators once in a process, not for each graph: a pytest plugin.

For each graph it parses the sources of a thousand functions again, to learn the one domain that they all have. That is
0.7 s of computing, more than all the rest of an export of a tiny tower, and the tests export hundreds.
"""

import sys
from functools import cached_property


def pytest_collection_finish() -> None:
    """Files of tests that export import torch when they are collected."""
    if "torch" not in sys.modules:
        return
    from onnxscript._internal.values import TracedOnnxFunction

    once = cached_property(TracedOnnxFunction.function_ir.fget)
    once.__set_name__(TracedOnnxFunction, "function_ir")
    TracedOnnxFunction.function_ir = once
