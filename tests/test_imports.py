"""The rules of the house: one direction of imports, and a light trainer's side."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    "selector_proto": ROOT / "proto" / "selector_proto",
    "selector_client": ROOT / "client" / "selector_client",
    "selector_server": ROOT / "selector_server",
    "selector_tools": ROOT / "tools" / "selector_tools",
}
FILES = [(package, file) for package, folder in SOURCES.items() for file in sorted(folder.rglob("*.py"))]


def imports(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(folder: str) -> list[Path]:
    return sorted((ROOT / "selector_server" / folder).rglob("*.py"))


def breaches(files, *forbidden: str) -> list[str]:
    return [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in imports(file)
        if any(name == f or name.startswith(f + ".") for f in forbidden)
    ]


SERVER = "selector_server."
# Modules that put the server together and run its life. Nobody imports them but each other.
COMPOSITION = ("app", "build")
# The engine's modules and rooms, from the ground up: each may import those before it.
ENGINE = (
    "annotations",
    "arrays",
    "closed",
    "admission",
    "task",
    "request",
    "models",
    "candidates",
    "scorer",
    "worker",
    "dispatcher",
    "ranks",
    "engine",
)
# Parts of selector_client that only those who name them import.
TORCH_USERS = {"flexi.py"}


@pytest.mark.parametrize(
    ("files", "forbidden"),
    [
        (within("engine"), [SERVER + p for p in ("rpc", "inspection", *COMPOSITION)] + ["grpc"]),
        (within("encoding"), [SERVER + p for p in ("rpc", "inspection", "engine", "weights", *COMPOSITION)] + ["grpc"]),
        (
            within("weights"),
            [SERVER + p for p in ("rpc", "inspection", "engine", "encoding", "sampling", *COMPOSITION)] + ["grpc"],
        ),
        (
            within("telemetry"),
            [SERVER + p for p in ("rpc", "inspection", "engine", "encoding", "weights", "sampling", *COMPOSITION)],
        ),
        (within("rpc"), [SERVER + p for p in COMPOSITION]),
        (within("inspection"), [SERVER + p for p in ("rpc", *COMPOSITION)] + ["grpc"]),
        (
            [f for p, f in FILES if p == "selector_client" and f.name not in TORCH_USERS],
            ["selector_server", "selector_tools", "torch", "onnxruntime"],
        ),
        ([f for p, f in FILES if p == "selector_server"], ["selector_client", "selector_tools"]),
        (
            [f for p, f in FILES if p == "selector_proto"],
            ["selector_client", "selector_server", "selector_tools", "torch"],
        ),
    ],
    ids=["engine", "encoding", "weights", "telemetry", "rpc", "inspection", "client", "server", "proto"],
)
def test_imports_run_one_way(files, forbidden):
    assert files
    assert not breaches(files, *forbidden)


def test_only_the_composition_imports_rpc_and_only_rpc_knows_grpc():
    composition = [ROOT / "selector_server" / f"{name}.py" for name in COMPOSITION]
    others = [file for file in within(".") if file not in composition and "rpc" not in file.parts]
    assert len(others) > 20
    assert not breaches(others, SERVER + "rpc", *(SERVER + name for name in COMPOSITION))
    assert not breaches([*others, *composition], "grpc", "grpc_health", "grpc_status")


def test_the_engine_is_built_from_the_ground_up():
    folder = ROOT / "selector_server" / "engine"
    assert {file.stem for file in folder.iterdir() if file.name not in {"__init__.py", "__pycache__"}} == set(ENGINE)
    for floor, name in enumerate(ENGINE):
        files = [file for file in within("engine") if name in (file.stem, file.parent.name)]
        assert files
        assert not breaches(files, *(f"{SERVER}engine.{above}" for above in ENGINE[floor + 1 :]))
    [told] = re.findall(r"built from the ground up: ([^.]+)\.", (ROOT / "docs" / "architecture.md").read_text())
    assert tuple(re.findall(r"`(\w+)/?`", told)) == ENGINE


def module_of(package: str, file: Path) -> str:
    parts = (package, *file.relative_to(SOURCES[package]).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


@pytest.mark.parametrize("package", SOURCES)
def test_no_modules_import_each_other_in_a_circle(package):
    modules = {module_of(package, file): file for owner, file in FILES if owner == package}
    # What is imported from a module counts as that module.
    graph = {
        name: {one if one in modules else one.rpartition(".")[0] for one in imports(file)} & {*modules} - {name}
        for name, file in modules.items()
    }
    assert any(graph.values())
    while ground := [name for name, needed in graph.items() if not needed]:
        for name in ground:
            del graph[name]
        for needed in graph.values():
            needed.difference_update(ground)
    assert not graph, f"these import each other, or what does: {sorted(graph)}"


def test_only_the_transport_and_benchmarks_of_redis_itself_know_redis():
    """Whatever carries weights, others speak of it in StoreErrors."""
    room = SOURCES["selector_proto"] / "weights"
    transport = {room / f"redis_{name}.py" for name in ("store", "bulk", "link", "url")}
    # These measure a bare Redis beside the transport, and ask it for its version and its processor time.
    bench = SOURCES["selector_tools"] / "bench"
    measuring = {bench / f"{name}.py" for name in ("weights", "weights_phases", "weights_readers")}
    files = [file for _, file in FILES]
    assert {file for file in files if breaches([file], "redis")} == transport | measuring
    others = [file for file in files if file.parent != room]
    inner = [f"selector_proto.weights.{file.stem}" for file in room.glob("*_*.py")]
    assert "selector_proto.weights.folder_store" in inner
    assert not breaches(others, *inner)


def test_sampling_imports_only_torch_numpy_and_the_standard_library():
    allowed = {"torch", "numpy", "triton", *sys.stdlib_module_names}
    files = within("sampling")
    assert files
    foreign = {
        f"{file.name}: {name}"
        for file in files
        for name in imports(file)
        if name.partition(".")[0] not in allowed and not name.startswith("selector_server.sampling")
    }
    assert not foreign


def test_serving_brings_nothing_that_only_offline_commands_need():
    code = "import sys, selector_server.app; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    offline = {"onnx", "onnxscript", "open_clip", "timm", "transformers", "matplotlib", "rich", "selector_tools"}
    assert not offline & set(done.stdout.split())


# `selector serve` imports these itself, before it runs the app.
ENTRY_POINTS = {
    "selector_server.app",
    "selector_server.config",
    "selector_server.errors",
    "selector_server.telemetry.logs",
}


def test_the_server_has_no_file_that_it_does_not_use_itself():
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in within(".")
    }
    used, todo = set(), list(ENTRY_POINTS)
    while todo:
        name = todo.pop()
        # `from package import module` gives a module's name, `from module import name` one below it.
        known = [part for part in (name, name.rpartition(".")[0]) if part in files and part not in used]
        for module in known:
            used.add(module)
            todo += imports(files[module])
    packages = {name for name, file in files.items() if file.name == "__init__.py"}
    assert not files.keys() - used - packages


def test_a_trainers_imports_are_light():
    imported = "selector_client, selector_client.callbacks, selector_client.flops, selector_tools.cli"
    code = f"import sys, {imported}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "lightning", "onnxruntime", "prometheus_client", "PIL", "tokenizers"} & set(
        done.stdout.split()
    )
