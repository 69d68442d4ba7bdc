"""`selector bench pool`: mistakes are told in a line."""

import pytest
from selector_tools import cli

pytest.importorskip("ray", reason="needs the extra ray")


@pytest.mark.parametrize(
    ("flag", "value", "limit"),
    [
        ("--image-size", "30", "must be a multiple of 16"),
        ("--shards", "7", "must be at least 8"),
        ("--pairs", "0", "must be at least 1"),
        ("--repeats", "0", "must be at least 1"),
    ],
)
def test_mistakes_are_told_in_a_line(flag, value, limit, capsys):
    assert cli.main(["bench", "pool", flag, value]) == 2
    assert capsys.readouterr().err == f"selector bench pool: {flag} is {value}; {limit}\n"
