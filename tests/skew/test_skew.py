"""The released client with the current sidecar, and the other way round: selections, shared memory and weights."""

import json
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from selector_client import Selector, WeightPublisher
from support.model import TwoTower, as_published, embed, plan, samples
from support.processes import eventually, spawn
from support.wire import some_embeddings

SIDES = ("released", "current")
RUN = "skew"
# Payloads of more than 64 KiB go through shared memory.
PIXELS, TOKENS = samples(500)


@pytest.fixture(scope="module")
def candidates(tmp_path_factory) -> Path:
    (learner_image, learner_text, *_), (reference_image, reference_text, *_) = some_embeddings(1000, 16)
    losses = np.random.default_rng(0).random((2, 10_000), dtype=np.float32)
    file = tmp_path_factory.mktemp("skew") / "candidates.npz"
    np.savez(
        file,
        pixels=PIXELS,
        tokens=TOKENS,
        learner_image=learner_image,
        learner_text=learner_text,
        reference_image=reference_image,
        reference_text=reference_text,
        learner_losses=losses[0],
        reference_losses=losses[1],
    )
    return file


@pytest.fixture(scope="module")
def sidecars(environments, start_sidecars, bundles, redis_url, tmp_path_factory):
    """One of each side; both take their weights from the same run."""
    flags = bundles.flags | {"redis": redis_url, "run": RUN, "weights_poll_seconds": 0.05}
    with start_sidecars() as start:
        started = {}
        for side in SIDES:
            folder = tmp_path_factory.mktemp("shared")
            started[side] = start(flags | {"shared_memory_dir": folder}, env=environments[side], new=True, wait=False)
        for one in started.values():
            one.wait_healthy()
        yield started


@pytest.fixture(scope="module")
def trainer(environments):
    """Runs trainer.py in the version of a side; what it printed."""

    def run(side: str, *arguments):
        program = Path(__file__).parent / "trainer.py"
        process = spawn(program, *arguments, env=environments[side], stdout=subprocess.PIPE, text=True)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        return json.loads(said)

    return run


@pytest.fixture(scope="module")
def picks(trainer, sidecars, candidates):
    """What a client of one side picks through a sidecar of another, which must have read the shared payloads: a client
    sends what cannot be read in the stream, and picks the same."""

    @cache
    def picked(client: str, server: str) -> dict[str, list[int]]:
        def shared() -> float:
            return sidecars[server].metrics()("selector_shm_payloads_total")

        before = shared()
        found = trainer(client, "select", sidecars[server].address, candidates)
        assert shared() - before == sum(form.endswith("by shared memory") for form in found) == 3
        return found

    return picked


@pytest.mark.parametrize("server", SIDES)
@pytest.mark.parametrize("client", SIDES)
def test_a_client_picks_the_same_through_an_older_and_a_newer_sidecar(client, server, picks, bundles):
    found = picks(client, server)
    assert found == picks("current", "current")
    wanted = bundles.picks(PIXELS, TOKENS, plan(100, seed=3))
    assert found["samples by stream"] == found["samples by shared memory"] == wanted
    assert {len(indices) for indices in found.values()} == {100, 200, 2000}


def test_tags_end_no_selection_through_an_older_sidecar(sidecars):
    """Version 0.1.0 refuses integers as tags, and does not know strings."""
    picks = {}
    for side in SIDES:
        for kind, tags in (("integers", np.arange(500) % 3), ("strings", ["red", None] * 250), ("none", None)):
            settings = {"policy": "joint", "seed": 3, "timeout": 30.0, "on_error": "raise"}
            with Selector(sidecars[side].address, **settings) as selector:
                picks[side, kind] = selector.select(PIXELS, TOKENS, tags=tags).indices.tolist()
    assert len(set(map(tuple, picks.values()))) == 1


