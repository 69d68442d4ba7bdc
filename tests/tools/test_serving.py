"""`selector bench serve`, `cache` and `prefilter`, with a model too small to say anything."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from selector_tools import cli
from selector_tools.bench import prefilter, sidecars
from selector_tools.bench.cache import two_epochs
from selector_tools.export.torchvision import make_importable

make_importable()
import open_clip  # noqa: E402

pytestmark = pytest.mark.usefixtures("forked_benchmarks")
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
SMALL = ["--open-clip", "tiny-served", "--image-size", "32", "--candidates", "40", "--json"]


@pytest.fixture(scope="module", autouse=True)
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    (folder / "tiny-served.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder)


def test_serve_prints_one_json_object(capsys, monkeypatch):
    monkeypatch.setattr("selector_tools.bench.serve.TRIFLES", 200)
    monkeypatch.setattr("selector_tools.bench.serve.DRAWN", 500)
    assert cli.main(["bench", "serve", *SMALL, "--repeats", "2", "--busy", "1"]) == 0
    result = json.loads(capsys.readouterr().out)
    seconds = result["seconds"]
    contenders = ("sidecar", "files", "bare", "constants", "draw", "sidecar, busy", "draw, busy")
    assert {name: len(runs) for name, runs in seconds.items()} == dict.fromkeys(contenders, 2)
    for of, name in (("slowdown", "sidecar"), ("slowdown_draw", "draw")):
        pairs = zip(seconds[f"{name}, busy"], seconds[name], strict=True)
        assert result[of] == pytest.approx(sum(busy / alone for busy, alone in pairs) / 2)
    assert result["ratio_to_constants"] == pytest.approx(
        sum(a / b for a, b in zip(seconds["constants"], seconds["sidecar"], strict=True)) / 2
    )
    assert result["throughput_ratio_jpeg"] > 0
    assert {"encode_learner", "encode_reference", "receive", "sample"} <= result["stage_seconds"].keys()
    assert result["overhead_us_per_sample"] > 0


def test_cache_prints_one_json_object(capsys):
    assert cli.main(["bench", "cache", *SMALL, "--repeats", "2"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["first_epoch"]["cached"] == 0
    assert result["second_epoch"]["cached"] == 80
    assert result["second_epoch"]["stage_seconds"].get("encode_reference", 0.0) == 0.0
    assert result["second_epoch_ratio"] > 0
    assert result["write_seconds"] > 0


@pytest.fixture(scope="module")
def one_export(tmp_path_factory):
    """Both tests of the prefilter serve the same bundles, which the first one exports."""
    folder, export, made = tmp_path_factory.mktemp("prefilter"), prefilter._bundles, []

    def bundles(flags, _):
        if not made:
            made.append(export(flags, folder))
        return made[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefilter, "_bundles", bundles)
        yield


@pytest.mark.usefixtures("one_export")
def test_loader_tells_of_the_largest_ratio_that_hides(capsys, monkeypatch):
    monkeypatch.setattr("selector_tools.bench.loader_runs.WARM_UP", 2)
    assert cli.main(["bench", "loader", "--batch", "16", "--steps", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    tables = [result[name] for name in ("third", "half", "most")]
    assert [table["decodes_saved"] for table in tables] == pytest.approx([1 / 3, 0.5, 0.8], abs=0.01)
    hidden = [table for table in tables if table["scoring_over_step"] <= 0.8] or tables[:1]
    assert {name: result[name] for name in hidden[-1]} == hidden[-1]


def test_prefilter_counts_what_is_left_out(capsys):
    assert cli.main(["bench", "prefilter", *SMALL, "--repeats", "3"]) == 0
    result = json.loads(capsys.readouterr().out)
    some, every = result["with_prefilter"], result["without"]
    # Four of 40 candidates are picked, and two and a half times as many go on.
    assert (some["encoded"], every["encoded"]) == ([20] * 3, [80] * 3)
    assert (some["decoded"], every["decoded"]) == ([10] * 3, [40] * 3)
    assert (result["encoded_ratio"], result["decoded_ratio"]) == (0.25, 0.25)
    ratios = [a / b for a, b in zip(some["seconds"], every["seconds"], strict=True)]
    assert result["seconds_ratio"] == sorted(ratios)[1]
    assert 0 < result["picks_in_common"] <= 1
    assert "encode_reference" not in some["stage_seconds"] | every["stage_seconds"]


@pytest.mark.usefixtures("one_export")
def test_a_prefilter_that_leaves_nothing_out_has_every_pick_in_common(capsys):
    assert cli.main(["bench", "prefilter", *SMALL, "--repeats", "2", "--prefilter", "10"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["encoded_ratio"], result["decoded_ratio"], result["picks_in_common"]) == (1, 1, 1)


class LateSidecar:
    """It writes what it scored only when somebody waits for it, as one whose disk is slow."""

    def __init__(self):
        self.order, self._scored, self._written = [], [], set()

    def select(self, batch):
        ids = batch["ids"]
        self.order.append(ids[0])
        self._scored += ids
        return 1.0, SimpleNamespace(cached_references=len(self._written & set(ids)), stage_seconds={})

    def wait_until_cached(self, samples):
        self._written |= set(self._scored[:samples])


def test_the_second_epoch_waits_until_its_samples_are_in_the_cache():
    late, steps = LateSidecar(), []
    first, second = two_epochs(late, [{"ids": [1, 2]}, {"ids": [3, 4, 5]}], lambda: steps.append(1))
    assert late.order == [1, 3, 1, 3]
    assert (first.summary()["cached"], second.summary()["cached"]) == (0, 5)
    assert second.seconds == [1.0, 1.0], "the wait is not measured"
    assert len(steps) == 3


def test_a_cache_that_is_never_written_is_told(monkeypatch):
    held = iter([0.0, 40.0, 40.0, 80.0])
    monkeypatch.setattr(sidecars, "_metric", lambda port, name: [SimpleNamespace(value=next(held, 80.0))])
    sidecar = sidecars.TimedSidecar(SimpleNamespace(), Path("sidecar.log"))
    sidecar.wait_until_cached(80)
    assert next(held, None) is None
    with pytest.raises(RuntimeError, match=r"holds 80 samples after 0\.1 s; 120 were to be written; see sidecar\.log"):
        sidecar.wait_until_cached(120, seconds=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--image-size", "40"], "--image-size is 40; must be a multiple of 16"),
        (["serve", "--busy", "257"], "--busy is 257; must be 0 to 256"),
        (["serve", "--candidates", "4"], "--candidates is 4; must be 5 to 65536"),
        (["serve", "--device", "tpu"], "--device is tpu; must be cpu, cuda or cuda:N"),
        (["serve", "--open-clip", "ViT-B-17"], "ViT-B-17"),
        (["cache", "--repeats", "0"], "--repeats is 0; must be at least 1"),
        (["prefilter", "--prefilter", "0.5"], "--prefilter is 0.5; must be 1 to 10"),
        (["prefilter", "--candidates", "9"], "--candidates is 9; must be at least 10"),
    ],
)
def test_mistakes_take_one_line(arguments, message, capsys):
    assert cli.main(["bench", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
