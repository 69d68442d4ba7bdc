"""Bundles that cannot be trusted: refused at the start, by file or field."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from selector_proto import safetensors
from selector_proto.safetensors import TensorView
from selector_tools.export.bundle_writer import export_reference
from support.model import TwoTower, source

from selector_server.encoding import bundle


def copy_of(source: Path, target: Path, **changed) -> Path:
    """A bundle with changed files (by stem) whose digests are right, or fields of the manifest."""
    shutil.copytree(source, target)
    manifest = json.loads((target / "manifest.json").read_text())
    for name, value in changed.items():
        file = next((f for f in manifest["files"] if Path(f).stem == name), None)
        if file is None or not isinstance(value, bytes):
            manifest[name] = value
        else:
            (target / file).write_bytes(value)
            manifest["files"][file] = bundle.digest_of(target / file)
    (target / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return target


def weights_file(path: Path, change) -> bytes:
    """The bundle's weights after `change` to a mapping from name to float32 array."""
    views = safetensors.decode(memoryview((path / "weights.safetensors").read_bytes()))
    arrays = {name: np.frombuffer(v.data, "<f4").reshape(v.shape).copy() for name, v in views.items()}
    change(arrays)
    views = {name: TensorView("F32", a.shape, memoryview(a.reshape(-1).view(np.uint8))) for name, a in arrays.items()}
    return b"".join(safetensors.encode(views))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def corrupt_file(models, path):
    flip(copy_of(models.learner_path, path) / "image.onnx")


def missing_file(models, path):
    (copy_of(models.learner_path, path) / "text.onnx").unlink()


def broken_manifest(models, path):
    (copy_of(models.learner_path, path) / "manifest.json").write_text('{\n"format": 1,\n"name": \n}')


def manifest_without_tower(models, path):
    copy_of(models.learner_path, path)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["files"]["text.onnx"]
    (path / "manifest.json").write_text(json.dumps(manifest))


def escaping_file(models, path):
    copy_of(models.learner_path, path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../../etc/passwd"] = "0" * 64
    (path / "manifest.json").write_text(json.dumps(manifest))


def weights_without(name):
    def build(models, path):
        weights = weights_file(models.learner_path, lambda arrays: arrays.pop(name))
        copy_of(models.learner_path, path, weights=weights)

    return build


def nan_weights(models, path):
    def change(arrays):
        arrays["text.bias"][3] = np.nan

    copy_of(models.learner_path, path, weights=weights_file(models.learner_path, change))


def unlisted_file(models, path):
    (copy_of(models.learner_path, path) / "image.onnx.data").write_bytes(b"weights from nowhere")


def of_the_future(models, path):
    graph = onnx.load(models.learner_path / "image.onnx")
    for opset in graph.opset_import:
        opset.version = 99
    copy_of(models.learner_path, path, image=graph.SerializeToString())


def changed(**files):
    return lambda models, path: copy_of(models.learner_path, path, **files)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda models, path: path.write_text("a file"), "must be a folder with a manifest.json"),
        (corrupt_file, "image.onnx: SHA-256 is "),
        (missing_file, "text.onnx; No such file"),
        (broken_manifest, "Invalid JSON"),
        (manifest_without_tower, "must list text.onnx"),
        (escaping_file, "must be a plain file name"),
        (changed(format=2), "format is 2"),
        (changed(role="reference", logit_scale=1.0), "role is reference; must be learner"),
        (changed(unheard_of=1), "unheard_of is 1"),
        (changed(width=0), "width is 0"),
        (changed(width=17), "must take what the manifest says"),
        (changed(image={"height": 9, "width": 8, "channels": 3}), "must take what the manifest says"),
        (changed(text={"max_tokens": 6, "vocabulary": 6400}), "must take what the manifest says"),
        (unlisted_file, "must list image.onnx.data"),
        (changed(logit=None), "logit is missing"),
        (changed(parameters={}), "must name each weight input of the graphs once"),
        (changed(image=b"no graph"), "ONNX graph is "),
        (of_the_future, "opset"),
        (changed(tokenizer=b"{}"), "tokenizer is "),
        (changed(weights=b"no safetensors"), "weights is "),
        (weights_without("image.weight"), "parameter image.weight is missing"),
        (weights_without("logit_scale"), "parameter logit_scale is missing"),
        (nan_weights, "parameter text.bias is NaN or infinite"),
    ],
)
def test_a_bundle_that_cannot_be_trusted(serve, bundles, tmp_path, build, named):
    path = tmp_path / "bundle"
    build(bundles, path)
    assert named in serve("--learner", path)


def test_bundles_in_the_wrong_place_or_of_another_input(serve, bundles, tmp_path):
    assert "role is learner; must be reference" in serve("--reference", bundles.learner_path)
    other = tmp_path / "other"
    export_reference(source("other", TwoTower(3), loss="softmax"), other)
    line = serve("--learner", bundles.learner_path, "--reference", other)
    assert "must have the learner's loss" in line
