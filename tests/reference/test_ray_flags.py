"""`reference score --ray`: what is wrong with its flags is said before anything starts, and without Ray."""

import pytest
from selector_tools import cli
from selector_tools.reference.ray_flags import _workers


def refused(capsys, tmp_path, *flags) -> str:
    words = {"--reference": tmp_path, "--pool": tmp_path, "--out": tmp_path / "out"}
    command = ["reference", "score", *(str(word) for flag in words.items() for word in flag), *flags]
    try:
        status = cli.main(command)
    except SystemExit as end:
        status = end.code
    assert status == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--workers", "2"], "--workers is given; needs --ray"),
        (["--workers-per-gpu", "2", "--device", "cuda"], "--workers-per-gpu is 2; needs --ray and a GPU"),
        (["--ray", "--workers-per-gpu", "2"], "--workers-per-gpu is 2; needs --ray and a GPU"),
        (["--ray", "--device", "cuda", "--workers-per-gpu", "0"], "--workers-per-gpu is 0; must be 1 to 64"),
        (["--ray", "--cache", "held"], "--cache is held; is on one machine"),
        (["--ray", "--out", "scores.npz"], "--out is scores.npz; must be a folder or a URL"),
        (["--ray", "--device", "cuda:1"], "--device is cuda:1; must have no number"),
        *((["--ray", "--workers", text], f"'{text}' is no number of workers") for text in ("0", "3:2", "x", "1:2:3")),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_flags(capsys, tmp_path, flags, what):
    assert what in refused(capsys, tmp_path, *flags)


@pytest.mark.parametrize(("text", "expected"), [("2", (2, 2)), ("1:", (1, None)), ("1:4", (1, 4))])
def test_numbers_of_workers(text, expected):
    assert _workers(text) == expected
