"""Facts about the meaning of words: nouns of one subject and their definitions in WordNet.

The subjects are those of the dictionary's domains (`corpus.dictionary.FIELDS`), and WordNet is another work, so a mask
that was chosen on the dictionary can be judged on these definitions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from corpus.facts_form import Fact, Relation
from corpus.facts_wordnet import TOPIC, WORDNET, Noun, below, first_meanings, frequency, neighbours, nouns

MIN_CHARS, MAX_CHARS = 25, 110


@dataclass(frozen=True)
class Subject:
    """What a noun must be to belong to a subject: any of these.

    Attributes:
        topics: WordNet's topics.
        kinds: nouns that it is a kind of, each with the number of its lexicographer's file.
        files: numbers of lexicographer's files.
    """

    topics: frozenset[str] = frozenset()
    kinds: frozenset[tuple[str, int]] = frozenset()
    files: frozenset[int] = frozenset()


def _subject(topics: str = "", kinds: str = "", files: tuple[int, ...] = ()) -> Subject:
    """A subject from words: topics, and kinds such as "weapon.6"."""
    named = (word.rpartition(".") for word in kinds.split())
    return Subject(frozenset(topics.split()), frozenset((word, int(file)) for word, _, file in named), frozenset(files))


SUBJECTS = {
    "zoology": _subject(files=(5,)),
    "botany": _subject("botany", files=(20,)),
    "chemistry": _subject("chemistry biochemistry", "chemical.27 compound.27 acid.27 alloy.27"),
    "medicine": _subject("medicine pathology surgery dentistry obstetrics psychiatry", "disease.26 medicine.6"),
    "anatomy": _subject("anatomy physiology", files=(8,)),
    "law": _subject("law criminal_law civil_law jurisprudence", "law.10 crime.4 lawyer.18 legal_document.10"),
    "nautical": _subject("seafaring ship sailing navigation nautical boat", "ship.6 boat.6 sail.6 sailor.18"),
    "music": _subject("music", "musical_instrument.6 musical_composition.10 musician.18 musical_notation.10"),
    "military": _subject("military armed_forces", "weapon.6 military_unit.14 serviceman.18 armor.6"),
    "architecture": _subject("architecture", "building.6 column.6 roof.6 arch.6"),
    "exact_sciences": _subject(
        "mathematics physics geometry statistics astronomy optics algebra",
        "plane_figure.25 solid.25 angle.25 conic_section.25",
    ),
    "geology": _subject("geology mineralogy", "rock.27 mineral.27 geological_formation.17 gem.27"),
    "religion": _subject(
        "religion Roman_Catholic Christianity Judaism Islam Hinduism Buddhism theology church_service Old_Testament "
        "New_Testament",
        "clergyman.18 religion.9 religious_building.6 religious_ceremony.4",
    ),
    "language": _subject(
        "linguistics grammar phonetics rhetoric prosody logic poetry",
        "linguistic_unit.10 rhetorical_device.10 word_form.10 grammatical_category.9 punctuation.10",
    ),
}


def _definition(noun: Noun) -> str:
    """The definition in one piece, without remarks in brackets; empty if it is too short, too long or has more."""
    text = re.sub(r"\([^()]*\)", "", noun.gloss).split(";")[0]
    text = re.sub(r"\s+([,.])", r"\1", " ".join(text.split())).strip(" ,:-")
    return text if MIN_CHARS <= len(text) <= MAX_CHARS and re.fullmatch(r"[\w ,'-]+", text) else ""


@lru_cache(maxsize=1)
def _of_subjects(path: Path) -> dict[str, list[str]]:
    """Identifiers of the nouns of each subject; a noun of two subjects is of none."""
    known = nouns(path)
    found: dict[str, set[str]] = {}
    for name, subject in SUBJECTS.items():
        kinds = below(path, subject.kinds)
        found[name] = {
            identifier
            for identifier, noun in known.items()
            if noun.file in subject.files
            or identifier in kinds
            or any(known[topic].words[0] in subject.topics for topic in noun.pointers.get(TOPIC, ()))
        }
    shared = Counter(identifier for own in found.values() for identifier in own)
    return {name: [one for one in known if one in own and shared[one] == 1] for name, own in found.items()}


def definitions(path: Path, subject: str) -> Iterator[Fact]:
    """Single words in their most usual meaning, after their definition, the commonest words first.

    Wrong answers are about as common as the word, so that its frequency does not give it away.
    """
    known, first, common = nouns(path), first_meanings(path), frequency(path)
    found = []
    for identifier in _of_subjects(path)[subject]:
        noun = known[identifier]
        word, text = noun.words[0], _definition(noun)
        if text and re.fullmatch(r"[a-z]{3,14}", word) and first[word] == identifier:
            found.append((-common[word], word, text, identifier))
    for rank, (_, word, text, identifier) in enumerate(sorted(found)):
        yield Fact(text, word, rank, neighbours(path, identifier))


@dataclass(frozen=True)
class _Reader:
    subject: str

    def __call__(self, path: Path) -> Iterator[Fact]:
        return definitions(path, self.subject)


DEFINITIONS = tuple(
    Relation(
        "definitions",
        name,
        (
            "Definition: {subject}. The word for this is",
            "A word that means {subject}:",
            'Question: Which word has the meaning "{subject}"? Answer:',
        ),
        (WORDNET,),
        _Reader(name),
    )
    for name in SUBJECTS
)
