"""The versions in memory and what is told of them, without a store or a learner."""

from selector_proto.weights.reports import MAX_REASON, printable

from selector_server.weights.dating import Dated
from selector_server.weights.history import Outcome
from selector_server.weights.versions import Status, SyncState, Version, Versions


def version(number, step=None):
    return Version(number, 10 * number if step is None else step, Dated(1000.0 + number), f"weights {number}")


def test_a_swap_tells_what_is_served_now_and_clears_what_went_wrong():
    versions = Versions(version(0))
    versions.report(SyncState.REJECTED, 1, "version 1: broken", rejected=True)
    assert versions.status == Status(SyncState.REJECTED, 1, "version 1: broken", swaps=0, rejections=1)
    assert versions.swap(version(2))
    assert versions.current == versions.latest == version(2)
    assert versions.status == Status(SyncState.CURRENT, 2, "", swaps=1, rejections=1)
    assert [(one.version, one.trainer_step, one.outcome, one.reason) for one in versions.history()] == [
        (0, 0, Outcome.SERVED, "the bundle's own weights"),
        (2, 20, Outcome.SERVED, ""),
    ]


def test_a_report_keeps_the_newest_version_unless_it_names_one():
    versions = Versions(version(0))
    versions.report(SyncState.CURRENT, 7)
    versions.report(SyncState.DISCONNECTED, error="gone")
    assert versions.status == Status(SyncState.DISCONNECTED, 7, "gone")
    versions.report(SyncState.WAITING, 0)
    assert versions.status == Status(SyncState.WAITING, 0)


def test_what_is_pinned_stays_so_and_reports_say_it():
    versions = Versions(version(0))
    for number in (1, 2, 3):
        versions.swap(version(number))
    assert versions.pinnable().keys() == {0, 2, 3}
    assert versions.pin(2) == versions.current == version(2)
    assert versions.status == Status(SyncState.PINNED, 3, "version 2 is pinned", swaps=3)
    assert not versions.swap(version(4))
    versions.report(SyncState.CURRENT, 2)
    assert versions.status.last_error == "", "the pinned one is the newest"
    versions.report(SyncState.CURRENT, 4)
    assert versions.status == Status(SyncState.PINNED, 4, "version 2 is pinned", swaps=3)
    versions.report(SyncState.DISCONNECTED, None, "gone")
    assert versions.status == Status(SyncState.PINNED, 4, "gone", swaps=3)
    assert versions.unpin() == versions.current == version(3)
    assert versions.status == Status(SyncState.CURRENT, 4, "", swaps=3)
    assert [one.reason for one in versions.history()[-2:]] == ["pinned", "unpinned"]


def test_reasons_are_short_and_harm_no_terminal():
    assert printable("a" * MAX_REASON) == "a" * MAX_REASON
    assert printable("a" * (MAX_REASON + 1)) == "a" * MAX_REASON + "…"
    assert printable("red: \x1b[31m\n") == "red: \\x1b[31m\\n"
