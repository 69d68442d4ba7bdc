"""`reference score --out FOLDER`: a file for each shard, whole or not there, and nothing lost or twice after a kill."""

import io
import json
import os
import signal
import tarfile
from dataclasses import replace

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from selector_tools import cli
from selector_tools.embedding import embedder
from selector_tools.export.bundle_writer import export_reference
from selector_tools.pools import scores
from selector_tools.pools.opening import open_pool
from selector_tools.pools.scores import About, Scores
from selector_tools.reference.scoring import about, score
from support.disks import fill_up, small_disk
from support.forked import ForkedCommand
from support.model import WIDTH, TwoTower, embed, samples, source
from support.pools import arrays, png, shard, write_tar
from support.processes import eventually
from webdataset.tariterators import group_by_keys, tar_file_iterator

from selector_server.errors import SetupError

ABOUT = About("ab" * 32, "tiny", 4, 10.0, -5.0, 2, "shard/key")


def selector(capsys, *command):
    status = cli.main(["reference", "score", *(str(part) for part in command)])
    out, err = capsys.readouterr()
    return status, out, err


def scored(capsys, reference, pool, out, *more):
    """What a run that ends well says."""
    status, said, err = selector(capsys, "--reference", reference, "--pool", pool, "--out", out, "--json", *more)
    assert status == 0, err
    return json.loads(said), err


def everything(folder, expected=None):
    """All scores of a folder, in the order of their files."""
    parts = [part for file in scores.files_in(str(folder)) for part in scores.read(file, expected)]
    ids = [name for part in parts for name in part.ids]
    return ids, *(np.concatenate([getattr(part, name) for part in parts]) for name in ("own_loss", "cosine", "image"))


@pytest.fixture
def pool(tmp_path):
    """Four shards of 30 pairs."""
    (tmp_path / "pool").mkdir()
    for number in range(4):
        shard(tmp_path / "pool" / f"s{number}.tar", 30, number)
    return tmp_path / "pool"


IDS = [f"s{number}/{row:04}" for number in range(4) for row in range(30)]


def test_a_file_for_each_shard_holds_what_torch_computes(capsys, tmp_path, pool, bundles):
    figures, _ = scored(capsys, bundles.reference_path, pool, tmp_path / "out")
    assert (figures["pairs"], figures["new"], figures["shards"], figures["new_shards"]) == (120, 120, 4, 4)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [f"s{n}.parquet" for n in range(4)]
    ids, loss, cosine, image = everything(tmp_path / "out")
    assert ids == IDS
    expected = [embed(bundles.reference, *samples(30, number)) for number in range(4)]
    np.testing.assert_allclose(image, torch.cat([each.image for each in expected]), atol=1e-3)
    own = torch.cat([(e.image * e.text).sum(dim=1) for e in expected])
    logits = expected[0].scale * own + expected[0].bias
    np.testing.assert_allclose(cosine, own, atol=2e-3)
    np.testing.assert_allclose(loss, torch.nn.functional.softplus(-logits), atol=2e-2)
    assert figures["mean_loss"] == pytest.approx(loss.mean(), rel=1e-6)
    # Others read it as plain Parquet.
    table = pq.read_table(tmp_path / "out" / "s1.parquet")
    assert table.column("id").to_pylist() == IDS[30:60]
    assert pa.types.is_float16(table.schema.field("text").type.value_type)
    known = json.loads(table.schema.metadata[b"selector.scores"])
    with embedder(bundles.reference_path, "cpu", 1) as reference:
        assert known == {"version": 1} | vars(about(reference.model.bundle, "shard/key"))


def test_a_second_run_scores_nothing_and_then_what_is_new_or_another(capsys, tmp_path, pool, bundles):
    out, reference = tmp_path / "out", bundles.reference_path
    first, _ = scored(capsys, reference, pool, out)
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    again, _ = scored(capsys, reference, pool, out)
    assert (again["new"], again["new_shards"], again["pairs"]) == (0, 0, 120)
    assert again["mean_loss"] == pytest.approx(first["mean_loss"])
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before
    shard(pool / "s9.tar", 5, 9)
    shard(pool / "s2.tar", 7, 7)
    grown, _ = scored(capsys, reference, pool, out)
    assert (grown["new"], grown["new_shards"], grown["pairs"]) == (12, 2, 102)
    assert [name for name in everything(out)[0] if name.startswith("s2")] == [f"s2/000{row}" for row in range(7)]


