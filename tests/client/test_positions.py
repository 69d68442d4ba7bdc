"""Where a loader stands, whatever its trainer and its threads are doing: nothing is lost, repeated or mixed up."""

import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from selector_client import SelectingLoader, Selector
from selector_client.loading.dataset import SuperBatches
from selector_client.selecting.settings import TooFew
from support.loaders import BATCH, SIZE, Chooser, over, rest, saved
from support.processes import eventually


def pictures(indices):
    return {"images": np.zeros((len(indices), 2, 2, 3), np.uint8), "texts": np.zeros((len(indices), 2), np.int64)}


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_trainers_that_stop_at_the_length_see_every_epoch(prefetch, world_size):
    """As transformers' does, and Lightning's: they never ask for what comes after the last one."""
    loader, found = over(Chooser(world_size=world_size), prefetch=prefetch), []
    for _ in range(4):
        iterator = iter(loader)
        found.append([next(iterator) for _ in range(len(loader))])
        del iterator
    assert [len(epoch) for epoch in found] == [5] * 4
    assert [batch for epoch in found for batch in epoch] == rest(over(Chooser()), 20)


@pytest.mark.parametrize("kind", ["dataset", "list"])
def test_a_state_of_an_epochs_end_goes_on_with_the_next_epoch(kind):
    def loader():
        chooser = Chooser()
        lists = [{"images": np.arange(i, i + 8), "texts": np.arange(8)} for i in range(4)]
        return over(chooser) if kind == "dataset" else SelectingLoader(lists, chooser, prefetch=0)

    one = loader()
    iterator = iter(one)
    for _ in range(len(one)):
        next(iterator)
    other = loader()
    other.load_state_dict(saved(one))
    assert len(list(other)) == len(other)
    assert len(list(other)) == len(other)


@pytest.mark.parametrize("prefetch", [0, 1, 2, 3])
@pytest.mark.parametrize("again", [0, 1, 2])
def test_states_of_a_loader_that_has_just_been_loaded(prefetch, again):
    """A job is stopped, loads, and saves before its first sub-batch or soon after it."""
    wanted = rest(over(Chooser()), 12)
    loader = over(Chooser(), prefetch=prefetch)
    found = rest(loader, 2)
    state = saved(loader)
    for count in (again, again):
        loader = over(Chooser(seed=99), prefetch=prefetch)
        loader.load_state_dict(state)
        assert {**saved(loader), "ahead": []} == {**state, "ahead": []}
        found += rest(loader, count)
        state = saved(loader)
    loader = over(Chooser(seed=99), prefetch=prefetch)
    loader.load_state_dict(state)
    assert found + rest(loader, 12 - len(found)) == wanted
    assert loader.progress.steps == 12


def test_a_state_taken_while_the_first_sub_batch_is_waited_for():
    """By a signal handler, or another thread."""
    chooser = Chooser()
    loader, found = over(chooser, prefetch=2), []
    loader.load_state_dict(saved(over(Chooser())))
    chooser.wait = 0.3
    thread = threading.Thread(target=lambda: found.extend(rest(loader, 1)))
    thread.start()
    eventually(lambda: chooser.steps)
    state = saved(loader)
    thread.join()
    other = over(Chooser(seed=99))
    other.load_state_dict(state)
    assert rest(other, 7) == rest(over(Chooser()), 7)


class Slow:
    """Super-batches that keep their place, and take their time over the one after the first."""

    def __init__(self):
        self.inner, self.free = SuperBatches(SIZE, BATCH, seed=3), threading.Event()
        self.state_dict = self.inner.state_dict

    def load_state_dict(self, state):
        self.inner.load_state_dict(state)

    def __iter__(self):
        for number, found in enumerate(self.inner):
            if number == 2 and not self.free.is_set():
                self.free.wait(0.5)
            yield {"images": found, "texts": found}


def test_a_thread_of_an_iteration_that_was_left_takes_nothing_from_the_next():
    loader = SelectingLoader(Slow(), Chooser(), prefetch=2)
    plain = SelectingLoader(Slow(), Chooser(), prefetch=0)
    found = []
    for batch in loader:
        found.append(batch["images"].tolist())
        eventually(lambda: len(loader.state_dict()["ahead"]) == 1)
        time.sleep(0.05)  # the thread waits for the third super-batch
        break
    found += [batch["images"].tolist() for batch in loader]
    wanted = [batch["images"].tolist() for batch in plain]
    assert [sorted(batch) for batch in found[:2]] == [sorted(batch) for batch in wanted[:2]], "picks of their own"
    assert len(np.unique(np.concatenate(found))) == sum(map(len, found)) == 15


# Trainers that fetch ahead


