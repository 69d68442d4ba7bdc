"""Work in pieces: picks, scores and embeddings are the same by any number of threads, and errors are told."""

import threading
import time

import numpy as np
import pytest
import torch
from support.model import samples

from selector_server.encoding.bundle import load
from selector_server.encoding.device import Device
from selector_server.encoding.model import Model
from selector_server.sampling import Criterion, Draw, Embedded, Loss, PairScores, Plan, chunk_sizes
from selector_server.sampling import threads as module
from selector_server.sampling.losses import all_pairs
from selector_server.sampling.policies import Joint
from selector_server.sampling.threads import Threads, spread, use_threads

CPU = torch.device("cpu")
PLAN = Plan(chunk_sizes(300, 5), 20.0, Draw.SAMPLE, seed=3)


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    """The process's threads are as they were afterwards."""
    before = torch.get_num_threads()
    monkeypatch.setattr(module, "_threads", Threads(1))
    yield
    torch.set_num_threads(before)


def scores(count, loss, **more):
    def model(seed):
        image, text = torch.randn(2, count, 40, generator=torch.Generator().manual_seed(seed))
        return Embedded.normalise(image, text + image, 10.0, -8.0)

    return PairScores(Criterion.LEARNABILITY, model(1), model(2), loss, **more)


def picked(picks):
    return picks.indices.tolist(), picks.scores.tolist(), picks.total


@pytest.mark.parametrize("loss", Loss)
@pytest.mark.parametrize("more", [{}, {"max_similarity": 0.4}], ids=["plain", "apart"])
@pytest.mark.parametrize("count", [600, 3001], ids=["at once", "in tiles"])
def test_picks_and_scores_are_bit_equal_by_any_number_of_threads(loss, more, count):
    assert all_pairs.fits(count, None) == (count == 600)
    found = []
    for threads in (1, 2, 4):
        use_threads(threads)
        with torch.inference_mode():  # as the server does
            super_batch = scores(count, loss, **more)
            found.append((picked(Joint().pick(super_batch, PLAN)), super_batch.uniform_total(300)))
    assert found[0] == found[1] == found[2]


def test_embeddings_are_bit_equal_by_any_number_of_threads(bundles):
    model = Model(load(bundles.reference_path, "reference"), Device("cpu"), 16)
    pixels, tokens = samples(150)
    found = []
    for threads in (1, 2, 4):
        use_threads(threads)
        with torch.inference_mode():  # as the server does
            embedded = model.encode(pixels, tokens.astype(np.int64), model.constant_weights())
        found.append((embedded.image.tolist(), embedded.text.tolist()))
    assert found[0] == found[1] == found[2]


def test_all_threads_take_part_and_each_piece_is_taken_once():
    use_threads(3)
    everybody, taken, rooms = threading.Barrier(3, timeout=60), [], []

    def worker():
        room = object()
        rooms.append(room)
        everybody.wait()  # nobody gets on unless three threads came
        return lambda piece: taken.append((piece, room))

    spread(worker, range(1000), CPU)
    assert sorted(piece for piece, _ in taken) == list(range(1000))
    assert len(set(rooms)) == 3


def test_operators_have_one_thread_each():
    use_threads(3)
    assert torch.get_num_threads() == 1
    everybody, seen = threading.Barrier(3, timeout=60), []

    def worker():
        everybody.wait()
        return lambda _: seen.append(torch.get_num_threads())

    spread(worker, range(3), CPU)
    assert set(seen) == {1}


def test_no_more_threads_than_pieces_and_none_for_nothing():
    use_threads(8)
    rooms = []

    def worker():
        rooms.append(threading.get_ident())
        return lambda _: None

    spread(worker, [1, 2], CPU)
    assert len(rooms) <= 2
    rooms.clear()
    spread(worker, [], CPU)
    assert set(rooms) <= {threading.get_ident()}


def test_other_devices_are_given_one_thread():
    use_threads(4)
    seen = set()
    spread(lambda: lambda _: seen.add(threading.get_ident()), range(50), torch.device("meta"))
    assert seen == {threading.get_ident()}


def test_helpers_that_never_come_hold_nobody_up():
    threads = Threads(2)
    held, taken = threading.Event(), []
    threads._helpers.submit(held.wait, 60)  # the one helper is busy elsewhere
    threads.spread(lambda: taken.append, range(20))
    assert taken == list(range(20))
    held.set()


def test_inference_mode_goes_along():
    use_threads(2)
    both, modes = threading.Barrier(2, timeout=60), []

    def work(_):
        both.wait()  # each has a piece
        modes.append(torch.is_inference_mode_enabled())

    for mode in (True, False):
        with torch.inference_mode(mode):
            spread(lambda: work, range(2), CPU)
    assert modes == [True, True, False, False]


@pytest.mark.parametrize("who", ["caller", "helper"])
def test_an_error_ends_the_work_and_is_told_whoever_meets_it(who):
    use_threads(3)
    everybody, caller, done, failed = threading.Barrier(3, timeout=60), threading.get_ident(), [], threading.Event()
    first = threading.Lock()

    def worker():
        everybody.wait()  # all take part

        def work(piece):
            if ((threading.get_ident() == caller) == (who == "caller")) and first.acquire(blocking=False):
                failed.set()
                raise MemoryError("made up")
            assert failed.wait(60)
            time.sleep(0.05)  # so that the others see that nothing is left
            done.append(piece)

        return work

    with pytest.raises(MemoryError, match="made up"):
        spread(worker, range(100), CPU)
    assert len(done) <= 4, "no others than those that had begun"
    ended = len(done)
    time.sleep(0.2)
    assert len(done) == ended, "nobody works on after the error was told"
    done.clear()
    spread(lambda: done.append, range(5), CPU)
    assert sorted(done) == [0, 1, 2, 3, 4]
