"""`reference score --shards FOLDER`: what a kill leaves is whole or not there, and the next run writes the rest."""

import os
import signal

from selector_tools import cli
from support.forked import ForkedCommand
from support.pools import shard
from support.processes import eventually

SHARDS, PAIRS = 24, 300


def command(bundles, folder, shards):
    flags = {"--reference": bundles.reference_path, "--pool": folder / "pool", "--out": folder / "out"}
    words = [str(word) for flag in (flags | {"--shards": shards}).items() for word in flag]
    return ["reference", "score", *words]


def test_a_kill_while_they_are_written(tmp_path, bundles):
    (tmp_path / "pool").mkdir()
    for number in range(SHARDS):
        shard(tmp_path / "pool" / f"s{number}.tar", PAIRS, number)
    assert cli.main(command(bundles, tmp_path, tmp_path / "whole")) == 0
    again = tmp_path / "again"

    def written():
        return sorted(again.glob("s*.tar"))

    process = ForkedCommand(command(bundles, tmp_path, again), dict(os.environ), tmp_path / "log")
    eventually(lambda: written() or process.poll() is not None, 60)
    process.send_signal(signal.SIGKILL)
    assert process.wait(20) == -signal.SIGKILL
    kept = {file.name: file.stat().st_ino for file in written()}
    assert 0 < len(kept) < SHARDS
    assert cli.main(command(bundles, tmp_path, again)) == 0
    names = sorted(file.name for file in (tmp_path / "whole").iterdir())
    assert sorted(file.name for file in again.iterdir()) == names, "nothing of the killed is left"
    assert {name: (again / name).stat().st_ino for name in kept} == kept, "what was done is left as it is"
    for name in names:
        assert (again / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
