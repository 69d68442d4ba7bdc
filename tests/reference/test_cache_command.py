"""`selector cache` and the loop that embeds: nothing is embedded twice, and nothing is skipped silently."""

import io
import json
import os
import re
import signal

import numpy as np
import pytest
from PIL import Image
from selector_tools import cli
from selector_tools.embedding import embedder
from selector_tools.export.bundle_writer import export_reference
from selector_tools.pools.opening import open_pool
from selector_tools.pools.webdataset import TarShard
from support.forked import ForkedCommand
from support.model import TOKENS, WIDTH, TwoTower, embed, samples, source, write_tokenizer
from support.pools import arrays, png, shard, text, write_tar
from support.processes import eventually

from selector_server.encoding.reference_cache import ReferenceCache, stat, string_key, tag
from selector_server.errors import SelectorError


def selector(capsys, *command):
    status = cli.main([str(part) for part in command])
    out, err = capsys.readouterr()
    return status, out, err


def fill(capsys, cache, reference, pool, *more):
    status, out, err = selector(
        capsys, "cache", "fill", "--cache", cache, "--reference", reference, "--pool", pool, "--batch", 7, *more
    )
    counts = re.match(r"encoded ([\d,]+), known ([\d,]+), excluded ([\d,]+)", out)
    return status, counts and tuple(int(count.replace(",", "")) for count in counts.groups()), err


def test_a_second_fill_encodes_nothing_and_a_new_sample_alone(capsys, tmp_path, bundles):
    pool, cache = shard(tmp_path / "a.tar", 30), tmp_path / "cache"
    assert fill(capsys, cache, bundles.reference_path, pool) == (0, (30, 0, 0), "")
    assert fill(capsys, cache, bundles.reference_path, pool) == (0, (0, 30, 0), "")
    shard(tmp_path / "b.tar", 3, seed=1)
    assert fill(capsys, cache, bundles.reference_path, tmp_path) == (0, (3, 30, 0), "")


def test_shards_that_are_wholly_known_are_not_read_again(capsys, tmp_path, bundles, monkeypatch):
    shard(tmp_path / "a.tar", 30)
    write_tar(
        tmp_path / "b.tar",
        [("1.png", b"no image"), ("1.txt", b"w1"), ("2.png", png(samples(1)[0][0])), ("2.txt", b"w1")],
    )
    cache, place = tmp_path / "cache", bundles.reference_path
    assert fill(capsys, cache, place, tmp_path)[1] == (31, 0, 1)
    read = []
    monkeypatch.setattr(TarShard, "pairs", lambda self, before=TarShard.pairs: read.append(self.name) or before(self))
    status, counts, err = fill(capsys, cache, place, tmp_path)
    assert (status, counts, read) == (0, (0, 31, 1), [])
    assert "excluded 1 of 32 pairs" in err
    assert [held.entries for held in stat(cache).references] == [31]
    with embedder(place, "cpu", 1, cache, 1 << 24) as reference:
        assert reference.cache.usage()[0] == 31
    assert fill(capsys, cache, place, tmp_path, "--strict")[0] == 2
    assert read == ["b"], "strict wants to see the pair that cannot be used"
    shard(tmp_path / "a.tar", 32)
    assert fill(capsys, cache, place, tmp_path)[1] == (2, 31, 1)
    assert fill(capsys, cache, place, tmp_path, "--ids", "key")[1] == (33, 0, 1)
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json")
    export_reference(source("other", TwoTower(9).eval(), tokenizer), tmp_path / "other")
    assert fill(capsys, cache, tmp_path / "other", tmp_path / "a.tar")[1] == (32, 0, 0)


