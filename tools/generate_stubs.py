"""Regenerates proto/selector_proto/v1 from proto/selector/v1. `make proto` and the test that compares run it."""

import sys
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory

from grpc_tools import protoc  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "proto" / "selector" / "v1"


def generate(out: Path) -> None:
    """Writes `selector_proto/v1/*_pb2*` under `out`.

    The contract's files are read under the path of the package that ships the generated modules, and so are their
    imports of each other, for protoc takes the modules' import path from there.
    """
    include = str(resources.files("grpc_tools") / "_proto")
    with TemporaryDirectory() as folder:
        place = Path(folder, "selector_proto", "v1")
        place.mkdir(parents=True)
        for file in SOURCES.glob("*.proto"):
            (place / file.name).write_text(
                file.read_text().replace('import "selector/v1/', 'import "selector_proto/v1/')
            )
        names = [f"selector_proto/v1/{p.name}" for p in sorted(place.iterdir())]
        outputs = [f"--{kind}_out={out}" for kind in ("python", "mypy")]
        base = ["protoc", f"-I{folder}", f"-I{include}", *outputs]
        services = [f"selector_proto/v1/{name}.proto" for name in ("admin", "inspection", "selector")]
        if protoc.main([*base, *names]) or protoc.main([*base, f"--grpc_python_out={out}", *services]):
            raise SystemExit("protoc failed")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "proto")
