"""Facts about the chemical elements, and arithmetic, which needs no source."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from corpus.assemble import shuffled
from corpus.facts_form import Fact, Relation
from corpus.recipe import Source

ELEMENTS = Source(
    "mendeleev",
    "MIT",
    1.0,
    ("mendeleev/elements.db",),
    client="pip",
    version="1.3.0",
    sha256="76f415767b654634e51dead755513ef431abf200e892eab8468aa659ff218d1c",
)


def _elements(path: Path, columns: str) -> list[tuple[Any, ...]]:
    """Columns of the table of elements, by atomic number."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return database.execute(
            f"SELECT {columns} FROM elements JOIN series ON elements.series_id = series.id ORDER BY atomic_number"
        ).fetchall()


def symbol(path: Path) -> Iterator[Fact]:
    """The symbol of each element."""
    for name, sign in _elements(path, "elements.name, symbol"):
        yield Fact(name.lower(), sign, sign[0])


def element_of_symbol(path: Path) -> Iterator[Fact]:
    """The element of each symbol."""
    for name, sign in _elements(path, "elements.name, symbol"):
        yield Fact(sign, name.lower(), sign[0])


def atomic_number(path: Path) -> Iterator[Fact]:
    """The atomic number of each element."""
    for name, number in _elements(path, "elements.name, atomic_number"):
        yield Fact(name.lower(), str(number), number)


def element_of_number(path: Path) -> Iterator[Fact]:
    """The element of each atomic number."""
    for name, number in _elements(path, "elements.name, atomic_number"):
        yield Fact(str(number), name.lower(), number)


def series(path: Path) -> Iterator[Fact]:
    """The series of each element, such as the halogens."""
    for name, group in _elements(path, "elements.name, series.name"):
        yield Fact(name.lower(), group.lower())


def discovery(path: Path) -> Iterator[Fact]:
    """The year of each element's discovery."""
    for name, year in _elements(path, "elements.name, discovery_year"):
        if year is not None:
            yield Fact(name.lower(), str(year), year)


def sums() -> Iterator[Fact]:
    """Sums of two numbers below 100."""
    for pair in shuffled(f"{one} {other}" for one in range(11, 90) for other in range(11, 90)):
        one, other = map(int, pair.split())
        yield Fact(f"{one} plus {other}", str(one + other), one + other)


def differences() -> Iterator[Fact]:
    """Differences of two numbers below 100."""
    for pair in shuffled(f"{one} {other}" for one in range(30, 100) for other in range(11, one - 5)):
        one, other = map(int, pair.split())
        yield Fact(f"{one} minus {other}", str(one - other), one - other)


def products() -> Iterator[Fact]:
    """Products of two small numbers."""
    for pair in shuffled(f"{one} {other}" for one in range(2, 13) for other in range(2, 13)):
        one, other = map(int, pair.split())
        yield Fact(f"{one} times {other}", str(one * other), one * other)


def quotients() -> Iterator[Fact]:
    """Quotients without a rest."""
    for pair in shuffled(f"{one} {other}" for one in range(2, 21) for other in range(2, 13)):
        one, other = map(int, pair.split())
        yield Fact(f"{one * other} divided by {other}", str(one), one)


_ROMAN = ((100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))


def roman(number: int) -> str:
    """A number as a Roman numeral."""
    found = ""
    for value, letters in _ROMAN:
        while number >= value:
            found, number = found + letters, number - value
    return found


def roman_numerals() -> Iterator[Fact]:
    """The Roman numeral of each number up to 100."""
    for number in map(int, shuffled(map(str, range(2, 101)))):
        yield Fact(str(number), roman(number), number)


def _arithmetic(name: str, read: Any) -> Relation:
    prompts = ("{subject} is", "The result of {subject} is the number", "Question: What is {subject}? Answer:")
    return Relation("arithmetic", name, prompts, (), read)


NUMBERS = (
    Relation(
        "elements",
        "symbol",
        (
            "The chemical symbol of {subject} is",
            "In the periodic table, {subject} is written as",
            "Question: What is the chemical symbol of {subject}? Answer:",
        ),
        (ELEMENTS,),
        symbol,
    ),
    Relation(
        "elements",
        "element_of_symbol",
        (
            "The chemical symbol {subject} stands for",
            "In the periodic table, {subject} means",
            "Question: Which chemical element has the symbol {subject}? Answer:",
        ),
        (ELEMENTS,),
        element_of_symbol,
    ),
    Relation(
        "elements",
        "atomic_number",
        (
            "The atomic number of {subject} is",
            "The number of protons in an atom of {subject} is",
            "Question: What is the atomic number of {subject}? Answer:",
        ),
        (ELEMENTS,),
        atomic_number,
    ),
    Relation(
        "elements",
        "element_of_number",
        (
            "The chemical element with the atomic number {subject} is",
            "An atom whose number of protons is {subject} is an atom of",
            "Question: Which chemical element has the atomic number {subject}? Answer:",
        ),
        (ELEMENTS,),
        element_of_number,
    ),
    Relation(
        "elements",
        "series",
        (
            "The chemical element {subject} belongs to the",
            "In the periodic table, {subject} is one of the",
            "Question: Which group of elements does {subject} belong to? Answer: the",
        ),
        (ELEMENTS,),
        series,
    ),
    Relation(
        "elements",
        "discovery",
        (
            "The chemical element {subject} was discovered in",
            "Chemists first found {subject} in the year",
            "Question: In which year was the chemical element {subject} discovered? Answer:",
        ),
        (ELEMENTS,),
        discovery,
    ),
    _arithmetic("sum", sums),
    _arithmetic("difference", differences),
    _arithmetic("product", products),
    _arithmetic("quotient", quotients),
    Relation(
        "arithmetic",
        "roman_numeral",
        (
            "The Roman numeral for {subject} is",
            "In ancient Rome, the number {subject} was written as",
            "Question: What is {subject} as a Roman numeral? Answer:",
        ),
        (),
        roman_numerals,
    ),
)
