"""The recorder: what it writes, with content and without, within its bound; and that it opens again."""

import io
import os
import signal
import stat
from dataclasses import replace

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
from selector_proto.v1 import inspection_pb2 as pb
from selector_proto.v1 import inspection_pb2_grpc as rpc
from selector_tools.inspector.recorded_source import RecordedSource
from support.observations import observation
from support.processes import eventually
from support.rules import COUNT, PICKS, PIXELS, TOKENS, name
from support.wire import raw

from selector_server.errors import NotPossible, SetupError
from selector_server.inspection.recorder import SUPER_BATCHES, Recorder, recorded

SECRETS = (b"a secret caption", b"a secret tag", b"secret-id")


def ids(count: int) -> list[bytes]:
    return [f"ssecret-id-{index}".encode() for index in range(count)]


def seen(number: int, size=20, **changes):
    """An observation whose content is secret."""
    captions, tags = [SECRETS[0]] * size, [SECRETS[1]] * size
    return observation(size, number=number, step=number, ids=ids(size), captions=captions, tags=tags, **changes)


@pytest.mark.parametrize("content", [True, False])
def test_files_hold_content_only_if_they_may(tmp_path, content):
    recorder = Recorder(tmp_path / "new" / "folder", "run", content, 1 << 20)
    for number in range(SUPER_BATCHES):
        recorder.add(seen(number))
    [file] = recorded(tmp_path / "new" / "folder")
    data = pq.read_table(file)
    # Values may be compressed in the file, so that they are looked for where they are read.
    said = str(data.to_pydict()).encode() + str(data.schema).encode() + file.read_bytes()
    assert [secret in said for secret in SECRETS] == [content] * 3
    assert ("caption" in data.column_names) == content
    assert data.num_rows == SUPER_BATCHES * 20
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_notebook_reads_a_dataframe(tmp_path):
    recorder = Recorder(tmp_path, "run", True, 1 << 20)
    one = seen(3)
    recorder.add(one)
    recorder.flush()
    frame = pandas.read_parquet(tmp_path)
    assert frame["learner_loss"].to_numpy() == pytest.approx(one.learner, nan_ok=True)
    assert (frame["fate"] == "picked").sum() == one.count(1)
    assert set(frame["run"]) == {"run"}
    assert frame["at"].iloc[0].timestamp() == pytest.approx(one.at, abs=1e-5)
    assert (frame["reason"].notna() == (frame["fate"] == "excluded")).all()


def test_the_oldest_files_go_first(tmp_path):
    (foreign := tmp_path / "notes.txt").write_text("mine")
    recorder = Recorder(tmp_path, "run", True, 1)
    sizes = []
    for number in range(3):
        recorder.add(seen(number))
        recorder.flush()
        sizes += [file.stat().st_size for file in recorded(tmp_path)]
    bounded = Recorder(tmp_path, "run", True, 2 * sizes[0] + sizes[0] // 2)
    for number in range(3, 8):
        bounded.add(seen(number))
        bounded.flush()
        assert sum(file.stat().st_size for file in recorded(tmp_path)) <= 2 * sizes[0] + sizes[0] // 2
    numbers = [pq.read_table(file)["super_batch"][0].as_py() for file in recorded(tmp_path)]
    assert numbers == [6, 7]
    assert foreign.read_text() == "mine"


def test_what_waits_for_long_is_written(tmp_path):
    now = [0.0]
    recorder = Recorder(tmp_path, "run", False, 1 << 20, lambda: now[0])
    recorder.add(seen(1))
    now[0] = 59.0
    recorder.look()
    assert not recorded(tmp_path)
    now[0] = 60.0
    recorder.look()
    assert len(recorded(tmp_path)) == 1


def test_half_a_file_is_swept(tmp_path):
    (half := tmp_path / ".0000000001.000000-000000001.parquet").write_bytes(b"PAR1")
    Recorder(tmp_path, "run", False, 1 << 20)
    assert not half.exists()


def test_a_disk_that_is_full_ends_nothing(tmp_path, caplog, monkeypatch):
    recorder = Recorder(tmp_path / "gone", "run", False, 1 << 20)
    (tmp_path / "gone").rmdir()
    for number in range(3):
        recorder.add(seen(number))
        recorder.flush()
    [line] = [record.getMessage() for record in caplog.records]
    assert "cannot be written to: No such file or directory" in line


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match=r"record is .*file/folder; must be a folder that can be written to"):
        Recorder(tmp_path / "file" / "folder", "run", False, 1 << 20)


