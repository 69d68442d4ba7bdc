"""The large data set: a small package of made-up sets goes through the whole recipe; nothing is fetched."""

import base64
import hashlib
import io
import json
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from selector_tools import cli
from selector_tools.datasets import dataset, iconify, iconify_package, raster, splitting, svg

RULES = replace(iconify.RULES, evaluated_families=3, curated_families=2, class_size=2)
CONCEPTS = ("anchor", "bell", "cup", "door", "egg")
BLACK = '<path fill="currentColor" d="M0 0h9v9H0z"/>'


def body(seed: int) -> str:
    """Squares at random places: pictures of two seeds are far from alike."""
    places = np.random.default_rng(seed).integers(0, 14, (12, 2)).tolist()
    return "".join(f'<path fill="currentColor" d="M{x} {y}h2v2h-2z"/>' for x, y in places)


def icon_set(prefix: str, icons: dict[str, object], licence: str = "MIT", **more: object) -> dict[str, object]:
    about = {"license": {"spdx": licence}, "category": more.pop("category", "UI 24px")}
    return {"prefix": prefix, "info": about, "icons": icons, "width": 16, "height": 16, **more}


def drawn_by(hand: int, suffix: str = "") -> dict[str, object]:
    return {name + suffix: {"body": body(100 * hand + number)} for number, name in enumerate(CONCEPTS)}


def made_up() -> list[dict[str, object]]:
    """Every held-out set, two sets of one hand, three more, and what has to be dropped."""
    sets = [icon_set(prefix, drawn_by(hand)) for hand, prefix in enumerate(iconify.HELD_OUT)]
    hostile = {
        "../../etc/passwd": {"body": body(900)},
        "new\nline": {"body": body(901)},
        "漢字": {"body": body(902)},
        "anchor-hidden": {"body": body(903), "hidden": True},
        "anchor-moving": {"body": body(904) + '<animate attributeName="x"/>'},
        "anchor-file": {"body": body(905) + '<image href="/etc/passwd"/>'},
        "anchor-page": {"body": body(906) + "<use href='https://example.com/a.svg#a'/>"},
        "anchor-huge": {"body": body(907), "width": 1e300},
        "anchor-endless": {"body": body(908), "height": float("inf")},
        "anchor-flat": {"body": body(909), "height": 0},
        "anchor-text": {"body": body(910), "left": '0"/>'},
        "anchor-long": {"body": "x" * (iconify_package.MOST_BODY + 1)},
        "anchor-blank": {"body": ""},
        "anchor-broken": {"body": "<path"},
    }
    return [
        *sets,
        icon_set("bx", {**drawn_by(20, "-20-solid"), **hostile}, suffixes=["", "20-solid"]),
        icon_set("bxs", drawn_by(21)),
        icon_set("tabler", {**drawn_by(22), "copy": {"body": body(2)}}, licence="Apache-2.0"),
        icon_set("ri", drawn_by(23)),
        icon_set(
            "logos", {**drawn_by(24), "baseline-tram": {"body": body(950)}}, category="Logos", prefixes=["baseline"]
        ),
        icon_set("cbi", drawn_by(25), licence="CC-BY-NC-SA-4.0"),
        icon_set("et", drawn_by(26), licence="GPL-3.0-or-later"),
        icon_set("feather", drawn_by(27)),
    ]


def packed(path: Path, sets: list[dict[str, object]], files: dict[str, bytes] | None = None) -> str:
    """Writes the archive, and returns its integrity."""
    contents = {f"package/json/{entry['prefix']}.json": json.dumps(entry).encode() for entry in sets}
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {"package/readme.md": b"no JSON", **contents, **(files or {})}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("package") / "icons.tgz"
    return path, packed(path, made_up())


@pytest.fixture(scope="module")
def built(package: tuple[Path, str]) -> dataset.Dataset:
    return iconify.build(*package, rules=RULES)