def test_a_killed_fill_goes_on_with_the_shard_that_was_under_way(capsys, tmp_path, bundles):
    (tmp_path / "pool").mkdir()
    for number in range(6):
        shard(tmp_path / "pool" / f"s{number}.tar", 60, number)
    flags = ["--cache", tmp_path / "cache", "--reference", bundles.reference_path, "--pool", tmp_path / "pool"]
    command = [str(part) for part in ["cache", "fill", *flags, "--batch", 3, "--threads", 1]]
    process = ForkedCommand(command, dict(os.environ), tmp_path / "log")

    def kept():
        try:
            return sum(held.entries for held in stat(tmp_path / "cache").references)
        except SelectorError:
            return 0

    eventually(lambda: kept() > 90, 60, lambda: (tmp_path / "log").read_text())
    process.send_signal(signal.SIGKILL)
    assert process.wait(20) == -signal.SIGKILL
    before = kept()
    assert 90 < before < 360
    assert fill(capsys, tmp_path / "cache", bundles.reference_path, tmp_path / "pool")[1] == (360 - before, before, 0)


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
    assert [line.removeprefix("selector cache fill: ") for line in err.splitlines()][:2] == [
        "excluded 7 of 20 pairs (35.00%)",
        "  reason           pairs  the first",
    ]
    assert re.search(r"  format +7  s/0: 12 bytes; must be a JPEG, .*begins with b'not an image'\n$", err)
    assert fill(capsys, tmp_path / "cache", bundles.reference_path, pool)[1] == (0, 13, 7)


def test_a_pool_of_bad_images_alone_is_a_mistake(capsys, tmp_path, bundles):
    pool = write_tar(tmp_path / "s.tar", [("1.png", b"x"), ("1.txt", b"w1"), ("2.png", b"y"), ("2.txt", b"w2")])
    status, _, err = fill(capsys, tmp_path / "cache", bundles.reference_path, pool)
    assert status == 2
    assert err.count("\n") == 1
    assert "2 of its 2 pairs cannot be used (format 2)" in err


def hostile(folder):
    """A shard of 12 good pairs and one of each kind that cannot be used."""
    pixels, tokens = samples(13)
    members = []
    for row in range(12):
        members += [(f"{row}.png", png(pixels[row])), (f"{row}.txt", text(tokens[row]).encode())]
    image, words = png(pixels[12]), b"w1"
    members += [("no-caption.png", image), ("no-image.txt", words), ("cut.png", image[:60]), ("cut.txt", words)]
    members += [("other.jpg", b"%PDF-1.7"), ("other.txt", words), ("235342 Track 2.0.jpg", image)]
    members += [("235342 Track 2.0.txt", words), ("latin.png", image), ("latin.txt", b"caf\xe9")]
    members += [("long.png", image), ("long.txt", b"w1 " * 30_000), ("0.png", image), ("0.txt", words)]
    return write_tar(folder / "s.tar", members)


FIT = ["--module", "tiny_models:tiny", "--image-size", 8, "--max-tokens", TOKENS, "--vocabulary", 64]
FIT += ["--batch", 4, "--steps", 2]
REASONS = {"missing": 2, "unreadable": 1, "format": 2, "text": 1, "too_large": 1, "repeated": 1}


