"""`selector cache` and the loop that embeds: nothing is embedded twice, and nothing is skipped silently."""

import json
import re

import numpy as np
import pytest
from selector_tools import cli
from selector_tools.embedding import embedder
from selector_tools.export.bundle_writer import export_reference
from selector_tools.pools.opening import open_pool
from support.model import TwoTower, embed, samples, source
from support.pools import arrays, png, shard, text, write_tar

from selector_server.encoding.reference_cache import ReferenceCache


def selector(capsys, *command):
    status = cli.main([str(part) for part in command])
    out, err = capsys.readouterr()
    return status, out, err


def fill(capsys, cache, reference, pool, *more):
    status, out, err = selector(
        capsys, "cache", "fill", "--cache", cache, "--reference", reference, "--pool", pool, "--batch", 7, *more
    )
    counts = re.match(r"encoded ([\d,]+), known ([\d,]+), skipped ([\d,]+)", out)
    return status, counts and tuple(int(count.replace(",", "")) for count in counts.groups()), err


def test_a_second_fill_encodes_nothing_and_a_new_sample_alone(capsys, tmp_path, bundles):
    pool, cache = shard(tmp_path / "a.tar", 30), tmp_path / "cache"
    assert fill(capsys, cache, bundles.reference_path, pool) == (0, (30, 0, 0), "")
    assert fill(capsys, cache, bundles.reference_path, pool) == (0, (0, 30, 0), "")
    shard(tmp_path / "b.tar", 3, seed=1)
    assert fill(capsys, cache, bundles.reference_path, tmp_path) == (0, (3, 30, 0), "")


def test_another_reference_embeds_all(capsys, tmp_path, bundles):
    pool, cache = arrays(tmp_path / "p.npz", 20), tmp_path / "cache"
    assert fill(capsys, cache, bundles.reference_path, pool)[1] == (20, 0, 0)
    export_reference(source("other", TwoTower(9).eval()), tmp_path / "other")
    assert fill(capsys, cache, tmp_path / "other", pool)[1] == (20, 0, 0)
    status, out, _ = selector(capsys, "cache", "stat", cache, "--json")
    found = json.loads(out)
    assert status == 0
    assert {held["name"]: held["entries"] for held in found["references"]} == {"tiny-ref": 20, "other": 20}
    assert 0 < found["used_bytes"] < found["max_bytes"] == 32 << 30
    status, out, _ = selector(capsys, "cache", "stat", cache)
    assert "tiny-ref" in out
    assert "of 32,768.0 MiB" in out


def test_what_is_kept_is_what_a_sidecar_would_find(capsys, tmp_path, bundles):
    fill(capsys, tmp_path / "cache", bundles.reference_path, arrays(tmp_path / "p.npz", 10))
    with embedder(bundles.reference_path, "cpu", 1) as reference:
        bundle = reference.model.bundle
    cache = ReferenceCache(tmp_path / "cache", "tiny-ref", bundle.fingerprint, bundle.manifest.width, 1 << 24)
    [batch] = open_pool(str(tmp_path / "p.npz")).batches(10)
    found = cache.find(batch.keys)
    cache.close()
    expected = embed(bundles.reference, *samples(10))
    assert found.known.all()
    np.testing.assert_allclose(found.image, expected.image, atol=1e-3)
    np.testing.assert_allclose(found.text, expected.text, atol=1e-3)


def test_the_loop_gives_what_torch_gives_in_order(tmp_path, bundles):
    pool, expected = shard(tmp_path / "a.tar", 30), embed(bundles.reference, *samples(30))
    # Half of the entries are there before: known and new ones meet in every batch.
    with embedder(bundles.reference_path, "cpu", 1, tmp_path / "cache", 1 << 24) as reference:
        half = write_half(tmp_path)
        assert sum(seen.fresh for seen in reference.run(open_pool(half), half, 4)) == 15
        seen = list(reference.run(open_pool(str(pool)), str(pool), 8))
    assert [len(each.batch) for each in seen] == [8, 8, 8, 6]
    assert [each.fresh for each in seen] == [4, 4, 4, 3]
    image, words = (np.concatenate([getattr(each.embedded, part) for each in seen]) for part in ("image", "text"))
    np.testing.assert_allclose(image, expected.image, atol=1e-3)
    np.testing.assert_allclose(words, expected.text, atol=1e-3)


