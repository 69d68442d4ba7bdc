"""What can be said of the image without building it; `make image-test` builds it."""

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support import programs

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "Dockerfile"
LOCKS = ROOT / "deploy" / "image"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions() -> list[tuple[str, str]]:
    """Name and arguments of each, in order; of a line that goes on, the whole."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def given(name: str) -> list[str]:
    return [rest for one, rest in instructions() if one == name]


def requirements(text: str) -> dict[str, Requirement]:
    """Those of a requirements file or of constraints.txt by name, without hashes and comments."""
    lines = (re.split(r"\s(?:\\|#|--hash)", line)[0].strip() for line in text.splitlines())
    found = [Requirement(line) for line in lines if re.match(r"[A-Za-z0-9]", line)]
    return {canonicalize_name(one.name): one for one in found}


def locked(name: str) -> dict[str, str]:
    """Versions by package of a file with hashes, each of which is checked to be pinned and to have a hash."""
    text = (LOCKS / f"requirements-{name}.txt").read_text()
    for block in re.split(r"\n(?=[A-Za-z0-9])", text)[1:]:
        assert re.match(r"[\w.-]+==[\w.]+ \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n?)+", block), block
    assert "://" not in text
    return {name: str(one.specifier).removeprefix("==") for name, one in requirements(text).items()}


def pins() -> dict[str, str]:
    constraints = requirements((ROOT / "constraints.txt").read_text())
    return {name: str(one.specifier).removeprefix("==") for name, one in constraints.items()}


def test_it_lints_clean():
    hadolint = programs.required("hadolint")
    done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_its_targets_its_base_and_its_stages():
    stages = [re.fullmatch(r"(\S+) AS ([a-z-]+)", stage).groups() for stage in given("FROM")]
    names = [name for _, name in stages]
    assert {"cpu", "gpu"} <= set(names)
    assert names[-1] == "cpu", "the target of a build that names none"
    for number, (base, _) in enumerate(stages):
        assert base == "${BASE}" or base in names[:number]
    sources = [match[1] for rest in given("COPY") if (match := re.match(r"--from=(\S+)", rest))]
    assert set(sources) <= set(names), "a stage may not copy from an image"
    assert instructions()[0] == ("ARG", "BASE=python:3.11-slim")
    assert "latest" not in DOCKERFILE.read_text()


def test_how_it_starts_needs_neither_root_nor_a_shell():
    assert given("USER") == ["10001:10001"]
    assert given("STOPSIGNAL") == ["SIGTERM"]
    assert given("EXPOSE") == ["50051 9464"]
    [entry], [command], [health] = given("ENTRYPOINT"), given("CMD"), given("HEALTHCHECK")
    assert json.loads(entry) + json.loads(command) == ["selector", "serve"]
    assert json.loads(health.partition("CMD ")[2]) == ["selector", "health"]


def test_it_is_told_no_secrets_and_takes_only_what_it_needs():
    names = {re.split(r"[= ]", rest)[0] for rest in given("ARG")}
    assert names == {"BASE", "PIP_FIND_LINKS", "TORCH_INDEX"}
    for name, rest in instructions():
        assert not re.search(r"(?i)passw|secret|token|credential|api.?key", rest), (name, rest)
        assert name != "ADD"
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert ignored[0] == "*", "a list of what goes in, not of what stays out"
    assert not {"!.git", "!tests", "!examples", "!bundles"} & set(ignored)


@pytest.mark.parametrize(("name", "extra"), [("cpu", "server"), ("gpu", "server-gpu")])
def test_locked_requirements_are_what_the_project_asks_for(name, extra):
    lock, constraints = locked(name), pins()
    assert "torch" not in lock, "its index is an argument"
    assert "torch" in constraints, "its version is not"
    wanted = [Requirement(r) for key in (None, extra, "traces") for r in _dependencies(key)]
    for one in wanted:
        version = constraints[one.name] if one.name == "torch" else lock[canonicalize_name(one.name)]
        assert one.specifier.contains(version), f"{one} but {version}: make lock"
    differing = {n: (v, constraints[n]) for n, v in lock.items() if constraints.get(n, v) != v}
    assert not differing, "make lock"
    assert {n for n in lock if n.startswith("onnxruntime")} == {"onnxruntime" if name == "cpu" else "onnxruntime-gpu"}
    assert any(n.startswith("nvidia-") for n in lock) == (name == "gpu")


def test_locked_build_requirements_are_what_the_build_asks_for():
    lock = locked("build")
    for one in map(Requirement, PROJECT["build-system"]["requires"]):
        assert one.specifier.contains(lock[one.name]), "make lock"


def test_gpu_requirements_and_torch_agree(tmp_path):
    """For real, from their metadata: nothing is downloaded but that, and no GPU image is built here."""
    wanted = f"torch=={pins()['torch']}"
    platform = ["--python-platform", "x86_64-manylinux_2_28", "--python-version", "3.11"]
    uv = programs.required("uv")
    command = [uv, "pip", "install", "--dry-run", "--target", tmp_path, *platform, "--only-binary", ":all:"]
    done = subprocess.run(
        [*command, "--requirement", LOCKS / "requirements-gpu.txt", wanted],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^ \+ ([\w.-]+)==(\S+)$", done.stderr, re.MULTILINE))
    assert found == locked("gpu") | {"torch": pins()["torch"]}, "torch asks for more than is locked: make lock"


@pytest.mark.parametrize(
    ("engine", "start", "end"),
    [
        ("docker", "docker build --tag my:tag ", " ."),
        ("/opt/podman", "/opt/podman build --format docker --tag my:tag ", " ."),
        ("./build-it", "./build-it . my:tag ", ""),
    ],
)
def test_make_image_calls_an_engine_or_a_script(engine, start, end):
    settings = [
        f"ENGINE={engine}",
        "TARGET=gpu",
        "TAG=my:tag",
        "SOURCE=https://my.org",
        "IMAGE_FLAGS=--build-arg BASE=b",
    ]
    # As a person types it: a make that runs the tests leaves its flags to those it starts.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    make = ["make", "-n", "image", *settings]
    done = subprocess.run(make, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    command = " ".join(done.stdout.replace("\\\n", " ").split())
    label = "--label org.opencontainers.image"
    labels = rf"{label}.version=\d+\.\d+\.\d+ {label}.revision=\S+ {label}.source=https://my.org"
    assert re.fullmatch(rf"{re.escape(start)}--target gpu {labels} --build-arg BASE=b{re.escape(end)}", command), (
        command
    )


def _dependencies(extra: str | None) -> list[str]:
    project = PROJECT["project"]
    return project["dependencies"] if extra is None else project["optional-dependencies"][extra]
