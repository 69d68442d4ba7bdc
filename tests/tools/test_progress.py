"""What commands say while they run, and of what went wrong."""

import re
import time

import pytest
from selector_tools import progress
from selector_tools.mistakes import in_one_line
from selector_tools.progress import bar, pace


def test_a_bar_shows_how_far_it_is_and_what_is_under_way(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the captured stream for a terminal
    monkeypatch.setenv("COLUMNS", "80")
    with bar("export", 3) as advance:
        advance(1, "peak")
        advance(1)
    last = next(line for line in reversed(capsys.readouterr().err.splitlines()) if "2/3" in line)
    assert "peak" in last, "what was under way stays"


def test_a_log_gets_no_line_of_what_is_soon_over(capsys):
    with bar("export", None) as advance:
        advance(1, "peak")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("total", "of"), [(2000, " of 2,000"), (None, "")])
def test_a_log_gets_a_plain_line_now_and_then(total, of, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.01)
    said = ""
    with bar("read", total) as advance:
        advance(1024, "read more")
        while said.count("\n") < 2:
            time.sleep(0.01)
            said += capsys.readouterr().err
    told = rf"read more: 1,024{of} after 0 s" + (r", done at \d\d:\d\d UTC" if of else "")
    assert all(re.fullmatch(told, line) for line in said.splitlines())


def test_pace():
    assert pace(30_268, 2.36) == "in 2.4 s (12,825 samples/s)"


@pytest.mark.parametrize(
    ("error", "line", "with_kind"),
    [
        (ValueError("\nbad size:\n  8\n\nand advice"), "bad size: 8", "ValueError: bad size: 8"),
        (ValueError("\x1b[1mbad\x1b[0m size"), "bad size", "ValueError: bad size"),
        (ValueError("x" * 999), "x" * 500 + "…", "ValueError: " + "x" * 500 + "…"),
        (AssertionError(), "AssertionError", "AssertionError: no message"),
    ],
)
def test_what_a_library_says_is_one_whole_line(error, line, with_kind):
    assert in_one_line(error) == line
    assert in_one_line(error, kind=True) == with_kind
