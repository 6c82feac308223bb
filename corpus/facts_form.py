"""What a set of facts is made of: facts, and relations that put them into words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from corpus.recipe import Source

PHRASINGS = ("statement", "reworded", "question")


@dataclass(frozen=True)
class Fact:
    """One fact of a relation.

    Attributes:
        subject: what the fact is about, as the prompts name it.
        answer: the right answer, as it follows the prompt.
        near: what makes the answer of another fact a hard wrong answer: an equal text, or a close number.
        also: other answers that are right, or nearly right; they are no wrong answers.
    """

    subject: str
    answer: str
    near: str | float = ""
    also: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Relation:
    """Facts of one form.

    Attributes:
        domain, name: the domain, and the name in it.
        prompts: one prompt for each of PHRASINGS, with {subject} in it; the answer follows after a space.
        sources: packages that hold the facts; each `include` names one file or folder.
        read: reader of the files, in the order of the sources, that yields facts, the best known first.
    """

    domain: str
    name: str
    prompts: tuple[str, str, str]
    sources: tuple[Source, ...]
    read: Callable[..., Iterable[Fact]]

    def facts(self, paths: Iterable[Path]) -> Iterable[Fact]:
        """The facts in these files, one file or folder for each source."""
        return self.read(*paths)