def test_an_older_sidecar_knows_the_published_rule_only(sidecars, bundles):
    picks = {}
    for side in SIDES:
        with Selector(sidecars[side].address, seed=3, timeout=30.0, on_error="raise") as selector:
            picks[side] = selector.select(PIXELS, TOKENS).indices.tolist()
    assert picks["released"] == bundles.picks(PIXELS, TOKENS, plan(100, seed=3)) != picks["current"]


def test_bad_samples_end_no_trainer_through_an_older_sidecar(sidecars):
    """Version 0.1.0 leaves none out: it may pick what stands in a bad sample's place, or refuses the whole request."""
    texts, names = [f"w{1 + index % 60}" for index in range(500)], [f"s{index}" for index in range(500)]
    gaps = [None if index % 10 == 0 else text for index, text in enumerate(texts)]
    files = [b"no picture"] * 500
    for side in SIDES:
        with Selector(sidecars[side].address, seed=3, timeout=30.0) as selector:
            found = selector.select(PIXELS, gaps)
            assert found.excluded["missing"].indices.tolist() == list(range(0, 500, 10))
            assert (len(found.indices), (found.indices % 10).min() > 0) == (100, True)
            assert found.fallback == ("" if side == "current" else "wrong_answer")
            repeats = selector.select(PIXELS, TOKENS, ids=[*names[:490], *names[:10]])
            assert repeats.excluded["repeated"].indices.tolist() == list(range(490, 500))
            assert (len(repeats.indices), repeats.indices.max() < 490) == (100, True)
            broken = selector.select(files, TOKENS)
            assert broken.fallback == ("failed_precondition" if side == "current" else "invalid_argument")


def written(file: Path, model: TwoTower) -> Path:
    """The model's weights, with a canary that a sidecar checks them by."""
    pixels, tokens = PIXELS[:4], TOKENS[:4]
    seen = embed(model, pixels, tokens)
    canary = {"pixels": pixels, "tokens": tokens, "image": seen.image.numpy(), "text": seen.text.numpy()}
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    np.savez(file, **state, **{f"canary_{name}": array for name, array in canary.items()})
    return file


def test_both_sidecars_take_the_weights_of_both_publishers(trainer, sidecars, bundles, redis_url, tmp_path):
    """One publisher takes the run over from the other, as when a trainer goes on with another version."""
    for step, side in enumerate(("released", "current", "released"), 1):
        model = TwoTower(step).eval()
        version = trainer(side, "publish", redis_url, RUN, step, written(tmp_path / f"{step}.npz", model))
        wanted = bundles.picks(PIXELS, TOKENS, plan(100, seed=3), learner=as_published(model))
        for name, server in sidecars.items():
            wait_served(server, version)
            with Selector(server.address, policy="joint", seed=3, on_error="raise", timeout=30.0) as selector:
                found = selector.select(PIXELS, TOKENS)
            assert found.indices.tolist() == wanted, (side, name)
            assert (found.weights_version, found.weights_step) == (version, step)


def test_a_partial_version_is_refused_by_name_where_it_is_not_known(sidecars, redis_url):
    """And whole ones are taken by both, before and after."""
    model = TwoTower(9).eval()
    model.image.requires_grad_(False)
    with WeightPublisher(redis_url, RUN, skip_frozen=True) as publisher:

        def publish(step: int) -> int:
            assert publisher.publish(step, model)
            assert publisher.flush(20)
            return publisher.last_version

        whole = publish(11)
        for server in sidecars.values():
            wait_served(server, whole)
        model.text.requires_grad_(True)
        partial = publish(12)
        wait_served(sidecars["current"], partial)
        released = sidecars["released"]
        eventually(lambda: 'no field named "base_version"' in released.status().last_error, 20, lambda: released.text)
        assert released.status().serving.version == whole
        model.image.requires_grad_(True)
        again = publish(13)
        for server in sidecars.values():
            wait_served(server, again)


def wait_served(server, version: int) -> None:
    eventually(lambda: server.status().serving.version == version, 20, lambda: server.text)
