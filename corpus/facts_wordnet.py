"""Reads WordNet: nouns with their definitions, the relations between them, and irregular forms."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from corpus.recipe import Source

WORDNET = Source("wordnet-base", "LicenseRef-WordNet-3.0", 1.0, ("usr/share/wordnet/data.noun",))

HYPERNYM, HYPONYM, INSTANCE, PART_OF, TOPIC = "@", "~", "@i", "#p", ";c"


@dataclass(frozen=True)
class Noun:
    """A set of nouns with one meaning.

    Attributes:
        words: the nouns, the most usual first; an underscore stands for a space.
        file: number of the lexicographer's file, for example 5 for animals.
        gloss: definition, without the examples.
        pointers: identifiers of other nouns, by symbol.
    """

    words: tuple[str, ...]
    file: int
    gloss: str
    pointers: Mapping[str, tuple[str, ...]]

    @property
    def name(self) -> str:
        """The most usual noun, with spaces."""
        return self.words[0].replace("_", " ")


@lru_cache(maxsize=1)
def nouns(path: Path) -> dict[str, Noun]:
    """All nouns of WordNet's file data.noun, by identifier."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):
            continue  # the licence
        head, _, gloss = line.partition(" | ")
        identifier, file, _, count, *rest = head.split()
        number = int(count, 16)
        words = tuple(re.sub(r"\(\w+\)$", "", word) for word in rest[: 2 * number : 2])
        pointers: dict[str, tuple[str, ...]] = {}
        fields = rest[2 * number + 1 :]
        for symbol, target, part in zip(fields[::4], fields[1::4], fields[2::4], strict=False):
            if part == "n":
                pointers[symbol] = (*pointers.get(symbol, ()), target)
        found[identifier] = Noun(words, int(file), re.split(r';\s*"', gloss)[0].strip(" ;"), pointers)
    return found


@lru_cache(maxsize=1)
def first_meanings(path: Path) -> dict[str, str]:
    """The identifier of each noun's most frequent meaning, by the noun in lower case, from WordNet's index.noun."""
    found = {}
    for line in path.with_name("index.noun").read_text(encoding="utf-8").splitlines():
        if not line.startswith("  "):
            word, *fields = line.split()
            found[word] = fields[-int(fields[1])]
    return found


@lru_cache(maxsize=1)
def frequency(path: Path) -> Counter[str]:
    """How often each word occurs in the definitions: common words first."""
    return Counter(word for noun in nouns(path).values() for word in re.findall(r"[a-z]+", noun.gloss.lower()))


def below(path: Path, roots: Collection[tuple[str, int]]) -> set[str]:
    """Identifiers of all nouns that are kinds of the roots, without the roots.

    Args:
        path: WordNet's file data.noun.
        roots: each a noun and the number of its lexicographer's file.
    """
    known = nouns(path)
    kinds: dict[str, list[str]] = {}
    for identifier, noun in known.items():
        for above in noun.pointers.get(HYPERNYM, ()):
            kinds.setdefault(above, []).append(identifier)
    wanted = set(roots)
    waiting = [name for name, noun in known.items() if any((word, noun.file) in wanted for word in noun.words[:1])]
    found: set[str] = set()
    while waiting:
        for kind in kinds.get(waiting.pop(), ()):
            if kind not in found:
                found.add(kind)
                waiting.append(kind)
    return found


def neighbours(path: Path, identifier: str) -> frozenset[str]:
    """Nouns of about the same meaning: synonyms, and the nouns directly above and below."""
    known = nouns(path)
    pointers = known[identifier].pointers
    around = (identifier, *pointers.get(HYPERNYM, ()), *pointers.get(HYPONYM, ()))
    return frozenset(word.replace("_", " ") for one in around for word in known[one].words)


@lru_cache(maxsize=1)
def mentions(path: Path) -> Counter[str]:
    """How many definitions mention each name: well-known names first."""
    return Counter(word for noun in nouns(path).values() for word in set(re.findall(r"[A-Z]\w+", noun.gloss)))
