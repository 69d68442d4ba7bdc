"""Who is let in: permits, bytes, memory; what the refused are told; who is still waited for. Without a server."""

from types import SimpleNamespace

import pytest

from selector_server.buffers import Pool
from selector_server.engine import admission as module
from selector_server.engine import scorer as scorer_module
from selector_server.engine.admission import Admission, MemoryGuard
from selector_server.engine.request import STAGES, Request, StageSeconds
from selector_server.engine.scorer import Pace
from selector_server.errors import Abandoned, LimitExceeded, Overloaded, TooLate
from selector_server.machine import MemoryBound, memory_bounds
from selector_server.telemetry.metrics import Metrics

MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture
def clock(monkeypatch):
    """A time that stands still unless told otherwise."""
    clock = SimpleNamespace(now=1000.0)
    for one in (module, scorer_module):
        monkeypatch.setattr(one, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def refused(admission, size=1) -> Overloaded:
    with pytest.raises(Overloaded) as caught:
        admission.admit(size).__enter__()
    return caught.value


def test_the_refused_are_told_times_as_far_apart_as_requests_take(clock):
    admission = Admission(3, 1000, Metrics())
    for _ in range(60):  # until the average is known
        with admission.admit(10):
            clock.now += 2.0
    with admission.admit(1), admission.admit(1), admission.admit(1):
        told = [refused(admission).retry_seconds for _ in range(6)]
        assert told == pytest.approx([2, 4, 6, 6, 6, 6], rel=1e-3), "the last when all three are done"
        clock.now += 2.0
        assert refused(admission).retry_seconds == pytest.approx(6, rel=1e-3)
        clock.now += 100.0
        assert refused(admission).retry_seconds == pytest.approx(2, rel=1e-3), "nobody is expected any more"
        assert refused(admission).rejection == "pending"


def test_what_a_refused_request_is_told_is_bounded(clock):
    admission = Admission(1, 1000, Metrics())
    for _ in range(60):
        with admission.admit(10):
            clock.now += 900.0
    with admission.admit(1):
        assert refused(admission).retry_seconds == 30.0
    for _ in range(100):
        with admission.admit(10):
            clock.now += 1e-6
    with admission.admit(1):
        assert refused(admission).retry_seconds == 0.02


def test_a_failed_request_says_nothing_about_the_time_that_requests_take(clock):
    admission = Admission(1, 1000, Metrics())
    with pytest.raises(ZeroDivisionError), admission.admit(1):
        clock.now += 500
        raise ZeroDivisionError
    with admission.admit(1):
        assert refused(admission).retry_seconds == pytest.approx(0.1)


def test_what_never_fits_is_not_told_to_come_again():
    admission = Admission(1, 1000, Metrics())
    with pytest.raises(LimitExceeded, match="is 1001; at most 1000") as caught:
        admission.admit(1001).__enter__()
    assert not isinstance(caught.value, Overloaded)
    assert caught.value.rejection == "too_large"


# Memory


def guarded(used, limit=1000 * MIB, share=0.9) -> Admission:
    guard = MemoryGuard([MemoryBound("a", limit, lambda: used[0]), MemoryBound("b", 8 * GIB, lambda: 0)], share)
    return Admission(8, 4 * GIB, Metrics(), guard)


def test_a_shortage_is_logged_once_in_a_while(clock, caplog):
    admission = guarded([950 * MIB])
    for seconds, logged in ((0, 1), (59, 1), (1, 2), (0, 2)):
        clock.now += seconds
        refused(admission)
        assert len(caplog.records) == logged
    assert caplog.records[0].getMessage() == (
        "short of memory, requests are refused: 950 MiB of 1000 MiB used (a), refusing above 900 MiB; "
        "0 MiB of 8192 MiB used (b), refusing above 7372 MiB"
    )


def test_memory_that_admitted_requests_have_not_taken_yet_counts(monkeypatch):
    monkeypatch.setattr("selector_server.engine.admission.FRESH_SECONDS", 0.0)
    used = [600 * MIB]
    admission = guarded(used)
    with admission.admit(200 * MIB) as permit:
        error = refused(admission, 101 * MIB)
        assert (
            str(error)
            == f"payload bytes of all requests is {101 * MIB}; the server's memory has room for {100 * MIB} now"
        )
        assert (error.rejection, error.retry_seconds > 0) == ("memory", True)
        used[0] += 200 * MIB
        permit.taken()
        with admission.admit(100 * MIB):
            with pytest.raises(Overloaded, match=r"decoded.*room for 0 now"):
                admission.enlarge(1).__enter__()
        with admission.admit(0):
            """What takes nothing is let in."""
    used[0] = 950 * MIB
    assert refused(admission, 1).rejection == "memory"
    used[0] = 100 * MIB
    with admission.admit(800 * MIB):
        """There is room again."""
    with pytest.raises(LimitExceeded) as caught:
        admission.admit(901 * MIB).__enter__()
    assert not isinstance(caught.value, Overloaded), "it would not fit into an empty server"


def test_what_is_kept_for_later_is_freed_before_a_request_is_refused():
    used, pool = [850 * MIB], Pool()
    admission = guarded(used)
    block = pool.take(100 * MIB)

    def relief():
        freed = pool.clear()
        used[0] -= freed
        return freed

    admission.relieve_by(relief)
    assert refused(admission, 100 * MIB).rejection == "memory", "it is in use"
    del block
    with admission.admit(100 * MIB):
        assert 740 * MIB < used[0] < 760 * MIB


MEMINFO = "MemTotal:       16777216 kB\nMemFree:  1 kB\nMemAvailable:    8388608 kB\n"
STAT = "anon 1\nfile 9\ninactive_file {0}\nactive_file {1}\ntotal_inactive_file {2}\ntotal_active_file {3}\n"


def bounds(tmp_path):
    return [(b.name, b.limit, b.used()) for b in memory_bounds(tmp_path / "cgroup", tmp_path / "proc")]


MACHINE = ("machine", 16 * GIB, 8 * GIB)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_limits_of_version_2_are_those_of_all_cgroups_around(tmp_path):
    write(tmp_path / "proc/self/cgroup", "0::/pods/mine\n")
    write(tmp_path / "proc/meminfo", MEMINFO)
    pods = tmp_path / "cgroup/pods"
    write(pods / "memory.max", "3000000\n")
    write(pods / "memory.current", "2000000\n")
    write(pods / "mine/memory.max", "1000000\n")
    write(pods / "mine/memory.current", "900000\n")
    write(pods / "mine/memory.stat", STAT.format(300_000, 100_000, 7, 7))
    assert bounds(tmp_path) == [
        (f"cgroup {pods}/mine", 1_000_000, 500_000),  # files can be given back
        (f"cgroup {pods}", 3_000_000, 2_000_000),
        MACHINE,
    ]
    write(pods / "mine/memory.max", "max\n")
    assert [limit for _, limit, _ in bounds(tmp_path)] == [3_000_000, 16 * GIB]


def test_limits_of_version_1_and_of_a_container_that_sees_its_own_cgroup_only(tmp_path):
    write(tmp_path / "proc/self/cgroup", "5:cpu:/x\n4:memory:/docker/abc\n0::/\n")
    write(tmp_path / "proc/meminfo", MEMINFO)
    root = tmp_path / "cgroup/memory"
    write(root / "memory.limit_in_bytes", "1000000\n")
    write(root / "memory.usage_in_bytes", "900000\n")
    write(root / "memory.stat", STAT.format(7, 7, 300_000, 100_000))
    assert bounds(tmp_path) == [(f"cgroup {root}", 1_000_000, 500_000), MACHINE]
    write(root / "memory.limit_in_bytes", "9223372036854771712\n")
    assert bounds(tmp_path) == [MACHINE], "no limit"


@pytest.mark.parametrize("line", ["0::/../../etc\n", "nonsense\n", "0::\n", ""])
def test_nothing_readable_is_no_limit(tmp_path, line):
    write(tmp_path / "proc/self/cgroup", line)
    assert bounds(tmp_path) == []
    assert MemoryGuard([], 0.9).room() > 1 << 60


# Requests


def test_a_caller_who_left_or_is_out_of_time_is_worked_for_no_more():
    Request().check(1e9)
    caller = Request(10.0)
    caller.enter("encode")
    caller.check(9.0)
    with pytest.raises(TooLate, match=r"from encode on, at least 11\.000 s are needed"):
        caller.check(11.0)
    with pytest.raises(TooLate, match="it passed at receive"):
        Request(-1.0).check()
    caller.leave()
    with pytest.raises(Abandoned, match="request is abandoned; nobody waits for it any more, at encode"):
        caller.check()


def test_ranks_share_the_earliest_deadline_and_their_stage():
    ranks = [Request(), Request(5.0), Request(9.0)]
    joint = Request.joint(ranks)
    assert 4.5 < joint.remaining() <= 5.0
    assert Request.joint([Request()]).remaining() is None
    joint.enter("sample")
    assert {one.stage for one in ranks} == {"sample"}


def test_a_joint_requests_timings_are_those_of_all_its_ranks():
    ranks = [Request(), Request()]
    ranks[0].spent("preprocess", 1.0)
    with Request.joint(ranks) as joint:
        joint.spent("queue", 2.0)
        with joint.timed("sample"):
            pass
    assert [(one.stages.preprocess, one.stages.queue) for one in (joint, *ranks)] == [(0, 2), (1, 2), (0, 2)]
    assert ranks[0].stages.sample == ranks[1].stages.sample == joint.stages.sample > 0


def test_a_requests_permits_are_held_until_its_end():
    admission = Admission(2, 100, Metrics())
    with pytest.raises(ZeroDivisionError), Request() as request:
        request.hold(admission.admit(60))
        request.hold(admission.enlarge(30))
        assert refused(admission, 20).rejection == "bytes"
        raise ZeroDivisionError
    with admission.admit(100):
        """All is given back."""


def took(**seconds):
    return StageSeconds(**{stage: seconds.get(stage, 0.0) for stage in STAGES})


def test_the_least_that_is_left_is_what_the_fastest_alike_took(clock):
    pace = Pace()
    assert pace.left("a", 100, "preprocess") == 0.0, "unknown"
    pace.note("a", 100, took(preprocess=1, encode_learner=2, sample=4))
    pace.note("a", 80, took(preprocess=2, encode_learner=3, sample=4))
    assert pace.left("a", 100, "preprocess") == 7
    assert pace.left("a", 100, "sample") == 4
    assert pace.left("a", 90, "preprocess") == 9, "a smaller one says nothing of a larger one, but the other way round"
    assert pace.left("a", 10, "preprocess") == 0.0
    assert pace.left("b", 100, "preprocess") == 0.0
    clock.now += 31
    assert pace.left("a", 100, "preprocess") == 0.0, "a slow time is over some day"
