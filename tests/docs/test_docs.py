"""The code in README and docs, run as it stands against a real sidecar and a real Redis-protocol server."""

import re
import shlex
from pathlib import Path

import pytest
from support.model import TwoTower, samples

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STEPS = 25


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def running(start_sidecars, bundles, redis_url):
    """A sidecar as the README starts it, for the run that its lines name."""
    with start_sidecars() as start:
        yield start(bundles.flags | {"redis": redis_url, "run": "my-run"})


def run(code: str, running, redis_url: str, **given) -> dict:
    code = code.replace("redis://localhost:6379", redis_url).replace("localhost:50051", running.address)
    names = dict(given)
    exec(compile(code, "docs", "exec"), names)
    return names


def test_the_readmes_five_lines_train_with_selected_batches_and_published_weights(running, redis_url):
    [code] = blocks(PAGES[0])
    loop = code[code.index("selector = ") :].strip()
    assert len(loop.splitlines()) == 5
    sizes = []
    super_batches = (
        {"images": images, "texts": texts} for images, texts in (samples(40, seed) for seed in range(STEPS))
    )
    names = run(
        code,
        running,
        redis_url,
        super_batches=super_batches,
        model=TwoTower(7),
        train_step=lambda batch: sizes.append((len(batch["images"]), len(batch["texts"]))),
    )
    assert sizes == [(8, 8)] * STEPS
    assert names["publisher"].close()
    assert names["publisher"].published + names["publisher"].superseded == 3
    statistics = names["selector"].statistics
    names["selector"].close()
    assert (statistics.requests, statistics.candidates, statistics.fallbacks.total()) == (STEPS, 40 * STEPS, 0)


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_every_block_of_the_docs_runs(page, running, redis_url, capsys):
    for code in blocks(page):
        run(code, running, redis_url)
        assert capsys.readouterr().out.strip()


def test_every_link_to_a_file_leads_somewhere():
    for page in [*PAGES, *sorted((ROOT / "docs" / "adr").glob("*.md")), ROOT / "examples" / "README.md"]:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_setting_named_in_the_docs_exists():
    from selector_server.config import Config

    for page in PAGES:
        for flag in re.findall(r"selector serve ([^`]*?)(?:\n|`|$)", page.read_text()):
            names = {name.replace("-", "_") for name in re.findall(r"--([a-z-]+)", flag)} - {"help"}
            assert names <= Config.model_fields.keys(), f"{page.name}: {flag}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_a_shell_block_is_one(page, monkeypatch):
    """As far as its parser can tell: nothing runs."""
    from selector_tools import cache, cli, info
    from selector_tools.export import command as export
    from selector_tools.reference import fit, quantise, report, score

    handlers = [(verb, "run") for verb in (export, fit, info, quantise, report, score)]
    handlers += [(cache, "run_fill"), (cache, "run_stat")]
    for module, handler in handlers:
        monkeypatch.setattr(module, handler, lambda flags: 0)
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            program, *words = shlex.split(line, comments=True) or [""]
            if program == "selector" and words[0] in ("cache", "export", "info", "reference"):
                assert cli.main(words) == 0, line