def test_what_was_fetched_and_not_used_comes_again():
    wanted = rest(over(Chooser()), 8)
    loader = over(Chooser(), prefetch=2)
    loader.tell_used()
    iterator = iter(loader)
    fetched = [next(iterator)]
    for _ in range(3):
        fetched.append(next(iterator))
        loader.used()
    assert fetched == wanted[:4]
    state = saved(loader)
    assert state["steps"] == 3
    other = over(Chooser(seed=99), prefetch=2)
    other.load_state_dict(state)
    assert rest(other, 5) == wanted[3:]
    del iterator
    found = []
    for _ in range(2):
        for batch in loader:
            found.append(batch)
            loader.used()
    assert found[:5] == wanted[3:], "also in the same process"
    assert (len(found), loader.progress.steps) == (7, 10)


def test_the_last_sub_batch_of_an_epoch_may_still_be_in_use():
    loader = over(Chooser())
    loader.tell_used()
    iterator = iter(loader)
    fetched = [next(iterator)]
    for batch in iterator:
        loader.used()
        fetched.append(batch)
    assert len(fetched) == 5
    before = saved(loader)
    loader.used()
    after = saved(loader)
    for state, count in ((before, 6), (after, 5)):
        other = over(Chooser(seed=99))
        other.load_state_dict(state)
        assert rest(other, count) == rest(over(Chooser()), 10)[-count:]


def test_the_last_sub_batch_of_an_epoch_comes_again_if_it_was_not_used():
    loader = over(Chooser())
    loader.tell_used()
    for number, batch in enumerate(loader):
        last = batch
        if number:
            loader.used()
    assert next(iter(loader)) == last


# Ranks


def test_ranks_that_select_as_one_ask_again_from_where_their_trainers_are():
    states = []
    for ahead in (1, 3):
        chooser = Chooser(world_size=2)
        loader = over(chooser, prefetch=ahead)
        iterator = iter(loader)
        next(iterator), next(iterator)
        eventually(lambda wanted=2 + ahead, asked=chooser: len(asked.steps) == wanted)
        states.append(saved(loader))
        assert states[-1]["ahead"] == []
        del iterator
        rest(loader, 1)
        assert chooser.steps.count(2) == 1, "an iteration that was left goes on"
        loader.close()
    assert states[0] == states[1], "however far a rank's threads are ahead"
    chooser = Chooser(seed=99, world_size=2)
    loader = over(chooser)
    loader.load_state_dict(states[1])
    assert rest(loader, 5) == rest(over(Chooser(world_size=2)), 7)[2:]
    assert chooser.steps == [2, 3, 4, 5, 6]


def test_ranks_agree_after_an_iteration_that_was_left_and_after_a_restart(sidecar):
    """One rank's threads are further ahead than the other's; none falls back alone, or waits for the other."""
    patience = 60  # seconds, far more than all these steps take on a busy machine
    server = sidecar({"group_seconds": patience})

    def selecting(rank):
        return Selector(
            server.address,
            timeout=patience,
            policy="uniform",
            filter_ratio=0.75,
            seed=rank,
            group="places",
            rank=rank,
            world_size=2,
        )

    def steps(loader, count):
        found = []
        for _ in loader:
            found.append((loader.last.fallback, loader.last.seed))
            if len(found) == count:
                break
        return found

    selectors = []

    def close():
        """A thread that was about to select may do so once more after the close. Those of a dead process do not."""
        for selector in selectors:
            selector.close()

    # A job starts again after its last process has died, and the sidecar knows it.
    dead = threading.Barrier(2, lambda: eventually(lambda: server.pending() == 0, meanwhile=close))

    def train(rank):
        with selecting(rank) as selector:
            selectors.append(selector)
            loader = over(selector, prefetch=1 + 3 * rank, view=pictures)
            found = steps(loader, 2) + steps(loader, 2)
            state = saved(loader)
            loader.close()
        dead.wait(patience)
        with selecting(rank) as selector:
            selectors.append(selector)
            loader = over(selector, prefetch=1 + 3 * rank, view=pictures)
            loader.load_state_dict(state)
            found += steps(loader, 1) + steps(loader, 3)
            loader.close()
            return found

    started = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(train, range(2))
    assert [fallback for fallback, _ in first[:4]] == [""] * 4
    assert [fallback for fallback, _ in first] == [fallback for fallback, _ in second], "all or none"
    assert sum(fallback != "" for fallback, _ in first) <= 1, "a step that was under way at the end"
    assert first[:4] == second[:4], "rank 0's seeds for both"
    assert len(first) == len(second) == 8
    assert time.monotonic() - started < patience, "less than the sidecar waits for a rank that does not come"

    def ended():
        return not [thread for thread in threading.enumerate() if thread.name == "selecting-loader"]

    eventually(ended, 40, meanwhile=close)


@pytest.mark.parametrize("prefetch", [1, 2, 4])
def test_a_loader_that_was_closed_begins_no_selection(prefetch):
    asked, answer = threading.Event(), threading.Event()

    class Waiting(Chooser):
        def select(self, *arguments, step, **options):
            if step == 1:
                asked.set()
                assert answer.wait(20)
            return super().select(*arguments, step=step, **options)

    def collate(samples):
        time.sleep(0.2)  # meanwhile another thread would select
        return samples

    chooser = Waiting(world_size=2)
    loader = over(chooser, prefetch=prefetch, collate=collate)
    iterator = iter(loader)
    next(iterator)
    assert asked.wait(20)
    time.sleep(0.2)  # the other thread waits for these picks by now
    loader.close()
    answer.set()
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "selecting-loader"])
    assert chooser.steps == [0, 1]


