"""What the client makes of how alike the stream's neighbours are: a warning, once, and metrics."""

import pickle
from concurrent import futures

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from selector_client import ModelEmbeddings, Selector
from selector_client.metrics import export
from selector_client.selecting import shuffling
from selector_client.selecting.selection import Locality
from selector_client.selecting.shuffling import SELECTIONS, Shuffling
from selector_proto.v1 import selector_pb2 as pb
from selector_proto.v1 import selector_pb2_grpc as rpc

VALUES = np.random.default_rng(0).random((2, 50), dtype=np.float32)
SETTINGS = {"policy": "independent", "sub_batch_size": 10}
SHUFFLED, NATURAL = (0.22, 0.219, 0.03), (0.55, 0.224, 0.304)


class Telling(rpc.SelectorServiceServicer):
    """Answers with the next of these localities."""

    def __init__(self, told):
        self.told = iter(told)

    def Select(self, request_iterator, context):
        list(request_iterator)
        one = next(self.told)
        return pb.SelectResponse(indices=range(10), locality=one and pb.Locality(**one))


@pytest.fixture
def telling():
    server = grpc.server(futures.ThreadPoolExecutor(2))
    port = server.add_insecure_port("127.0.0.1:0")

    def start(*told) -> str:
        names = ("adjacent", "random", "near_duplicates")
        messages = [one and dict(zip(names, one, strict=True)) for one in told]
        rpc.add_SelectorServiceServicer_to_server(Telling(messages), server)
        server.start()
        return f"127.0.0.1:{port}"

    yield start
    server.stop(0).wait()


@pytest.fixture
def said(caplog):
    return lambda: [record.getMessage() for record in caplog.records if record.name == shuffling.__name__]


def test_a_real_sidecar_tells_streams_apart(plain_server, said):
    """Runs of 16 around a centre each, in the order of the pool, and shuffled."""
    rng = np.random.default_rng(0)
    image = np.repeat(rng.standard_normal((1600, 16)), 16, axis=0) + rng.standard_normal((25600, 16))
    image = image.astype(np.float32)
    for order, lines in ((rng.permutation(len(image)), 0), (np.arange(len(image)), 1)):
        with Selector(plain_server.address, criterion="easy-reference", filter_ratio=0.8) as selector:
            for rows in order.reshape(-1, 640)[: SELECTIONS + 1]:
                reference = ModelEmbeddings(image[rows], image[rows], 10.0, -10.0)
                told = selector.select_embeddings(None, reference).locality
                assert told is not None
        assert len(said()) == lines


def test_a_badly_shuffled_stream_is_told_once_a_run(telling, said):
    """Replies that tell nothing do not count."""
    address = telling(None, *[NATURAL] * (3 * SELECTIONS))
    with Selector(address, **SETTINGS) as selector:
        for _ in range(SELECTIONS):
            selection = selector.select_losses(*VALUES)
            assert selection.fallback == ""
        assert selection.locality == Locality(*NATURAL)
        assert not said()
        selector.select_losses(*VALUES)
        [line] = said()
        assert "neighbouring candidates was 0.55, that of random ones 0.22, and 30 % of the picks" in line
        assert "Read many shards in turns" in line
        for _ in range(SELECTIONS):
            selector.select_losses(*VALUES)
        assert pickle.loads(pickle.dumps(selector))._session._shuffling._heard
    assert len(said()) == 1


@pytest.mark.parametrize(
    "told",
    [
        [SHUFFLED],
        [(0.24, 0.22, 0.4)],
        [NATURAL, *[SHUFFLED] * 9],
        [(1.0, 1.0, 1.0)],
        [(0.1, 0.4, 0.0)],
        [(float("nan"), 0.1, 0.0)],
    ],
)
def test_others_are_not(told, said):
    hears = Shuffling()
    for number in range(2 * SELECTIONS):
        hears.hear(Locality(*told[number % len(told)]))
    assert not said()


def test_only_the_first_selections_count(said):
    hears = Shuffling()
    for one in [SHUFFLED] * SELECTIONS + [NATURAL] * SELECTIONS:
        hears.hear(Locality(*one))
    assert not said()


def test_models_whose_images_are_all_alike_are_judged_by_what_is_left(said):
    """CLIP's images lie in a narrow cone: there a cosine of 0.75 is much, where random ones have 0.7."""
    hears = Shuffling()
    for _ in range(SELECTIONS):
        hears.hear(Locality(0.75, 0.7, 0.0))
    assert len(said()) == 1


def test_the_last_locality_is_shown_to_prometheus(telling):
    registry = CollectorRegistry()
    with Selector(telling(NATURAL, SHUFFLED, None), **SETTINGS) as selector:
        export(selector=selector, registry=registry)
        assert registry.get_sample_value("selector_client_near_duplicate_picks_ratio") is None
        for _ in range(3):
            selector.select_losses(*VALUES)
        assert selector.statistics.locality == Locality(*SHUFFLED)
        shown = [
            registry.get_sample_value("selector_client_image_cosine_mean", {"of": of}) for of in ("adjacent", "random")
        ]
        shown.append(registry.get_sample_value("selector_client_near_duplicate_picks_ratio"))
    assert tuple(shown) == SHUFFLED
