"""Tags and fallbacks: what a trainer has is what a sidecar's inspector counts, and nothing of it ends a selection."""

import numpy as np
import pandas
import pyarrow
import pytest
from selector_client import AsyncSelector, SelectingLoader, Selector
from selector_client.loading.batch_layout import default_view
from selector_client.selecting.tags import read_tags
from selector_proto.v1 import inspection_pb2 as pb
from selector_proto.v1 import inspection_pb2_grpc as rpc
from support.model import samples
from support.processes import eventually

PIXELS, TOKENS = samples(40)


@pytest.fixture(scope="module")
def watched(start_sidecars, bundles):
    with start_sidecars() as start:
        yield start(bundles.flags | {"inspect": "true", "inspect_content": "true"})


def told(server, method: str):
    return getattr(rpc.InspectionServiceStub(server.channel), method)(getattr(pb, f"{method}Request")(), timeout=10)


def tags_of(server) -> dict[str, int]:
    return {one.name: one.candidates for one in told(server, "ListSlices").tags}


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (np.array([3, -1, 3]), [b"3", b"-1", b"3"]),
        (["red", None, ""], [b"red", b"", b""]),
        (np.array(["red", "blue", "x"]), [b"red", b"blue", b"x"]),
        ([1.0, float("nan"), 2], [b"1", b"", b"2"]),
        (["ü" * 40, b"\xff" * 70, "\ud800"], [("ü" * 32).encode(), b"", b"?"]),
        ((True, False, True), [b"True", b"False", b"True"]),
    ],
    ids=["integers", "strings", "array of strings", "gaps", "long and odd", "booleans"],
)
def test_tags_as_people_have_them(given, read):
    assert read_tags(given, 3) == read


def test_tables_have_tags_too():
    assert read_tags(pandas.Series([1, 2]), 2) == [b"1", b"2"]
    assert read_tags(pandas.Series(["a", None]), 2) == [b"a", b""]
    assert read_tags(pyarrow.array(["a", None]), 2) == [b"a", b""]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a"], "tags has 1 entries; there are 3 candidates"),
        (np.zeros((3, 2)), r"tags has shape \[3, 2\]; must be integers or strings \[B\]"),
        ("abc", r"tags has shape \[\]"),
    ],
)
def test_tags_that_are_none(given, message):
    with pytest.raises(ValueError, match=message):
        read_tags(given, 3)


def test_a_selector_sends_tags_in_every_form(watched):
    rng = np.random.default_rng(0)
    with Selector(watched.address, on_error="raise", seed=1) as selector:
        selector.select(PIXELS, TOKENS, tags=np.arange(40) % 2 + 100)
        selector.select(PIXELS, TOKENS, tags=["cat"] * 40)
    with Selector(watched.address, on_error="raise", policy="independent") as selector:
        selector.select_losses(*rng.random((2, 30), np.float32), tags=["loss"] * 30)
    wanted = {"100": 20, "101": 20, "cat": 40, "loss": 30}
    eventually(lambda: wanted.items() <= tags_of(watched).items())


async def sent_by_asyncio(address):
    async with AsyncSelector(address, on_error="raise") as selector:
        await selector.select(PIXELS, TOKENS, tags=["asyncio"] * 40)


def test_so_does_its_twin(watched):
    import asyncio

    asyncio.run(sent_by_asyncio(watched.address))
    eventually(lambda: tags_of(watched).get("asyncio") == 40)


@pytest.mark.parametrize("layout", ["columns", "samples"])
def test_a_loader_sends_the_column_of_tags(watched, layout):
    name = f"loader of {layout}"
    batch = {"images": PIXELS, "texts": TOKENS, "tags": [name] * 40}
    if layout == "samples":
        batch = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
    with Selector(watched.address, on_error="raise") as selector:
        assert len(list(SelectingLoader([batch], selector))) == 1
    eventually(lambda: tags_of(watched).get(name) == 40)


@pytest.mark.parametrize(
    "column",
    [["a"] * 39, [["a", "b"]] * 40, np.zeros((40, 3), np.int64), np.zeros(40), "a word", None, [None] * 40],
    ids=["too few", "lists", "two dimensions", "floats", "a word", "none", "missing"],
)
def test_a_column_of_that_name_may_be_something_else(column):
    assert "tags" not in default_view({"images": PIXELS, "texts": TOKENS, "tags": column})


class Foreign:
    """A selector of another kind, which knows no tags."""

    def select(self, images, texts, *, step):
        from selector_client import Selection

        return Selection(indices=np.arange(4))


def test_a_selector_of_another_kind_is_given_none():
    batch = {"images": PIXELS, "texts": TOKENS, "tags": ["a"] * 40}
    [sub_batch] = SelectingLoader([batch], Foreign())
    assert len(sub_batch["tags"]) == 4


def test_uniform_batches_are_told(watched, sidecar):
    """A sidecar that is away, and then back, hears how many there were."""
    with Selector(watched.address, timeout=20, policy="independent") as selector:
        rng = np.random.default_rng(0)
        losses = rng.random((2, 30), np.float32)
        assert selector.select_losses(*losses).fallback == ""
        for _ in range(2):
            assert selector.select_losses(*losses, timeout=1e-6).fallback
        assert selector.select_losses(*losses).fallback == ""
        eventually(lambda: told(watched, "GetOverview").totals.fallbacks == 2)
    [first, *_] = told(watched, "GetOverview").verdicts
    assert "drawn uniformly, because no selection came" in first.finding