def test_ranks_that_select_as_one_have_the_selectors_own_timeout():
    chooser = Chooser(world_size=2)
    rest(over(chooser), 15)
    assert set(chooser.timeouts) == {None}


def test_of_another_ranks_state_only_the_place_counts(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    loader = over(Chooser(seed=5), prefetch=2)
    iterator = iter(loader)
    next(iterator), next(iterator)
    eventually(lambda: len(loader.state_dict()["ahead"]) == 2)
    state = saved(loader)
    monkeypatch.setenv("RANK", "1")
    chooser = Chooser(seed=7)
    other = over(chooser)
    other.load_state_dict(state)
    assert rest(other, 5) == rest(over(Chooser(seed=7)), 7)[2:], "as a rank of its own seed that goes on"
    assert (chooser.seed, chooser.steps) == (7, [2, 3, 4, 5, 6])


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, "0.0"),
        ({"RANK": "3", "NODE_RANK": "1", "LOCAL_RANK": "1"}, "3"),
        ({"NODE_RANK": "1", "LOCAL_RANK": "2"}, "1.2"),
        ({"LOCAL_RANK": "2"}, "0.2"),
    ],
)
def test_processes_have_names_of_their_launcher(monkeypatch, environment, name):
    for variable in ("RANK", "NODE_RANK", "LOCAL_RANK"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert saved(over(Chooser()))["process"] == name


# Short ones, copies, mistakes


def pieces(*sizes):
    return [{"images": np.arange(size), "texts": np.arange(size)} for size in sizes]


def test_only_shorter_ones_are_dropped():
    loader = SelectingLoader(pieces(8, 40, 40, 8, 44), Chooser())
    assert [len(batch["images"]) for batch in loader] == [2, 10, 10, 11]
    assert loader.progress.dropped == 1
    loader = SelectingLoader(pieces(40, 8), Chooser(), last="keep")
    assert [len(batch["images"]) for batch in loader] == [10, 2]
    loader = SelectingLoader(pieces(40, 8), Chooser(picks=10))
    assert [len(batch["images"]) for batch in loader] == [10]
    with pytest.raises(TooFew):
        list(SelectingLoader(pieces(8, 40), Chooser(picks=10)))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_copy_in_another_process_goes_on_from_there(monkeypatch, prefetch):
    def loader_of(selector):
        return over(selector, prefetch=prefetch, view=pictures)

    monkeypatch.setenv("SELECTOR_OFF", "1")
    one, other = (Selector("localhost:1", filter_ratio=0.75, seed=1) for _ in range(2))
    wanted, loader = rest(loader_of(one), 6), loader_of(other)
    found = rest(loader, 2)
    copy = pickle.loads(pickle.dumps(loader))
    assert {"count": 2, "steps": 2}.items() <= saved(copy).items()
    assert found + rest(copy, 4) == wanted


@pytest.mark.parametrize("given", [0, 2])
def test_a_copy_goes_on_from_its_place_though_its_selector_was_copied_later(monkeypatch, given):
    monkeypatch.setenv("SELECTOR_OFF", "1")
    one, other = (Selector("localhost:1", filter_ratio=0.75, seed=1) for _ in range(2))
    wanted, loader = rest(over(one, prefetch=0, view=pictures), 6), over(other, prefetch=2, view=pictures)
    found = rest(loader, given)
    state = loader.__getstate__()
    other.resume(other.count + 3)  # as a thread does that selects meanwhile
    copy = SelectingLoader.__new__(SelectingLoader)
    copy.__setstate__(pickle.loads(pickle.dumps(state)))
    assert found + rest(copy, 6 - given) == wanted


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": -1}, "steps is -1"),
        ({"drawn": "2"}, "drawn is 2"),
        ({"seed": 1 << 64}, "seed is"),
        ({"count": None}, "count is None"),
        ({"process": 3}, "process is 3"),
        ({"ahead": [{"indices": [1, 1], "fallback": "", "count": 1}]}, "indices are"),
        ({"ahead": [{"indices": [1], "fallback": ""}]}, "count is missing"),
        ({"source": {"epoch": 0}}, "cursor is missing"),
    ],
)
def test_a_state_that_cannot_be_changes_nothing(change, named):
    loader = over(Chooser())
    rest(loader, 3)
    before = saved(loader)
    with pytest.raises(ValueError, match=named):
        loader.load_state_dict(before | change)
    assert saved(loader) == before
    with pytest.raises(ValueError, match="have no load_state_dict"):
        SelectingLoader([], Chooser()).load_state_dict(before)
