"""Wheel and sdist, built and installed into fresh environments, as a trainer installs them."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TRAINER = """
import sys
from importlib.metadata import version
import selector_client, selector_proto
assert version("jest-selector") == selector_proto.__version__
heavy = {"torch", "onnxruntime", "prometheus_client", "pydantic"} & {name.partition(".")[0] for name in sys.modules}
assert not heavy, heavy
selector_client.Selector("localhost:1").close()
"""


def shell(*command, **options) -> subprocess.CompletedProcess:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    done = shell(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.timeout(400)
@pytest.mark.parametrize("pattern", ["*.whl", "*.tar.gz"])
def test_a_trainer_installs_it_without_torch(built, pattern, tmp_path):
    [archive] = built.glob(pattern)
    venv.create(tmp_path / "venv")
    binaries = tmp_path / "venv" / "bin"
    # To install pip first, and to compile what is installed, would take most of the time.
    pip = (sys.executable, "-m", "pip", "--python", binaries / "python")
    done = shell(*pip, "install", "-q", "--no-compile", archive)
    assert done.returncode == 0, done.stderr
    done = shell(binaries / "python", "-c", TRAINER, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    listed = shell(*pip, "list", "--format=freeze").stdout.lower()
    assert "grpcio==" in listed
    assert not any(heavy in listed for heavy in ("torch==", "onnxruntime", "pydantic"))
    done = shell(binaries / "selector", "serve", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "pip install 'jest-selector[server]'" in done.stderr
