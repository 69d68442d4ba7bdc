"""The CPU image, really run by docker or podman: `make image-test`."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from selector_client import ModelEmbeddings, Selector
from support.containers import IMAGE, RESTRICTED, RUNNER, Container, engine
from support.processes import SlowClient, listens

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "deploy.md"
MEMORY = 1 << 30

pytestmark = [
    pytest.mark.skipif(not IMAGE, reason="NO IMAGE TO RUN: make image-test builds one, with docker or podman"),
    pytest.mark.timeout(900),
]


@pytest.fixture
def container():
    """Starts containers that end with the test."""
    started = []

    def start(*flags, **settings) -> Container:
        started.append(Container(*flags, **settings))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture(scope="module")
def running(bundles):
    """One with both models, restricted as a cluster may run it. Tests leave it as they find it."""
    mounts = [f"--volume={bundles.learner_path}:/learner:ro", f"--volume={bundles.reference_path}:/reference:ro"]
    one = Container(*mounts, learner="/learner", reference="/reference")
    try:
        one.wait_healthy()
        yield one
    finally:
        one.stop()


def test_the_page_is_followed_to_the_letter():
    busy = [port for port in (50051, 9464) if listens(port)]
    assert not busy, f"ports {busy} are in use, which docs/deploy.md publishes"
    said = []
    try:
        for block in re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
            script = re.sub(r"(?m)^docker ", f"{RUNNER} ", block)
            done = subprocess.run(
                ["bash", "-euxo", "pipefail", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            said.append(done.stdout + done.stderr)
    finally:
        engine("rm", "--force", "selector", check=False)
    text = "".join(said)
    assert re.search(r"^200 of 1000 candidates, first( \d+){3}$", text, re.MULTILINE)
    assert re.search(r"^200 of 1000 candidates through shared memory$", text, re.MULTILINE)
    assert re.search(r"^SERVING$", text, re.MULTILINE)
    assert re.search(r"draining.*\n.*stopped$", text, re.MULTILINE)
    assert json.loads((ROOT / "sbom.json").read_text())["bomFormat"] == "CycloneDX"


def test_a_selection_from_outside(running, bundles):
    from support.model import samples

    images, texts = samples(400, 1)
    with Selector(running.address, filter_ratio=0.75, seed=3, on_error="raise") as selector:
        picks = selector.select(images, texts)
        assert len(set(picks.indices)) == 100
        assert picks.objective > picks.objective_uniform
        info = selector.connect()
    assert (info.learner.name, info.reference.name, info.device) == ("tiny", "tiny-ref", "cpu")
    assert running.metrics()("selector_build_info", version=info.server_version, device="cpu", provider=_provider(info))


def test_its_health_check_is_answered_inside(running):
    image = json.loads(engine("inspect", IMAGE).stdout)[0]
    # Docker and podman keep it in different places.
    check = image["Config"].get("Healthcheck") or image["Healthcheck"]
    kind, *command = check["Test"]
    assert (kind, command) == ("CMD", ["selector", "health"])
    assert running.execute(*command).stdout == "SERVING\n"
    failed = running.execute(*command, "127.0.0.1:1", check=False)
    assert failed.returncode == 1
    assert "selector health: 127.0.0.1:1: UNAVAILABLE" in failed.stderr


def test_who_it_is_and_what_it_may(running):
    code = """
import os, tempfile
print(os.getuid(), os.getgid(), os.getenv("HOME"))
status = dict(line.split(":\\t") for line in open("/proc/1/status") if ":\\t" in line)
print(status["Uid"].split()[1], status["CapEff"].strip(), status["NoNewPrivs"].strip())
for folder in ("/", "/opt/selector", "/usr/share/selector", "/etc"):
    try:
        open(folder + "/written", "w")
    except OSError as error:
        print(folder, error.errno in (13, 30))