def test_what_was_recorded_is_shown_as_it_was(tmp_path):
    recorder = Recorder(tmp_path, "a run", True, 1 << 20)
    given = [seen(number, fallbacks=number) for number in (1, 2, 3)]
    for one in given:
        recorder.add(one)
    recorder.flush()
    source = RecordedSource(tmp_path)
    overview = source.get_overview(pb.GetOverviewRequest())
    assert (overview.run, overview.totals.selections, overview.totals.fallbacks) == ("a run", 3, 3)
    assert [point.trainer_step for point in overview.points] == [1, 2, 3]
    assert dict(overview.rule) == given[-1].rule
    told = source.get_super_batch(pb.GetSuperBatchRequest(super_batch=2))
    assert list(told.fates) == given[1].fates.tolist()
    np.testing.assert_array_equal(np.array(told.scores, np.float32), given[1].scores)
    assert told.point.locality.adjacent == given[1].locality.adjacent
    sample = source.get_sample(pb.GetSampleRequest(id="secret-id-5"))
    assert (sample.seen, sample.last.caption, sample.last.tag) == (3, "a secret caption", "a secret tag")
    assert sample.last.missing == "pictures are not recorded"
    assert {one.name for one in source.list_slices(pb.ListSlicesRequest()).words} == {"secret", "caption"}
    data = b"".join(one.data for one in source.download_super_batches(pb.DownloadSuperBatchesRequest(last=1)))
    assert pq.read_table(io.BytesIO(data)).num_rows == 20


def test_integers_stay_integers(tmp_path):
    from selector_server.encoding.reference_cache import integer_key

    recorder = Recorder(tmp_path, "run", True, 1 << 20)
    one = seen(1)
    recorder.add(replace(one, content=replace(one.content, ids=[integer_key(-number) for number in range(20)])))
    recorder.flush()
    assert RecordedSource(tmp_path).get_sample(pb.GetSampleRequest(id="-7")).seen == 1


@pytest.mark.parametrize("data", [b"", b"PAR1", os.urandom(3000)], ids=["empty", "cut", "noise"])
def test_a_file_that_is_none(tmp_path, data):
    (tmp_path / "1.parquet").write_bytes(data)
    with pytest.raises(NotPossible, match=r"file is .*1.parquet; is none that was recorded"):
        RecordedSource(tmp_path)


def test_a_table_of_somebody_else(tmp_path):
    import pyarrow as pa

    pq.write_table(pa.table({"a": [1]}), tmp_path / "1.parquet")
    with pytest.raises(NotPossible, match="is none that was recorded"):
        RecordedSource(tmp_path)
    with pytest.raises(NotPossible, match="has no files that selector serve --record wrote"):
        RecordedSource(tmp_path / "nothing")


@pytest.mark.parametrize("content", ["true", "false"])
def test_a_sidecar_records_until_its_end(sidecar, bundles, tmp_path, content):
    """It keeps nothing for admin calls then, and writes what waits when it is told to end."""
    server = sidecar(bundles.flags | {"record": tmp_path / "record", "record_content": content, "run": "the-run"})
    for step in range(3):
        server.select(name(raw(PIXELS, TOKENS, trainer_step=step), range(COUNT)))
    with pytest.raises(Exception, match="start the server with --inspect"):
        rpc.InspectionServiceStub(server.channel).GetOverview(pb.GetOverviewRequest(), timeout=10)
    server.hang_up()
    server.signal(signal.SIGTERM)
    eventually(lambda: server.process.poll() is not None)
    source = RecordedSource(tmp_path / "record")
    overview = source.get_overview(pb.GetOverviewRequest())
    assert (overview.run, overview.totals.candidates, overview.totals.picked) == ("the-run", 3 * COUNT, 3 * PICKS)
    assert overview.content == (content == "true")
    assert "could not be" not in server.text
