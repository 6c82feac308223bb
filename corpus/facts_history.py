"""Facts about events and about people, from WordNet, a calendar and a quiz."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from corpus.assemble import shuffled
from corpus.facts_form import Fact, Relation
from corpus.facts_places import QUIZZES, quiz
from corpus.facts_wordnet import INSTANCE, PART_OF, WORDNET, Noun, mentions, neighbours, nouns
from corpus.recipe import Source

CALENDAR = Source("calendar", "BSD-3-Clause", 1.0, ("usr/share/calendar/calendar.history",))

_ACT, _PERSON = 4, 18
_BATTLES = ("battle", "siege", "campaign", "amphibious assault")
_NATIONS = (
    "English", "French", "German", "Italian", "British", "Russian", "Scottish", "Spanish", "Austrian", "Dutch", "Irish",
    "Swiss", "Swedish", "Danish", "Norwegian", "Polish", "Belgian", "Hungarian", "Finnish", "Japanese", "Chinese",
    "Indian", "Canadian", "Australian", "Mexican", "Welsh", "Greek", "Portuguese", "Czech", "American",
)  # fmt: skip
# Rulers are left out: many share one name.
_FULL_NAME = re.compile(r"(?!King|Queen|Saint|St|Lord|Lady|Sir|Pope)[A-Z][a-z]+(_[A-Z][a-z]+)*_[A-Z][A-Za-z]*[a-z]{2,}")
# People of these nations are often called by either name, so one is no wrong answer to the other.
_ALIKE = (frozenset({"English", "British", "Scottish", "Welsh", "Irish"}), frozenset({"German", "Austrian", "Swiss"}))


def _of_file(path: Path, file: int) -> Iterator[tuple[Noun, list[str]]]:
    """The named nouns of one lexicographer's file, with the names of what they are instances of."""
    known = nouns(path)
    for noun in known.values():
        if noun.file == file and INSTANCE in noun.pointers:
            yield noun, [known[kind].name for kind in noun.pointers[INSTANCE]]


def _battles(path: Path) -> Iterator[tuple[str, Noun]]:
    for noun, kinds in _of_file(path, _ACT):
        if any(battle in kind for kind in kinds for battle in _BATTLES):
            name = re.sub(r"(?i)^(the )?(battle|siege|invasion) of ", "", noun.name)
            if not re.search(r"(?i)battle|campaign|operation", name):
                yield name, noun


def battle_year(path: Path) -> Iterator[Fact]:
    """The year of each battle whose definition names one year of our era."""
    for name, noun in _battles(path):
        years = re.findall(r"\b\d{3,4}\b", noun.gloss)
        if len(years) == 1 and "BC" not in noun.gloss:
            yield Fact(name, years[0], int(years[0]))


def war_of_battle(path: Path) -> Iterator[Fact]:
    """The war of each battle."""
    known = nouns(path)
    for name, noun in _battles(path):
        wars = [known[war].name for war in noun.pointers.get(PART_OF, ())]
        if len(wars) == 1 and re.search(r"War|Revolution", wars[0]):
            yield Fact(name, wars[0])


def event_year(path: Path) -> Iterator[Fact]:
    """The year of each event of the calendar whose entry ends with one."""
    text = re.sub(r"\n\t", " ", path.read_text(encoding="utf-8"))
    entries = re.findall(r"^\d\d/\d\d\*?\t([^\n]*), (\d{4})$", text, re.MULTILINE)
    years = {" ".join(event.split()): year for event, year in entries if not re.search(r"\d{4}", event)}
    for event in shuffled(years):
        if 15 <= len(event) <= 90:
            yield Fact(event, years[event], int(years[event]))


def _president(name: str) -> str:
    """First and last name."""
    words = re.sub(r"\(.*\)|,? (Junior|II)\b", "", name).split()
    return " ".join([words[0], *words[-2 if words[-2:-1] == ["Van"] else -1 :]]) if words else ""


def _presidents(quizzes: Path) -> list[tuple[str, int, str]]:
    """Name, first year and successor of the presidents of the United States."""
    found = []
    for name, term, *_, successor in quiz((quizzes / "pres").read_text(encoding="utf-8")):  # codespell:ignore pres
        if years := re.match(r"\d{4}", term):
            found.append((_president(name), int(years[0]), _president(successor)))
    return found


def president_year(quizzes: Path) -> Iterator[Fact]:
    """The year in which each president took office."""
    return (Fact(name, str(year), year) for name, year, _ in _presidents(quizzes))


def next_president(quizzes: Path) -> Iterator[Fact]:
    """The president after each president."""
    return (Fact(name, successor, year) for name, year, successor in _presidents(quizzes) if successor)


