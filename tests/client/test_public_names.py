"""The names that users import: those of the package, and those that README, docs and examples show."""

import ast
import importlib
import re
from pathlib import Path

import pytest
import selector_client
from selector_tools.export.torchvision import make_importable

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = [
    "Access",
    "AsyncSelector",
    "Canary",
    "Denied",
    "InterleavedShards",
    "LinkOptions",
    "Misrouted",
    "ModelEmbeddings",
    "PublishError",
    "Reference",
    "RemoteError",
    "SelectingLoader",
    "Selection",
    "Selector",
    "SelectorClientError",
    "Settings",
    "Statistics",
    "Unreachable",
    "Untrusted",
    "WeightPublisher",
]
# Modules that users may name besides the package itself.
MODULES = {"callbacks", "callbacks.lightning", "callbacks.huggingface", "errors", "flexi", "flops", "metrics"}


def test_the_package_offers_these_names_and_no_others():
    assert selector_client.__all__ == PUBLIC
    assert all(hasattr(selector_client, name) for name in PUBLIC)


def imports(code: str) -> set[tuple[str, str]]:
    """Returns the modules of the client that code imports from, each with the name that it takes."""
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom) and node.module]
    found = {(node.module, alias.name) for node in nodes for alias in node.names}
    return {(module, name) for module, name in found if module.split(".")[0] == "selector_client"}


def documented() -> dict[tuple[str, str], Path]:
    found = {}
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text()
        for code in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            found |= dict.fromkeys(imports(code), page)
        for module, name in re.findall(r"`(selector_client(?:\.[a-z_]+)*)\.(\w+)", text):
            found[(module, name)] = page
    for example in sorted((ROOT / "examples").glob("*.py")):
        found |= dict.fromkeys(imports(example.read_text()), example)
    return found


def test_every_documented_import_resolves():
    make_importable()  # transformers and Lightning import torchvision
    names = documented()
    assert len(names) > 10
    for (module, name), where in names.items():
        assert module == "selector_client" or module.removeprefix("selector_client.") in MODULES, where
        if module == "selector_client" and name in MODULES:
            importlib.import_module(f"{module}.{name}")
            continue
        assert hasattr(importlib.import_module(module), name), f"{where.name}: {module}.{name}"
        if module == "selector_client":
            assert name in PUBLIC, where


@pytest.mark.parametrize("module", sorted(MODULES - {"callbacks.huggingface"}))
def test_modules_that_users_name_can_be_imported(module):
    importlib.import_module(f"selector_client.{module}")