def test_a_renamed_shard_leaves_a_stranger_behind(capsys, tmp_path, pool, bundles):
    out = tmp_path / "out"
    scored(capsys, bundles.reference_path, pool, out)
    (pool / "s3.tar").rename(pool / "t3.tar")
    figures, err = scored(capsys, bundles.reference_path, pool, out)
    assert (figures["new"], figures["pairs"]) == (30, 120)
    line = f"1 files in {out} belong to no shard of the pool, of which the first is s3.parquet\n"
    assert err == f"selector reference score: {line}"


def test_keys_of_two_shards_count_once_in_one_run_and_in_two(capsys, tmp_path, pool, bundles):
    (pool / "s3.tar").write_bytes((pool / "s0.tar").read_bytes())
    more = ("--ids", "key", "--max-excluded-share", 0.9)
    one, _ = scored(capsys, bundles.reference_path, pool, tmp_path / "one", *more)
    assert one["exclusions"]["reasons"]["repeated"]["count"] == 90
    scored(capsys, bundles.reference_path, pool / "s{0..1}.tar", tmp_path / "two", *more)
    two, _ = scored(capsys, bundles.reference_path, pool, tmp_path / "two", *more)
    assert two["exclusions"] == one["exclusions"]
    assert everything(tmp_path / "two")[0] == everything(tmp_path / "one")[0] == [f"{row:04}" for row in range(30)]


