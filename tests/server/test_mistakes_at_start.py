"""Mistakes at the start: one line that names setting, value and limit, and exit status 2."""

import json
import re

import pytest
from selector_tools import cli
from support.processes import free_port, one_line, run_serve
from support.wire import some_losses


def test_mistakes_of_a_real_process_print_one_line_and_exit_2(tmp_path):
    status, said = run_serve({"learner": tmp_path / "nowhere"}, new=True)
    assert status == 2
    assert f"learner is {tmp_path / 'nowhere'}; must be a folder with a manifest.json" in one_line(said)
    status, said = run_serve({"thread": "2", "unheard_of": "1"})
    assert status == 2
    assert "--unheard-of" in one_line(said)


def test_a_port_in_use(serve, plain_server):
    """Also by another sidecar: two never share a port."""
    listen, metrics_listen = plain_server.address, f"127.0.0.1:{plain_server.metrics_port}"
    assert f"metrics_listen is {metrics_listen}; " in serve("--metrics-listen", metrics_listen)
    assert f"listen is {listen}; must be a free host:port" in serve("--listen", listen)
    assert len(plain_server.select(some_losses()).indices) == 4, "the first one goes on serving"


@pytest.mark.parametrize("address", ["nonsense", "nonsense:port", "127.0.0.1:99999", "203.0.113.1:50051"])
def test_an_address_that_cannot_be_bound(serve, address):
    assert f"listen is {address}; must be a free host:port or unix:/path" in serve("--listen", address)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--bogus", "1"], "unrecognized arguments: --bogus 1"),
        (["--learner"], "--learner: expected one argument"),
        (["--micro-batch", "-1"], "micro_batch is '-1'; Input should be greater than or equal to 0"),
        (["--micro-batch", "1.5"], "micro_batch is '1.5'"),
        (["--threads", "-1"], "threads is '-1'"),
        (["--device", "gpu"], "device is 'gpu'"),
        (["--log-level", "loud"], "log_level is 'loud'; Input should be 'debug', 'info', 'warning' or 'error'"),
        (["--drain-seconds", "nan"], "drain_seconds is 'nan'"),
        (["--receive-seconds", "inf"], "receive_seconds is 'inf'"),
        (["--weights-poll-seconds", "1e300"], "weights_poll_seconds is '1e300'"),
        (["--run", "two words"], "run is 'two words'; must be 1 to 64 letters"),
        (["--run", "x" * 65], "1 to 64 letters"),
        (["--redis", "http://somewhere"], "redis is http://somewhere; must be redis://"),
        (["--redis", "redis://:hunter2@host:port"], "redis is ***; must be redis://"),
        (["--redis", "redis://:hunter2/hunter2@host"], "redis is ***; must be redis://"),
        (["--redis", "redis://:hunter2@host\n"], "it has a line break"),  # as in a Secret made of a file
        (["--redis", "redis://localhost"], "weights need a learner"),
        (["--config", "/does/not/exist.toml"], "config is /does/not/exist.toml; cannot be read"),
        (["--metrics-listen", "localhost"], "metrics_listen is localhost; "),
        (["--metrics-listen", "localhost:99999"], "metrics_listen is localhost:99999; "),
        (["--admin-listen", "localhost"], "admin_listen is localhost; must be a free host:port or unix:/path"),
        (["--when-stale", "hope"], "when_stale is 'hope'; Input should be 'serve', 'wait' or 'refuse'"),
        (["--max-weights-lag-steps", "-1"], "max_weights_lag_steps is '-1'"),
        (["--max-weights-age-seconds", "nan"], "max_weights_age_seconds is 'nan'"),
    ],
)
def test_wrong_settings(serve, arguments, named):
    line = serve(*arguments)
    assert line.startswith("selector")
    assert named in line
    assert "hunter2" not in line


def test_a_device_that_is_not_there(serve):
    assert "device is cuda:77; torch sees " in serve("--device", "cuda:77")


def test_wrong_environment(serve):
    assert "max_width is '-3'" in serve(max_width="-3")
    assert "micro_batch is 'many'" in serve(micro_batch="many", max_width="3")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("max_width = ", "cannot be read"),
        ("max_widht = 3", "max_widht"),
        ("[limits]\nmax_width = 3", "limits"),
        ('run = "a\\nb"', "run is "),
        ("max_width = 'wide'", "max_width is 'wide'"),
        ('redis = ["redis://:hunter2@host"]', "redis is not text"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_wrong_file(serve, tmp_path, text, named):
    file = tmp_path / "settings.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    line = serve("--config", file)
    assert named in line
    assert "hunter2" not in line


def test_no_verb_and_unknown_verbs(capsys):
    for arguments in ([], ["sreve"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 2
        assert one_line(capsys.readouterr().err).startswith("selector: ")


def test_info_of_a_server_that_is_not_there(capsys):
    port = free_port()
    assert cli.main(["info", f"127.0.0.1:{port}", "--timeout", "0.3"]) == 1
    assert f"127.0.0.1:{port}" in one_line(capsys.readouterr().err)


def test_info_of_a_server_for_programs(capsys, server):
    assert cli.main(["info", server.address, "--json"]) == 0
    text = capsys.readouterr().out
    assert '"server_version"' in text
    assert '"state": "SYNC_STATE_OFF"' in text
    info, end = json.JSONDecoder().raw_decode(text)
    assert json.loads(text[end:])["state"] == "SYNC_STATE_OFF"
    assert 0 < info["learner"]["encode_seconds_per_sample"] < 1


def test_info_of_a_server_for_people(capsys, server, plain_server):
    assert cli.main(["info", server.address]) == 0
    text = capsys.readouterr().out
    for line in (
        r"server +jest-selector \S+, on cpu",
        r"policies +independent, joint, uniform",
        r"criteria +learnability, easy-reference, hard-learner",
        r"cache +none",
        r"learner +\S+, width \d+, fp32, sigmoid loss",
        r" +images 8 x 8 x 3",
        r" +[\d.]+ ms for a sample; [\d.]+ s for 1,000 candidates",
        r"limits +B <= 1,048,576, N <= 1,024, D <= 8,192",
        r" +an image: 16 MiB, 33,554,432 pixels",
        r"weights +version 0 of step 0, [\d.]+ s old",
        r" +off, newest 0, 0 swapped in, 0 refused, from the bundle",
    ):
        assert re.search(f"^{line}$", text, re.MULTILINE), (line, text)
    assert cli.main(["info", plain_server.address]) == 0
    assert re.search(r"^reference +none", capsys.readouterr().out, re.MULTILINE)
