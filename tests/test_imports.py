"""The rules of the house: one direction of imports, and a light trainer's side."""

import ast
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
# Parts of selector_client that only those who name them import.
TORCH_USERS = {"flexi.py"}


@pytest.mark.parametrize(
    ("files", "forbidden"),
    [
        (within("engine"), [SERVER + "rpc", SERVER + "app", "grpc"]),
        (within("encoding"), [SERVER + p for p in ("rpc", "app", "engine", "weights")] + ["grpc"]),
        (within("weights"), [SERVER + p for p in ("rpc", "app", "engine", "encoding", "sampling")] + ["grpc"]),
        (within("telemetry"), [SERVER + p for p in ("rpc", "app", "engine", "encoding", "weights", "sampling")]),
        (within("rpc"), [SERVER + "app"]),
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
    ids=["engine", "encoding", "weights", "telemetry", "rpc", "client", "server", "proto"],
)
def test_imports_run_one_way(files, forbidden):
    assert files
    assert not breaches(files, *forbidden)


def test_only_app_imports_rpc_and_only_rpc_knows_grpc():
    others = [file for file in within(".") if file.name != "app.py" and file.parent.name != "rpc"]
    assert len(others) > 20
    assert not breaches(others, SERVER + "rpc", SERVER + "app", "grpc", "grpc_health", "grpc_status")
    assert not breaches([ROOT / "selector_server" / "app.py"], "grpc", "grpc_health", "grpc_status")


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


def test_a_trainers_imports_are_light():
    imported = "selector_client, selector_client.callbacks, selector_client.flops, selector_tools.cli"
    code = f"import sys, {imported}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "lightning", "onnxruntime", "prometheus_client", "PIL", "tokenizers"} & set(
        done.stdout.split()
    )
