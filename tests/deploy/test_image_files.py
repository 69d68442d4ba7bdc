"""The two programs that run while the image is built: what they remove, and the bill of materials that they write."""

import json
import py_compile
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

SCRIPTS = Path(__file__).resolve().parents[2] / "deploy" / "image"


def run(script: str, *arguments) -> None:
    subprocess.run([sys.executable, SCRIPTS / script, *map(str, arguments)], check=True, timeout=100)


@pytest.fixture
def environment(tmp_path) -> Path:
    """Site-packages of an environment with packages as they are: code, tests, code for testing, headers."""
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    for file in (
        "numpy/__init__.py",
        "numpy/testing/__init__.py",
        "numpy/tests/test_a.py",
        "numpy/lib/tests/data/tests/test_b.py",
        "torch/__init__.py",
        "torch/include/a.h",
        "tests/__init__.py",
    ):
        (packages / file).parent.mkdir(parents=True, exist_ok=True)
        (packages / file).write_text("x = 1\n")
    py_compile.compile(packages / "numpy" / "__init__.py")  # names its time: somebody compiled it before
    (packages / "numpy" / "template.py").write_text("def {{ name }}():\n")
    return packages


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_tidying_removes_tests_and_headers_and_compiles_the_rest(environment):
    run("tidy.py", environment.parents[2])
    kept = files(environment)
    assert {name for name in kept if not name.endswith(".pyc")} == {
        "numpy/__init__.py",
        "numpy/template.py",
        "numpy/testing/__init__.py",
        "torch/__init__.py",
        "tests/__init__.py",  # a package of that name is somebody's
    }
    compiled = {name: code for name, code in kept.items() if name.endswith(".pyc")}
    assert len(compiled) == 4
    assert {code[4:8] for code in compiled.values()} == {b"\x01\0\0\0"}, "they name the hash of their source, unchecked"


def test_a_bill_of_materials_is_valid_complete_and_the_same_again(tmp_path):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    run("sbom.py", tmp_path / "one.json")
    run("sbom.py", tmp_path / "two.json")
    text = (tmp_path / "one.json").read_text()
    assert text == (tmp_path / "two.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    product = bill["metadata"]["component"]
    assert product["name"] == "jest-selector"
    listed = {(one["name"], one["version"]) for one in bill["components"] if one["purl"].startswith("pkg:pypi/")}
    installed = {(canonicalize_name(one.metadata["Name"]), one.version) for one in distributions()}
    assert listed | {(product["name"], product["version"])} == installed
    references = {one["bom-ref"] for one in bill["components"]} | {product["bom-ref"]}
    edges = {one["ref"]: one["dependsOn"] for one in bill["dependencies"]}
    assert set(edges) <= references
    assert {to for ends in edges.values() for to in ends} <= references
    assert any(to.startswith("pkg:pypi/numpy@") for ref, ends in edges.items() for to in ends if "onnxruntime" in ref)
    debian = [one for one in bill["components"] if one["purl"].startswith("pkg:deb/debian/")]
    assert bool(debian) == Path("/var/lib/dpkg/status").exists()


def test_debian_packages_that_are_gone_are_not_listed(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import sbom

    status = (
        "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9+deb12u10\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1:1.0\n"
    )
    assert [one["purl"] for one in sbom.debian_packages(status)] == [
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64"
    ]