def test_a_killed_run_goes_on_and_nothing_is_lost_or_twice(capsys, tmp_path, bundles):
    """The process is killed as soon as some shards are done, again and again, until it ends by itself."""
    (tmp_path / "pool").mkdir()
    for number in range(12):
        shard(tmp_path / "pool" / f"s{number:02}.tar", 40, number)
    out = tmp_path / "out"
    command = ["reference", "score", "--reference", bundles.reference_path, "--pool", tmp_path / "pool"]
    command += ["--out", out, "--batch", 4, "--threads", 1]

    def done():
        return len(list(out.glob("s*.parquet")))

    kills = 0
    for _ in range(3):
        before = done()
        process = ForkedCommand([str(part) for part in command], dict(os.environ), tmp_path / "log")
        eventually(lambda b=before, p=process: done() > b or p.poll() is not None, 60)
        process.send_signal(signal.SIGKILL)
        kills += process.wait(20) == -signal.SIGKILL
    assert kills >= 1
    (out / ".half.part").write_bytes(b"what a killed writer leaves")
    begun = {file.name: file.stat().st_ino for file in out.glob("s*.parquet")}
    figures, _ = scored(capsys, bundles.reference_path, tmp_path / "pool", out, "--batch", 4)
    assert figures["new"] == 480 - 40 * len(begun)
    assert {name: (out / name).stat().st_ino for name in begun} == begun, "what was done is left as it is"
    assert not list(out.glob(".*")), "nothing of the killed is left"
    ids, *columns = everything(out)
    assert ids == [f"s{number:02}/{row:04}" for number in range(12) for row in range(40)]
    scored(capsys, bundles.reference_path, tmp_path / "pool", tmp_path / "whole", "--batch", 4)
    for found, expected in zip(columns, everything(tmp_path / "whole")[1:], strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_damaged_shard_ends_the_run_and_those_before_it_are_kept(capsys, tmp_path, pool, bundles):
    whole = (pool / "s2.tar").read_bytes()
    (pool / "s2.tar").write_bytes(whole[:5000])
    status, _, err = selector(
        capsys, "--reference", bundles.reference_path, "--pool", pool, "--out", tmp_path / "out", "--batch", 4
    )
    assert (status, err.count("\n")) == (2, 1)
    assert f"--pool is {pool}/s2.tar; must be a tar file, and whole" in err
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["s0.parquet", "s1.parquet"]
    (pool / "s2.tar").write_bytes(whole)
    figures, _ = scored(capsys, bundles.reference_path, pool, tmp_path / "out")
    assert (figures["new"], figures["pairs"]) == (60, 120)


def test_what_cannot_be_used_is_counted_over_all_runs(capsys, tmp_path, pool, bundles):
    write_tar(pool / "s0.tar", [("a.png", b"no image"), ("a.txt", b"w1"), ("b.txt", b"w2")])
    first, _ = scored(capsys, bundles.reference_path, pool, tmp_path / "out")
    again, err = scored(capsys, bundles.reference_path, pool, tmp_path / "out")
    assert first["exclusions"] == again["exclusions"]
    assert (again["exclusions"]["excluded"], again["exclusions"]["seen"]) == (2, 92)
    assert "excluded 2 of 92 pairs" in err
    assert next(scores.read(str(tmp_path / "out" / "s1.parquet"))).ids[0] == "s1/0000"
    assert list(scores.read(str(tmp_path / "out" / "s0.parquet"))) == []


def test_scores_of_another_reference_or_other_ids_are_refused(capsys, tmp_path, pool, bundles):
    out = tmp_path / "out"
    scored(capsys, bundles.reference_path, pool / "s0.tar", out)
    export_reference(source("other", TwoTower(9).eval()), tmp_path / "other")
    for reference, more, why in (
        (tmp_path / "other", [], "has scores with fingerprint"),
        (bundles.reference_path, ["--ids", "key"], "has scores with ids shard/key; must be key"),
    ):
        status, _, err = selector(capsys, "--reference", reference, "--pool", pool, "--out", out, *more)
        assert (status, err.count("\n")) == (2, 1)
        assert why in err
        assert "s0.parquet" in err
    assert len(list(out.iterdir())) == 1


def test_a_store_takes_scores_too(capsys, pool, bundles):
    store = fsspec.filesystem("memory")
    store.store.clear()
    for file in pool.iterdir():
        store.pipe(f"/pool/{file.name}", file.read_bytes())
    figures, _ = scored(capsys, bundles.reference_path, "memory://pool", "memory://out/scores")
    assert figures["new"] == 120
    again, _ = scored(capsys, bundles.reference_path, "memory://pool", "memory://out/scores")
    assert (again["new"], again["pairs"]) == (0, 120)
    assert everything("memory://out/scores")[0] == IDS
    store.store.clear()


def test_integers_and_tags_are_kept(capsys, tmp_path, bundles):
    arrays(tmp_path / "p.npz", 9, ids=np.arange(9) * 2**40, tags=np.arange(9))
    scored(capsys, bundles.reference_path, tmp_path / "p.npz", tmp_path / "out")
    [found] = scores.read(str(tmp_path / "out" / "p.parquet"))
    np.testing.assert_array_equal(found.ids, np.arange(9) * 2**40)
    np.testing.assert_array_equal(found.tags, np.arange(9))


def test_a_full_disk_ends_the_run_in_one_line_and_it_goes_on_when_there_is_room(capsys, tmp_path, pool, bundles):
    with small_disk(tmp_path / "disk", "size=64k") as disk:
        fill_up(disk, leave=12_000)
        command = ("--reference", bundles.reference_path, "--pool", pool, "--out", disk / "out")
        status, _, err = selector(capsys, *command)
        assert (status, err.count("\n")) == (2, 1)
        assert "cannot be written: No space left on device" in err
        assert all(file.name.endswith(".parquet") for file in (disk / "out").iterdir())
        (disk / "ballast").unlink()
        assert scored(capsys, bundles.reference_path, pool, disk / "out")[0]["pairs"] == 120


def test_shards_are_scored_apart_as_on_other_machines(tmp_path, pool, bundles):
    """What a worker does: one shard at a time, each with its own file."""
    out = str(tmp_path / "out")
    with embedder(bundles.reference_path, "cpu", 1) as reference:
        for one in reversed(open_pool(str(pool)).shards()):
            [of_shard] = score(reference, [one], out, 16)
            assert (of_shard.name, of_shard.pairs) == (one.name, 30)
    assert everything(out)[0] == IDS


def test_shards_are_written_again_with_embeddings_of_each_sample(capsys, tmp_path, pool, bundles):
    write_tar(pool / "s0.tar", [("a.png", b"no image"), ("a.txt", b"w1"), ("x/b.json", b"{}")])
    out, again = tmp_path / "out", tmp_path / "again"
    more = ("--shards", again)
    scored(capsys, bundles.reference_path, pool, out, *more)
    assert sorted(file.name for file in again.iterdir()) == ["reference.json", *(f"s{n}.tar" for n in range(4))]
    assert json.loads((again / "reference.json").read_text())["width"] == WIDTH
    with (again / "s1.tar").open("rb") as stream:
        found = list(group_by_keys({"__url__": "", **file} for file in tar_file_iterator(stream)))
    assert [sample["__key__"] for sample in found] == [f"{row:04}" for row in range(30)]
    kept = next(scores.read(str(out / "s1.parquet")))
    for row, sample in enumerate(found):
        both = np.load(io.BytesIO(sample["ref.npy"]))
        assert both.dtype == np.float16
        np.testing.assert_array_equal(both, [kept.image[row], kept.text[row]])
    with tarfile.open(again / "s0.tar") as tar:
        assert tar.getnames() == ["a.png", "a.txt", "x/b.json"], "what cannot be used stays as it is"
    # They are a pool as before, and only what is missing or of another file is written again.
    assert [name for batch in open_pool(str(again)).batches(500) for name in batch.ids] == ["s0/a", *IDS[30:]]
    before = {file.name: file.stat().st_mtime_ns for file in again.iterdir()}
    (again / "s1.tar").unlink()
    shard(pool / "s2.tar", 7, 7)
    scored(capsys, bundles.reference_path, pool, out, *more)
    after = {file.name: file.stat().st_mtime_ns for file in again.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"s1.tar", "s2.tar"}
    # Written again from themselves, members are not there twice.
    scored(capsys, bundles.reference_path, again, tmp_path / "out2", "--shards", tmp_path / "third")
    assert (tmp_path / "third" / "s3.tar").read_bytes() == (again / "s3.tar").read_bytes()


def test_shards_that_cannot_be_written_again_are_named(capsys, tmp_path, pool, bundles):
    arrays(tmp_path / "p.npz", 9)
    lists = write_tar(tmp_path / "l.tar", [("a.png", png(samples(1)[0][0])), ("a.txt", b"w1\nw2")])
    for source_, more, why in (
        (tmp_path / "p.npz", [], "takes WebDataset shards only"),
        (
            lists,
            ["--captions", "txt-lines"],
            "has 2 pairs that are no sample of their own",
        ),
    ):
        flags = ["--reference", bundles.reference_path, "--pool", source_, "--out", tmp_path / source_.stem]
        status, _, err = selector(capsys, *flags, "--shards", tmp_path / "again", *more)
        assert (status, err.count("\n")) == (2, 1)
        assert why in err
    assert [file.name for file in (tmp_path / "again").iterdir()] == ["reference.json"]
    scored(capsys, bundles.reference_path, pool / "s0.tar", tmp_path / "o", "--shards", tmp_path / "two")
    facts = json.loads((tmp_path / "two" / "reference.json").read_text()) | {"fingerprint": "cd" * 32}
    (tmp_path / "two" / "reference.json").write_text(json.dumps(facts))
    flags = [
        "--reference",
        bundles.reference_path,
        "--pool",
        pool,
        "--out",
        tmp_path / "o",
        "--shards",
        tmp_path / "two",
    ]
    status, _, err = selector(capsys, *flags)
    assert (status, err.count("\n")) == (2, 1)
    assert "--shards is" in err
    assert "has scores with fingerprint cdcd" in err


def some(count=5, width=4, first=0):
    rng = np.random.default_rng(first)
    vectors = (rng.standard_normal((count, width)).astype(np.float16) for _ in range(2))
    ids = [f"s/{row}" for row in range(first, first + count)]
    return Scores(ids, rng.random(count, np.float32), rng.random(count, np.float32), *vectors)


def write(place, *parts, known=ABOUT):
    with scores.writing(str(place), known) as writer:
        for part in parts:
            writer.add(part)
        writer.close("s", "1 2", {"seen": 0, "excluded": 0, "reasons": {}})
    return str(place)


def test_what_was_written_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "_ROWS", 8)
    parts = [some(first=first) for first in range(0, 20, 5)]
    file = write(tmp_path / "s.parquet", *parts)
    found = list(scores.read(file, ABOUT))
    assert [len(part) for part in found] == [8, 2, 8, 2]
    assert [name for part in found for name in part.ids] == [f"s/{row}" for row in range(20)] == scores.read_ids(file)
    for name in ("own_loss", "cosine", "image", "text"):
        both = (np.concatenate([getattr(part, name) for part in side]) for side in (found, parts))
        np.testing.assert_array_equal(*both)
    assert found[0].image.dtype == np.float16
    assert scores.header(file)[1].pairs == 20


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"fingerprint": "cd" * 32}, "has scores with fingerprint abab"),
        ({"width": 8}, "has scores with width 4; must be 8"),
        ({"scale": 1.0}, "has scores with scale 10.0; must be 1.0"),
        ({"decoder": 1}, "has scores with decoder 2; must be 1"),
        ({"ids": "integer"}, "has scores with ids shard/key; must be integer"),
    ],
)
def test_scores_of_something_else_are_refused_by_whoever_reads_them(tmp_path, other, why):
    file = write(tmp_path / "s.parquet", some())
    with pytest.raises(SetupError, match=why) as caught:
        list(scores.read(file, replace(ABOUT, **other)))
    assert str(caught.value).startswith(f"--scores is {file}; ")


