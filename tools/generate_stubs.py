"""Regenerates proto/selector_proto/v1 from proto/selector/v1. `make proto` and the test that compares run it."""

import sys
from importlib import resources
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "proto" / "selector" / "v1"


def generate(out: Path) -> None:
    """Writes `selector_proto/v1/*_pb2*` under `out`.

    The path mapping gives the generated modules the import path of the package that ships them.
    """
    include = str(resources.files("grpc_tools") / "_proto")
    names = [f"selector_proto/v1/{p.name}" for p in sorted(SOURCES.glob("*.proto"))]
    outputs = [f"--{kind}_out={out}" for kind in ("python", "mypy")]
    base = ["protoc", f"-Iselector_proto/v1={SOURCES}", f"-I{include}", *outputs]
    services = [f"selector_proto/v1/{name}.proto" for name in ("admin", "selector")]
    if protoc.main([*base, *names]) or protoc.main([*base, f"--grpc_python_out={out}", *services]):
        raise SystemExit("protoc failed")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "proto")
