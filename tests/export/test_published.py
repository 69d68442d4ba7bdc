"""A low-resolution learner behind a real sidecar: the trainer publishes its full-resolution state_dict to Redis."""

import json

import numpy as np
import pytest
import torch
from selector_client import Selector, WeightPublisher
from selector_tools.export.torchvision import make_importable
from support.exports import export, inputs, randomise
from support.processes import eventually

make_importable()
import open_clip  # noqa: E402

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module", autouse=True)
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    (folder / "tiny-published.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder)


def test_full_resolution_weights_are_served_at_low_resolution(tmp_path, sidecar, redis_url, run_name):
    bundle = tmp_path / "B"
    assert export("--open-clip", "tiny-published", "--image-size", 32, "--out", bundle) == 0
    server = sidecar({"learner": bundle, "redis": redis_url, "run": run_name})
    trainer = randomise(open_clip.create_model("tiny-published"), 3)
    with WeightPublisher(redis_url, run_name, dtype="fp32") as publisher:
        publisher.publish(7, trainer)
        publisher.flush()
    eventually(lambda: server.status().serving.trainer_step == 7)
    pixels, tokens, images = inputs(bundle)
    settings = {"policy": "independent", "criterion": "hard-learner", "loss": "sigmoid", "draw": "top-k"}
    with Selector(server.address, sub_batch_size=len(pixels), on_error="raise", **settings) as selector:
        selection = selector.select(pixels, tokens)
    low = open_clip.create_model("tiny-published", force_image_size=32)
    state = dict(trainer.state_dict())
    open_clip.model.resize_pos_embed(state, low)
    low.load_state_dict(state)
    with torch.no_grad():
        pair = [
            z / z.norm(dim=1, keepdim=True) for z in (low.encode_image(images), low.encode_text(torch.tensor(tokens)))
        ]
        own = torch.nn.functional.softplus(-trainer.logit_scale.exp() * (pair[0] * pair[1]).sum(dim=1))
    np.testing.assert_allclose(selection.scores, own[selection.indices], atol=1e-4)
    assert float(own.std()) > 1e-2, "the scores can be told apart"
