"""Pools and scores in a real S3-compatible store, through s3fs: read by ranges, listed, written whole, refused."""

import json

import numpy as np
import pytest
from selector_tools import cli
from selector_tools.pools import scores, storage
from selector_tools.pools.opening import open_pool
from support.pools import shard

from selector_server.errors import SetupError


@pytest.fixture
def bucket(store, tmp_path):
    """A new bucket with three shards of 20 pairs in the folder `pool`; yields its name."""
    name = f"b{abs(hash(str(tmp_path)))}"
    store.create_bucket(Bucket=name)
    for number in range(3):
        file = shard(tmp_path / f"s{number}.tar", 20, number)
        store.put_object(Bucket=name, Key=f"pool/s{number}.tar", Body=file.read_bytes())
    return name


def ids(place):
    return [name for batch in open_pool(place).batches(100) for name in batch.ids]


IDS = [f"s{number}/{row:04}" for number in range(3) for row in range(20)]


@pytest.mark.parametrize("place", ["pool", "pool/*.tar", "pool/s{0..2}.tar", "pool/s{0,1,2}.tar"])
def test_a_bucket_is_read_as_a_folder_is(bucket, place):
    assert ids(f"s3://{bucket}/{place}") == IDS


def test_only_the_ranges_that_are_needed_are_asked_for(store, bucket):
    store.put_object(Bucket=bucket, Key="big", Body=np.random.default_rng(0).bytes(100_000))
    with storage.opened(f"s3://{bucket}/big", block=1000) as file:
        file.seek(-10, 2)
        assert len(file.read()) == 10


def test_what_is_not_there_and_what_may_not_be_read_is_named(store, bucket):
    with pytest.raises(SetupError, match=rf"--pool is s3://{bucket}/pool/s7.tar; must be an \.npz"):
        ids(f"s3://{bucket}/pool/s7.tar")
    with pytest.raises(SetupError, match="--pool is s3://nobucket-at-all/pool"):
        ids("s3://nobucket-at-all/pool")


def scored(capsys, reference, pool, out):
    flags = ["reference", "score", "--reference", reference, "--pool", pool, "--out", out, "--json"]
    status = cli.main([str(each) for each in flags])
    said, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(said)


def test_a_pool_is_scored_from_a_bucket_into_one_and_goes_on(capsys, store, bucket, tmp_path, bundles):
    pool, out = f"s3://{bucket}/pool", f"s3://{bucket}/scores"
    figures = scored(capsys, bundles.reference_path, pool, out)
    assert (figures["new"], figures["shards"]) == (60, 3)
    listed = store.list_objects_v2(Bucket=bucket, Prefix="scores/")["Contents"]
    assert [each["Key"] for each in listed] == [f"scores/s{number}.parquet" for number in range(3)]
    parts = [part for file in scores.files_in(out) for part in scores.read(file)]
    assert [name for part in parts for name in part.ids] == IDS
    # One is lost, and one of the pool's shards is another one now.
    store.delete_object(Bucket=bucket, Key="scores/s0.parquet")
    store.put_object(Bucket=bucket, Key="pool/s2.tar", Body=shard(tmp_path / "x.tar", 9, 8).read_bytes())
    again = scored(capsys, bundles.reference_path, pool, out)
    assert (again["new"], again["new_shards"], again["pairs"]) == (29, 2, 49)


def test_credentials_that_expire_end_the_run_in_one_line_and_it_goes_on(capsys, bucket, bundles, monkeypatch):
    """The store answers as S3 does once a token is too old: in the middle of the run."""
    from botocore.exceptions import ClientError
    from s3fs import S3FileSystem
    from s3fs.errors import translate_boto_error

    before, asked = S3FileSystem._cat_file, []

    async def expired(self, path, **more):
        asked.append(path)
        if "s1.tar" in path:
            answer = {"Error": {"Code": "ExpiredToken", "Message": "The provided token has expired."}}
            raise translate_boto_error(ClientError(answer, "GetObject"))
        return await before(self, path, **more)

    pool, out = f"s3://{bucket}/pool", f"s3://{bucket}/scores"
    with monkeypatch.context() as patch:
        patch.setattr(S3FileSystem, "_cat_file", expired)
        S3FileSystem.clear_instance_cache()
        flags = ["reference", "score", "--reference", bundles.reference_path, "--pool", pool, "--out", out]
        assert cli.main([*map(str, flags), "--batch", "5"]) == 2
    S3FileSystem.clear_instance_cache()
    err = capsys.readouterr().err
    assert err == f"selector reference score: --pool is {pool}/s1.tar; The provided token has expired.\n"
    assert sum("s1.tar" in path for path in asked) == 1, "this does not pass by itself"
    assert [file.rpartition("/")[2] for file in scores.files_in(out)] == ["s0.parquet"]
    assert scored(capsys, bundles.reference_path, pool, out)["new"] == 40