@pytest.mark.parametrize("verb", ["cache fill", "reference score", "reference report", "reference fit"])
def test_every_kind_of_bad_pair_is_counted_and_named_alike(capsys, tmp_path, monkeypatch, bundles, verb):
    (tmp_path / "tiny_models.py").write_text(
        "from support.model import TwoTower\n\n\ndef tiny():\n    return TwoTower(3)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    pool, reference = hostile(tmp_path), ("--reference", bundles.reference_path)
    how = {
        "cache fill": [*reference, "--cache", tmp_path / "cache"],
        "reference score": [*reference, "--out", tmp_path / "scores.npz"],
        "reference report": [*reference, "--out", tmp_path / "report", "--min-count", 2],
        "reference fit": [*FIT, "--tokenizer", write_tokenizer(tmp_path / "tokenizer.json"), "--out", tmp_path / "new"],
    }[verb]
    status, out, err = selector(capsys, *verb.split(), *how, "--pool", pool, "--json")
    assert status == 0
    found = json.loads(out)["exclusions"]
    assert (found["seen"], found["excluded"]) == (20, 8)
    assert {reason: held["count"] for reason, held in found["reasons"].items()} == REASONS
    assert found["reasons"]["missing"]["first"] == "s/no-caption"
    assert found["reasons"]["text"]["first"] == "s/latin"
    assert "90000 bytes of text; at most 65536" in found["reasons"]["too_large"]["why"]
    assert "s/no-caption: without text" in err
    if verb == "reference report":
        assert "8 of 20 pairs could not be used and were left out" in (tmp_path / "report" / "report.md").read_text()
    if verb == "reference score":
        assert np.load(tmp_path / "scores.npz")["ids"].tolist() == [f"s/{row}" for row in range(12)]


def test_strict_and_the_largest_share_refuse(capsys, tmp_path, bundles):
    pool, common = hostile(tmp_path), (bundles.reference_path,)
    status, _, err = fill(capsys, tmp_path / "a", *common, pool, "--strict")
    assert status == 2
    assert "--pool is s/no-caption, missing; without text" in err
    assert err.count("\n") == 1
    status, _, err = fill(capsys, tmp_path / "a", *common, pool, "--max-excluded-share", 0.3)
    assert status == 2
    assert "8 of its 20 pairs cannot be used (missing 2, format 2, " in err
    assert "the share 0.3 may be (--max-excluded-share); the first is s/no-caption" in err
    assert fill(capsys, tmp_path / "a", *common, pool)[:2] == (0, (0, 12, 8))


def test_ids_of_the_other_kind_are_noticed(capsys, tmp_path, bundles):
    pool, cache = shard(tmp_path / "a.tar", 9), tmp_path / "cache"
    assert fill(capsys, cache, bundles.reference_path, pool) == (0, (9, 0, 0), "")
    status, counts, err = fill(capsys, cache, bundles.reference_path, pool, "--ids", "key")
    assert (status, counts) == (0, (9, 0, 0))
    assert err == (
        "selector cache fill: the cache knows 7 of the first 7 pairs as a/0000, and none as 0000; "
        "did you mean --ids shard/key?\n"
    )
    assert fill(capsys, cache, bundles.reference_path, pool, "--ids", "key") == (0, (0, 9, 0), "")


def test_a_cache_of_the_first_decoder_is_taken_over_but_for_deep_grey(capsys, tmp_path, bundles):
    pixels, _ = samples(4)
    deep = io.BytesIO()
    Image.fromarray(np.full((8, 8), 300, np.uint16)).save(deep, "PNG")
    images = [*map(png, pixels[:3]), deep.getvalue()]
    members = [(f"{row}.{kind}", each) for row in range(4) for kind, each in (("png", images[row]), ("txt", b"w1"))]
    pool, cache = write_tar(tmp_path / "s.tar", members), tmp_path / "cache"
    with embedder(bundles.reference_path, "cpu", 1) as reference:
        bundle = reference.model.bundle
    old = ReferenceCache(cache, "tiny-ref", bundle.fingerprint, bundle.manifest.width, 1 << 24)
    as_of_the_first_decoder(old, bundle.fingerprint)
    entries = np.full((4, bundle.manifest.width), 0.25, np.float16)
    old.put([string_key(f"s/{row}") for row in range(4)], entries, entries)
    old.close()
    assert fill(capsys, cache, bundles.reference_path, pool) == (0, (1, 3, 0), "")
    new = ReferenceCache(cache, "tiny-ref", bundle.fingerprint, bundle.manifest.width, 1 << 24)
    found = new.find([string_key(f"s/{row}") for row in range(4)])
    new.close()
    assert found.known.all()
    assert (found.image[:3] == 0.25).all()
    assert not (found.image[3] == 0.25).all()
    _, out, _ = selector(capsys, "cache", "stat", cache, "--json")
    assert {held["decoder"]: held["entries"] for held in json.loads(out)["references"]} == {1: 4, 2: 4}


def as_of_the_first_decoder(cache, fingerprint):
    """Makes a cache write what version 0.1.0 wrote."""
    header = json.dumps({"name": "tiny-ref", "fingerprint": fingerprint, "width": WIDTH}).encode()
    cache._store.run(lambda transaction: transaction.put(b"h" + tag(fingerprint, 1), header), write=True)
    cache._store.run(lambda transaction: transaction.delete(b"h" + tag(fingerprint)), write=True)
    cache._prefix = b"r" + tag(fingerprint, 1)


def test_a_full_cache_says_so_and_goes_on_where_it_stopped(capsys, tmp_path, bundles):
    pool, cache, small = arrays(tmp_path / "p.npz", 9000), tmp_path / "cache", 1 << 20
    more = ("--batch", 500, "--cache-bytes", small)
    status, _, err = fill(capsys, cache, bundles.reference_path, pool, *more)
    assert status == 2
    assert "raise --cache-bytes" in err.splitlines()[-1]
    kept = int(re.search(r"after (\d+) new", err)[1])
    # A slow machine is told how far it is.
    assert fill(capsys, cache, bundles.reference_path, pool)[:2] == (0, (9000 - kept, kept, 0))


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