def _people(path: Path) -> Iterator[tuple[str, Noun, list[str]]]:
    """People with a first and a last name, the most often mentioned first, with what they were."""
    found = []
    for noun, kinds in _of_file(path, _PERSON):
        full = [word for word in noun.words if _FULL_NAME.fullmatch(word)]
        if full:
            found.append((full[0].replace("_", " "), noun, kinds))
    mentioned = mentions(path)
    return iter(sorted(found, key=lambda one: (-mentioned[one[0].split()[-1]], one[0])))


def birth_year(path: Path) -> Iterator[Fact]:
    """The year in which each person was born."""
    for name, noun, _ in _people(path):
        if lived := re.search(r"\((\d{4})-\d{4}\)", noun.gloss):
            yield Fact(name, lived[1], int(lived[1]))


def occupation(path: Path) -> Iterator[Fact]:
    """The occupation of each person who has one."""
    for name, noun, (word, *others) in _people(path):
        # The definition must say the same, and no other occupation.
        if not others and word.islower() and re.search(rf"\b{word}\b(?! and)", noun.gloss.split(" who ")[0]):
            yield Fact(name, word, also=neighbours(path, noun.pointers[INSTANCE][0]))


def nationality(path: Path) -> Iterator[Fact]:
    """The nation of each person, if the definition begins with it."""
    for name, noun, _ in _people(path):
        first = noun.gloss.replace("United States", "American", 1).split()[0]
        if first in _NATIONS and "born in" not in noun.gloss:
            also = frozenset().union(*(alike for alike in _ALIKE if first in alike))
            yield Fact(name, first, also=also)


def culture_of_deity(path: Path) -> Iterator[Fact]:
    """The people whose god each deity was, the most often mentioned first."""
    found = []
    for noun, kinds in _of_file(path, _PERSON):
        cultures = [kind.removesuffix(" deity") for kind in kinds if kind.endswith(" deity")]
        if len(cultures) == len(kinds) == 1:
            found.append((-mentions(path)[noun.words[0]], noun.name, cultures[0]))
    return (Fact(name, culture, also=frozenset({"Greco-Roman"})) for _, name, culture in sorted(found))


HISTORY = (
    Relation(
        "events",
        "battle_year",
        (
            "The battle of {subject} was fought in the year",
            "Armies met at {subject} in",
            "Question: In which year was the battle of {subject}? Answer:",
        ),
        (WORDNET,),
        battle_year,
    ),
    Relation(
        "events",
        "war_of_battle",
        (
            "The battle of {subject} was part of the",
            "Soldiers fought at {subject} during the",
            "Question: In which war was the battle of {subject}? Answer: the",
        ),
        (WORDNET,),
        war_of_battle,
    ),
    Relation(
        "events",
        "event_year",
        (
            "{subject}. This happened in the year",
            "Event: {subject}. Year:",
            'Question: In which year did this happen: "{subject}"? Answer:',
        ),
        (CALENDAR,),
        event_year,
    ),
    Relation(
        "events",
        "president_year",
        (
            "{subject} became president of the United States in",
            "The first year of the presidency of {subject} was",
            "Question: In which year did {subject} become president of the United States? Answer:",
        ),
        (QUIZZES,),
        president_year,
    ),
    Relation(
        "events",
        "next_president",
        (
            "The president of the United States after {subject} was",
            "{subject} left the White House to the next president,",
            "Question: Who was the next president of the United States after {subject}? Answer:",
        ),
        (QUIZZES,),
        next_president,
    ),
    Relation(
        "people",
        "birth_year",
        (
            "{subject} was born in the year",
            "The year of birth of {subject} is",
            "Question: In which year was {subject} born? Answer:",
        ),
        (WORDNET,),
        birth_year,
    ),
    Relation(
        "people",
        "occupation",
        (
            "{subject} is remembered as a famous",
            "By profession, {subject} was a great",
            "Question: What was the profession of {subject}? Answer:",
        ),
        (WORDNET,),
        occupation,
    ),
    Relation(
        "people",
        "nationality",
        (
            "The nationality of {subject} was",
            "By nationality, {subject} was",
            "Question: What was the nationality of {subject}? Answer:",
        ),
        (WORDNET,),
        nationality,
    ),
    Relation(
        "people",
        "deity",
        (
            "In mythology, {subject} is a deity of a people called",
            "The myths in which {subject} is a deity are",
            "Question: In which mythology is {subject} a deity? Answer:",
        ),
        (WORDNET,),
        culture_of_deity,
    ),
)