def test_the_recipe_keeps_what_may_be_used(built: dataset.Dataset) -> None:
    trained = set(built.pool.families) | set(built.curated.families)
    assert trained == {"bx", "tabler", "ri", "logos"}  # bxs is of bx's hand; cbi, et and feather may not be used
    captions = set(built.pool.captions)
    assert {"etc passwd", "new line", "baseline tram"} <= captions
    assert not any("\n" in words or not words for words in captions)
    refused = {"hidden", "moving", "file", "page", "huge", "endless", "flat", "text", "long", "blank", "broken"}
    assert not refused & {word for words in captions for word in words.split()}
    assert "copy" not in captions  # of a held-out picture
    assert "tram" in built.pool.concepts
    assert built.licences == {
        **dict.fromkeys((*iconify.HELD_OUT, "bx", "ri", "logos"), "MIT"),
        "tabler": "Apache-2.0",
    }


def test_the_splits_hold_what_they_promise(built: dataset.Dataset) -> None:
    assert set(built.evaluation.families) == set(iconify.HELD_OUT)
    assert built.class_names == CONCEPTS
    assert Counter(built.evaluation.concepts) == dict.fromkeys(CONCEPTS, len(iconify.HELD_OUT))
    assert Counter(built.curated.concepts) == dict.fromkeys(CONCEPTS, splitting.CURATED_EACH)
    assert "logos" not in built.curated.families
    assert built.curated.captions == built.curated.concepts
    for part in (built.pool, built.curated, built.evaluation):
        assert part.pixels.dtype == np.uint8
        assert not (part.pixels % 17).any()
        assert part.pixels.std(axis=(1, 2)).min() >= raster.FAINTEST


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ({"evaluated_families": 13}, {"evaluation": 0}),  # 12 draw each concept
        ({"curated_families": 5}, {"curated": 0}),  # 4 families for training do, and bxs is none of its own
        ({"curated_size": 7}, {"curated": 7}),
        ({"compared_each": 2}, {"curated": 10}),
        ({"class_size": 9}, {"class_names": 0}),
    ],
    ids=["evaluated", "curated", "size", "compared", "classes"],
)
def test_rules_are_kept(
    package: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, change: dict[str, int], left: dict[str, int]
) -> None:
    monkeypatch.setattr(svg, "draw", lambda batches: ((tag, *svg.drawn(texts)) for tag, texts in batches))
    data = iconify.build(*package, rules=replace(RULES, **change))
    assert {name: len(getattr(data, name)) for name in left} == left


def test_pictures_are_ink_on_paper_in_the_middle() -> None:
    page = '<svg xmlns="http://www.w3.org/2000/svg" width="32" height="32" viewBox="{}">{}</svg>'
    colours = '<path fill="#808080" d="M0 0h8v16H0z"/><path fill="#fff" d="M8 0h8v16H8z"/>'
    rows, ink = svg.drawn([page.format("0 0 8 16", BLACK), "<svg", page.format("0 0 16 16", colours)])
    assert rows.tolist() == [0, 2]
    assert ink[0][:18, 8:26].min() == 255
    assert ink[0].sum() == 255 * 18 * 18
    assert set(ink[1].flat) == {0, 119}


def test_batches_come_back_in_order_from_several_processes() -> None:
    page = '<svg xmlns="http://www.w3.org/2000/svg" width="32" height="32">{}</svg>'
    batches = [(number, [page.format(body(number))] * (1 + number % 3)) for number in range(20)]
    done = list(svg.draw(iter(batches)))
    assert [tag for tag, _, _ in done] == list(range(20))
    for number, rows, ink in done:
        assert len(rows) == len(batches[number][1])
        assert np.array_equal(ink, svg.drawn(batches[number][1])[1])


def test_another_archive_is_refused(package: tuple[Path, str], tmp_path: Path) -> None:
    path, integrity = package
    with pytest.raises(dataset.SourceError, match=r"has the digest sha512-.*; must be sha512-nAV60A.*2\.2\.535"):
        iconify.build(path)
    (changed := tmp_path / "changed.tgz").write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(dataset.SourceError, match="has the digest"):
        iconify.build(changed, integrity)
    with pytest.raises(dataset.SourceError, match=r"none\.tgz cannot be read"):
        iconify.build(tmp_path / "none.tgz", integrity)