def write_half(folder):
    """Every other sample of the shard a.tar, under the same ids."""
    pixels, tokens = samples(30)
    members = []
    for row in range(0, 30, 2):
        members += [(f"{row:04}.png", png(pixels[row])), (f"{row:04}.txt", text(tokens[row]).encode())]
    (folder / "half").mkdir()
    return str(write_tar(folder / "half" / "a.tar", members))


def test_images_that_cannot_be_read_are_counted_and_named(capsys, tmp_path, bundles):
    pixels, tokens = samples(20)
    members = []
    for row in range(20):
        content = b"not an image" if row % 3 == 0 else png(pixels[row])
        members += [(f"{row}.png", content), (f"{row}.txt", text(tokens[row]).encode())]
    pool = write_tar(tmp_path / "s.tar", members)
    status, counts, err = fill(capsys, tmp_path / "cache", bundles.reference_path, pool)
    assert (status, counts) == (0, (13, 0, 7))
    assert err.count("\n") == 6
    assert "skipped s/0: " in err
    assert "skipped s/12: " in err
    assert "skipped and 2 more" in err
    assert fill(capsys, tmp_path / "cache", bundles.reference_path, pool)[1] == (0, 13, 7)


def test_a_pool_of_bad_images_alone_is_a_mistake(capsys, tmp_path, bundles):
    pool = write_tar(tmp_path / "s.tar", [("1.png", b"x"), ("1.txt", b"w1"), ("2.png", b"y"), ("2.txt", b"w2")])
    status, _, err = fill(capsys, tmp_path / "cache", bundles.reference_path, pool)
    assert status == 2
    assert err.count("\n") == 1
    assert "none of its 2 images can be read" in err


def test_a_full_cache_says_so_and_goes_on_where_it_stopped(capsys, tmp_path, bundles):
    pool, cache, small = arrays(tmp_path / "p.npz", 9000), tmp_path / "cache", 1 << 20
    more = ("--batch", 500, "--cache-bytes", small)
    status, _, err = fill(capsys, cache, bundles.reference_path, pool, *more)
    assert status == 2
    assert "raise --cache-bytes" in err.splitlines()[-1]
    kept = int(re.search(r"after (\d+) new", err)[1])
    assert fill(capsys, cache, bundles.reference_path, pool) == (0, (9000 - kept, kept, 0), "")


@pytest.mark.parametrize(
    ("more", "mistake"),
    [
        (["--batch", "0"], "--batch"),
        (["--threads", "-1"], "--threads"),
        (["--device", "abacus"], "--device"),
        (["--device", "cuda:99"], "device"),
        (["--cache-bytes", "10"], "--cache-bytes"),
        (["--cache-bytes", "many"], "--cache-bytes"),
        (["--pool", "nowhere.tar"], "--pool"),
        (["--reference", "nowhere"], "nowhere"),
        (["--cache", "/dev/null/cache"], "cache"),
    ],
)
def test_mistakes_print_one_line_and_exit_2(capsys, tmp_path, bundles, more, mistake):
    command = ["cache", "fill", "--cache", tmp_path / "cache", "--reference", bundles.reference_path]
    command += ["--pool", arrays(tmp_path / "p.npz", 4), *more]
    one_mistake(capsys, command, mistake)


def test_stat_of_no_cache(capsys, tmp_path):
    one_mistake(capsys, ["cache", "stat", tmp_path], "data.mdb")


def one_mistake(capsys, command, mistake):
    try:
        status = cli.main([str(part) for part in command])
    except SystemExit as exit_:  # argparse's own mistakes
        status = exit_.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert mistake in err
    assert err.startswith("selector cache ")
