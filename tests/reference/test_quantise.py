"""int8 references."""

import re

import numpy as np
import onnx
import pytest
import torch
from selector_tools import cli
from selector_tools.export.bundle_writer import export_learner, export_reference
from selector_tools.reference.int8 import own_scores, quantise_reference
from support.model import TwoTower, samples, source, write_tokenizer
from support.pools import arrays

from selector_server.encoding import bundle
from selector_server.errors import BundleError


class Deep(TwoTower):
    """Wide enough that int8 is worth anything; `outlier` is the size of a row that is not used."""

    def __init__(self, outlier=1.0):
        super().__init__(0)
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.first, self.second = torch.nn.Linear(192, 256), torch.nn.Linear(255, 16)
        with torch.no_grad():
            self.first.weight[0] *= outlier

    def encode_image(self, images):
        hidden = torch.nn.functional.gelu(self.first(images.flatten(1)))
        return self.second(torch.nn.functional.layer_norm(hidden[:, 1:], (255,)))


def exported(folder, module):
    return export_reference(source("deep", module.eval(), write_tokenizer(folder / "t.json")), folder / "fp32").bundle


def test_an_int8_variant_ranks_as_the_original(tmp_path):
    original, (pixels, tokens) = exported(tmp_path, Deep()), samples(300)
    small, correlation = quantise_reference(original, tmp_path / "int8", pixels, tokens.astype(np.int64))
    assert 0.99 <= correlation < 1
    manifest = small.manifest
    assert manifest.precision == "int8"
    assert bundle.load(tmp_path / "int8", "reference") == small
    assert small.fingerprint != original.fingerprint
    kept = ("name", "width", "image", "text", "loss", "logit_scale", "logit_bias")
    assert all(getattr(manifest, name) == getattr(original.manifest, name) for name in kept)
    assert small.tokenizer_digest == original.tokenizer_digest
    operators = {node.op_type for node in onnx.load(tmp_path / "int8" / "image.onnx").graph.node}
    assert "MatMulInteger" in operators
    assert not operators & {"Gemm"}
    sizes = [(place / "image.onnx").stat().st_size for place in (tmp_path / "fp32", tmp_path / "int8")]
    assert sizes[1] < sizes[0]
    a, b = (own_scores(each, pixels, tokens.astype(np.int64)) for each in (original, small))
    assert np.abs(a - b).max() < 0.2 * np.ptp(a)


def test_one_huge_row_spoils_the_scale_and_nothing_is_written(tmp_path):
    original, (pixels, tokens) = exported(tmp_path, Deep(1e4)), samples(300)
    with pytest.raises(BundleError, match=r"rank correlation with fp32 is .*must be at least 0\.99"):
        quantise_reference(original, tmp_path / "int8", pixels, tokens.astype(np.int64))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["fp32", "t.json"]


def test_only_a_reference_in_fp32_can_be_quantised(tmp_path):
    pixels, tokens = samples(10)
    learner = export_learner(source("deep", Deep().eval()), tmp_path / "learner").bundle
    half = export_reference(source("deep", Deep().eval()), tmp_path / "fp16", precision="fp16").bundle
    for each in (learner, half):
        with pytest.raises(BundleError, match="only a reference in fp32"):
            quantise_reference(each, tmp_path / "int8", pixels, tokens.astype(np.int64))


def test_the_command_tells_what_it_costs_and_saves(capsys, tmp_path):
    exported(tmp_path, Deep())
    arrays(tmp_path / "p.npz", 300)
    command = ["reference", "quantise", "--reference", tmp_path / "fp32", "--pool", tmp_path / "p.npz"]
    assert cli.main([str(part) for part in [*command, "--out", tmp_path / "int8", "--samples", 200]]) == 0
    out = capsys.readouterr().out
    assert re.search(r"rank correlation with fp32: 0\.99\d\d on 200 pairs", out)
    assert re.search(r"AUC 0\.\d+ \(before 0\.\d+\)", out)
    assert "times as fast (median of 7 runs in turns)" in out


@pytest.mark.parametrize(
    ("more", "mistake"),
    [
        (["--samples", "99"], "--samples"),
        (["--out", "p.npz"], "--out"),
        (["--reference", "nowhere"], "nowhere"),
        (["--pool", "nowhere"], "--pool"),
    ],
)
def test_mistakes_print_one_line_and_exit_2(capsys, tmp_path, monkeypatch, bundles, more, mistake):
    monkeypatch.chdir(tmp_path)
    arrays(tmp_path / "p.npz", 3)
    common = ["--reference", str(bundles.reference_path), "--pool", "p.npz", "--out", "int8"]
    assert cli.main(["reference", "quantise", *common, *more]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert mistake in err