DEEP = b'{"icons":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"package/json/a.json": b"no JSON"}, "a.json of the package is no icon set: JSONDecodeError"),
        ({"package/json/a.json": b"[]"}, "a.json of the package is no icon set: TypeError"),
        ({"package/json/a.json": b'{"info": {}, "icons": {"b": {}}}'}, "no icon set: KeyError: 'body'"),
        ({"package/json/a.json": b'{"info": {}, "icons": {"b": 7}}'}, "no icon set: AttributeError"),
        ({"package/json/a.json": b'{"info": {}, "icons": {}, "suffixes": 7}'}, "no icon set: TypeError"),
        ({"package/json/a.json": DEEP}, "no icon set: RecursionError"),
        ({"package/json/a.json": b" " * 300_000}, "a.json has 300000 bytes; must be at most 262144"),
        ({f"package/{number}": b"" for number in range(30)}, "more than 20 files"),
        ({"package/json/../../carbon.json": b"no JSON", "json/carbon.json": b"no JSON"}, "lacks the sets .*: carbon, "),
    ],
    ids=["text", "list", "no-body", "number", "suffixes", "deep", "large", "many", "elsewhere"],
)
def test_what_is_no_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], problem: str
) -> None:
    monkeypatch.setattr(iconify_package, "MOST_FILES", 20)
    monkeypatch.setattr(iconify_package, "MOST_FILE_BYTES", 1 << 18)
    path = tmp_path / "icons.tgz"
    integrity = packed(path, [], files)
    with pytest.raises(dataset.SourceError, match=problem):
        iconify.build(path, integrity)


def test_an_integer_of_many_digits_takes_no_time(tmp_path: Path) -> None:
    path = tmp_path / "icons.tgz"
    digits = b'{"info": {}, "icons": {"b": {"body": "", "width": %s}}}' % (b"9" * 1_000_000)
    integrity = packed(path, [], {"package/json/a.json": digits})
    assert [icons.icons for icons in iconify_package.read(path, integrity, lambda *_: None)] == [()]


def npm_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (program := tmp_path / "npm").write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_npm_fetches_the_pinned_package(
    package: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    npm_that(
        tmp_path, monkeypatch, f'echo "$@" > {tmp_path}/said; while [ $# -gt 1 ]; do shift; done; cp {package[0]} $1'
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build = iconify.build
    monkeypatch.setattr(iconify, "build", lambda path, progress: build(path, package[1], RULES, progress))
    assert cli.main(["data", "iconify"]) == 0
    assert (tmp_path / "said").read_text().startswith("pack @iconify/json@2.2.535 --ignore-scripts ")
    first = capsys.readouterr().out
    assert "5 classes with at least 2 pictures each, 40 of the evaluation's" in first
    assert " MIT\n" in first
    assert f"kept in {iconify.where()} (0.0 MB)" in first
    (tmp_path / "npm").unlink()  # it is not asked again
    assert cli.main(["data", "iconify"]) == 0
    assert capsys.readouterr().out == first


def test_without_npm_or_with_one_that_fails_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    npm_that(tmp_path, monkeypatch, "echo 'npm error network is unreachable' >&2; exit 1")
    assert cli.main(["data", "iconify"]) == 2
    assert "could not fetch @iconify/json@2.2.535: npm error network is unreachable" in capsys.readouterr().err
    npm_that(tmp_path, monkeypatch, "exit 0")
    assert cli.main(["data", "iconify"]) == 2
    assert "npm wrote 0 archives for @iconify/json@2.2.535" in capsys.readouterr().err
    npm_that(tmp_path, monkeypatch, "exec sleep 60")
    monkeypatch.setattr(iconify_package, "FETCH_SECONDS", 0.1)
    assert cli.main(["data", "iconify"]) == 2
    assert "within 0.1 seconds" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert cli.main(["data", "iconify"]) == 2
    told = capsys.readouterr().err
    assert "there is no npm: install Node.js with npm" in told
    assert "--package" in told
    assert cli.main(["data", "iconify", "--package", str(tmp_path / "none.tgz")]) == 2
    assert "none.tgz cannot be read" in capsys.readouterr().err


def test_the_large_pool_has_its_licences_stated() -> None:
    listed = Path(iconify.__file__).with_name("LICENSES.md").read_text("utf-8")
    assert f"{iconify_package.NAME} {iconify_package.VERSION}" in listed
    for licence in iconify.LICENCES:
        assert licence in listed
