"""The rooms of the client: which may import which, and that each keeps its hands off the others' private parts."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "client"
PACKAGE = "selector_client"
ERRORS = f"{PACKAGE}.errors"
# What the modules of a room may import of the client, besides their own room and the errors.
ROOMS = {
    "selecting": set(),
    "loading": {"selecting"},
    "publishing": set(),
    "callbacks": {"selecting", "loading", "publishing"},
}
# Functions of libraries that have no public name.
FOREIGN = {"torch._foreach_copy_"}


def modules() -> dict[str, ast.Module]:
    found = {}
    for file in sorted((ROOT / PACKAGE).rglob("*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(file.read_text())
    return found


MODULES = modules()


def imported(tree: ast.Module) -> set[str]:
    """Returns the client's modules that a module imports, wherever in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in whole}
    return {name for name in names if name.partition(".")[0] == PACKAGE}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else ""


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_is_below_them(room):
    inside = [module for module in MODULES if room_of(module) == room]
    assert len(inside) > 3
    for module in inside:
        for name in imported(MODULES[module]) - {ERRORS}:
            assert room_of(name) in ROOMS[room] | {room}, f"{module} imports {name}"


def test_what_stands_outside_the_rooms_imports_none_of_them():
    outside = [module for module in MODULES if not room_of(module) and module != PACKAGE]
    assert set(outside) == {ERRORS, *(f"{PACKAGE}.{name}" for name in ("flexi", "flops", "metrics"))}
    for module in outside:
        assert not imported(MODULES[module]), module


def test_the_package_imports_what_a_trainer_always_needs():
    rooms = {room_of(name) for name in imported(MODULES[PACKAGE]) - {ERRORS}}
    assert rooms == {"selecting", "loading", "publishing"}


def test_imports_run_in_no_circle():
    graph = {module: imported(tree) for module, tree in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


def private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


@pytest.mark.parametrize("module", MODULES)
def test_nobody_touches_the_private_parts_of_another_object(module):
    tree = MODULES[module]
    own = {"self", "cls"} | {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            owner = ast.unparse(node.value)
            assert owner in own or f"{owner}.{node.attr}" in FOREIGN, f"line {node.lineno}: {owner}.{node.attr}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
            name = node.args[1]
            assert not (isinstance(name, ast.Constant) and private(name.value)), f"line {node.lineno}: {name.value}"
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == PACKAGE:
            assert not any(private(alias.name) for alias in node.names), f"line {node.lineno}"