def damaged(name, place):
    """A file that is no scores, for one of these reasons."""
    whole = write(place, some(4000))
    content = place.read_bytes()
    table = pq.read_table(whole)
    match name:
        case "truncated":
            place.write_bytes(content[: len(content) // 2])
        case "empty":
            place.write_bytes(b"")
        case "spoilt":
            place.write_bytes(content[:200] + bytes(2000) + content[2200:])
        case "foreign":
            pq.write_table(pa.table({"id": ["a"]}), place)
        case "columns":
            pq.write_table(table.drop_columns(["cosine"]), place)
        case "metadata":
            pq.write_table(table.replace_schema_metadata({b"selector.scores": b"[]", b"selector.shard": b"{}"}), place)
        case "version":
            known = json.loads(table.schema.metadata[b"selector.scores"]) | {"version": 7}
            pq.write_table(
                table.replace_schema_metadata({b"selector.scores": json.dumps(known), b"selector.shard": b"{}"}), place
            )
    return whole


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("truncated", "must be a Parquet file, and whole"),
        ("empty", "must be a Parquet file, and whole"),
        ("spoilt", "is damaged|must be a Parquet file"),
        ("foreign", "is no file of scores: KeyError"),
        ("columns", "is no file of scores|other columns"),
        ("metadata", "is no file of scores"),
        ("version", "has scores of format 7; must be 1"),
    ],
)
def test_files_that_are_no_scores_are_named_in_one_line(tmp_path, name, why):
    file = damaged(name, tmp_path / "s.parquet")
    with pytest.raises(SetupError, match=why) as caught:
        list(scores.read(file))
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shard", ["../../etc/passwd", "/d/s.tar", "..", "a/b", "a%2Fb", "ü x"])
def test_names_of_shards_lead_nowhere(shard):
    name = scores.name_of(shard)
    assert os.path.basename(name) == name
    assert name not in (".", "..")
    assert len({scores.name_of(one) for one in ("a/b", "a%2Fb", "a%252Fb")}) == 3