import pathlib
limits = [pathlib.Path("/sys/fs/cgroup/memory.max"), pathlib.Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
print(next(file.read_text().strip() for file in limits if file.exists()))
print(open("/proc/1/cmdline").read().split("\\0")[-3:])
"""
    assert running.python(code).splitlines() == [
        "10001 10001 /tmp",
        "10001 0000000000000000 1",
        *(f"{folder} True" for folder in ("/", "/opt/selector", "/usr/share/selector", "/etc")),
        str(MEMORY),
        "['/opt/selector/bin/selector', 'serve', '']",
    ]


def test_it_runs_without_any_folder_to_write_to(container):
    flags = ["--read-only-tmpfs=false"] if "podman" in RUNNER else []
    one = container(*flags)
    one.wait_healthy()
    assert "Read-only file system" in one.execute("python", "-c", "open('/tmp/x', 'w')", check=False).stderr
    z = np.random.default_rng(0).standard_normal((4, 64, 16), dtype=np.float32)
    with Selector(one.address, on_error="raise") as selector:
        picks = selector.select_embeddings(*(ModelEmbeddings(*pair, logit_scale=10.0) for pair in (z[:2], z[2:])))
    assert len(picks.indices) == 12


def test_there_is_no_installer(running):
    code = """
import importlib.util, pathlib, subprocess, sys
print(*[name for name in ("pip", "ensurepip") if importlib.util.find_spec(name)])
base = sys.base_prefix + "/bin/python3"
print(subprocess.run([base, "-m", "pip", "--version"], capture_output=True, text=True).returncode)
folders = [folder for folder in sys.path + ["/usr/bin", "/usr/local/bin", "/opt/selector/bin"] if folder]
print(*[file for folder in folders for file in pathlib.Path(folder).glob("pip*") if file.name != "pipes.py"])
"""
    assert running.python(code) == "\n1\n\n"


def test_its_bill_of_materials_is_what_is_installed(running):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = running.python("print(open('/usr/share/selector/sbom.json').read())")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    code = """
import json, platform
from importlib.metadata import distributions
from packaging.utils import canonicalize_name
status = open("/var/lib/dpkg/status").read().split("\\n\\n")
print(json.dumps({
    "pypi": sorted([canonicalize_name(one.metadata["Name"]), one.version] for one in distributions()),
    "debian": sum(" ok installed" in one for one in status),
    "python": platform.python_version(),
}))
"""
    installed = json.loads(running.python(code))
    listed = [bill["metadata"]["component"], *bill["components"]]
    of_kind = {kind: [one for one in listed if one["purl"].startswith(f"pkg:{kind}/")] for kind in ("pypi", "deb")}
    assert sorted([one["name"], one["version"]] for one in of_kind["pypi"]) == installed["pypi"]
    assert len(of_kind["deb"]) == installed["debian"] > 50
    assert [one["version"] for one in listed if one["name"] == "python"] == [installed["python"]]
    torch = next(version for name, version in installed["pypi"] if name == "torch")
    assert torch.endswith("+cpu"), "not the build without CUDA"


def test_its_compiled_code_names_no_time(running):
    code = """
import pathlib, sys
compiled = list(pathlib.Path(sys.prefix).rglob("*.pyc"))
print(len(compiled) > 3000, {file.open("rb").read(8)[4:] for file in compiled})
"""
    assert running.python(code) == "True {b'\\x01\\x00\\x00\\x00'}\n"


def test_its_labels(running):
    labels = json.loads(engine("inspect", IMAGE).stdout)[0]["Config"]["Labels"]
    prefix = "org.opencontainers.image."
    assert labels[prefix + "licenses"] == "Apache-2.0"
    assert labels[prefix + "version"] == running.info().server_version
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert labels[prefix + "revision"].removesuffix("-dirty") == (done.stdout.strip() or "unknown")


def test_sigterm_lets_a_running_request_finish_and_exits_0(container):
    one = container()
    one.wait_healthy()
    client = SlowClient(one)
    one.wait_pending(1)
    one.signal(signal.SIGTERM)
    time.sleep(1)
    assert one.running
    assert len(client.finish().indices) > 0
    one.hang_up()
    assert one.exit_status() == 0
    assert one.text.rstrip().endswith("stopped")


def test_sigterm_before_it_serves_ends_it_at_once(container):
    one = container()
    for _ in range(100):
        if not one.running:
            break
        engine("kill", "--signal", "TERM", one.name, check=False)  # before Python runs, the kernel drops it
        time.sleep(0.1)
    assert one.exit_status(5) == 128 + signal.SIGTERM
    assert "serving on" not in one.text


def test_a_wrong_setting_ends_it_with_one_line():
    done = engine("run", "--rm", *RESTRICTED, "--env", "SELECTOR_MAX_CHUNKS=none", IMAGE, check=False)
    assert done.returncode == 2
    assert re.search(r"^selector serve: max_chunks is 'none'", done.stderr, re.MULTILINE)


def test_too_little_memory_ends_it(container):
    one = container("--memory=96m", "--memory-swap=96m")
    assert one.exit_status() == 137


@pytest.mark.skipif(os.getuid() != 0, reason="NOT ROOT: needs a folder of user 10001")
def test_a_socket_and_shared_memory_of_another_user(container):
    folder = Path(f"/dev/shm/selector-test-{os.getpid()}")
    folder.mkdir()
    os.chown(folder, 10001, 10001)
    try:
        one = container(
            f"--volume={folder}:{folder}", listen=f"unix:{folder}/socket", shared_memory_dir=folder / "payloads"
        )
        z = np.random.default_rng(0).standard_normal((4, 1000, 64), dtype=np.float32)
        with Selector(f"unix:{folder}/socket", on_error="raise", shared_memory=True) as selector:
            selector.connect()
            picks = selector.select_embeddings(*(ModelEmbeddings(*pair, logit_scale=10.0) for pair in (z[:2], z[2:])))
        assert len(picks.indices) == 200
        assert one.execute("selector", "health").stdout == "SERVING\n"
    finally:
        subprocess.run(["rm", "-rf", folder], check=True)


def _provider(info) -> str:
    return info.learner.providers[0]
