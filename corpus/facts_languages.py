"""Facts about languages: words of other languages, irregular verbs, scripts, families, official languages."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path

from corpus.assemble import shuffled
from corpus.facts_form import Fact, Relation
from corpus.facts_places import COUNTRIES, countries
from corpus.facts_wordnet import HYPERNYM, WORDNET, below, first_meanings, frequency, mentions, nouns
from corpus.recipe import Source

SCRIPTS = Source(
    "cldr-core",
    "Unicode-3.0",
    1.0,
    ("package/supplemental/likelySubtags.json",),
    client="npm",
    version="48.2.0",
)
NAMES = Source("iso-codes", "LGPL-2.1-or-later", 1.0, ("usr/share/iso-codes/json",))
_FAMILIES = ("Romance", "Slavic", "Baltic", "Germanic", "Celtic", "Greek", "Indic", "Iranian", "Turki", "Finno-Ugric")

# Longer words are mostly rare compounds.
MAX_LETTERS = 8


def _dictionary(code: str) -> Source:
    licence = "GPL-3.0-or-later" if code == "deu" else "GPL-2.0-or-later"
    return Source(f"dict-freedict-{code}-eng", licence, 1.0, (f"usr/share/dictd/freedict-{code}-eng.dict.dz",))


def _entries(path: Path) -> Iterator[tuple[str, str]]:
    """Headword and first line of its translations, from a dictionary of FreeDict.

    If the dictionary marks the number of its nouns, only nouns in the singular count.
    """
    text = gzip.decompress(path.read_bytes()).decode("utf-8")
    mark = "<[^>]*n, sg>" if ", sg>" in text else ".*"
    return iter(re.findall(rf"^(\w+) /[^/\n]+/ ?{mark}\n(?:1\. )?[ ]?([^\n]+)$", text, re.MULTILINE))


def translations(path: Path, wordnet: Path) -> Iterator[Fact]:
    """The English noun for each foreign word, the commonest English words first.

    A word counts if every entry of it has the same first translation, in one word. Wrong answers are about as common.
    """
    found: dict[str, set[str]] = {}
    for word, told in _entries(path):
        plain = re.sub(r"\[[^\]]*\]|<[^>]*>|\([^)]*\)", "", told)
        found.setdefault(word, set()).update(" ".join(part.split()) for part in re.split(r"[,;]", plain))
    common, known = frequency(wordnet), first_meanings(wordnet)
    plain_words = [
        (word, english)
        for word, (english, *others) in ((word, [*meanings]) for word, meanings in found.items())
        if not others and english in known and len(word) <= MAX_LETTERS and re.fullmatch("[a-z]{3,}", english)
    ]
    for rank, (word, english) in enumerate(sorted(plain_words, key=lambda one: (-common[one[1]], one[0]))):
        yield Fact(word, english, rank)


def past_tense(path: Path) -> Iterator[Fact]:
    """The past tense of irregular verbs whose past tense and participle are equal, the commonest verbs first."""
    verbs = path.with_name("verb.exc").read_text(encoding="utf-8")
    forms: dict[str, list[str]] = {}
    for form, verb, *_ in map(str.split, verbs.splitlines()):
        if re.fullmatch(r"[a-z]+", form) and not re.search(r"(ing|ed|s)$", form):
            forms.setdefault(verb, []).append(form)
    common = frequency(path)
    for rank, verb in enumerate(sorted(forms, key=lambda verb: (-common[verb], verb))):
        if len(forms[verb]) == 1 and forms[verb][0] != verb:
            yield Fact(verb, forms[verb][0], rank)


def _names(folder: Path, file: str, code: str) -> dict[str, str]:
    """Names by code, without the alternatives and remarks: "Greek, Modern (1453-)" is Greek."""
    (rows,) = json.loads((folder / f"{file}.json").read_text(encoding="utf-8")).values()
    return {row[code]: re.split(r"[,;(]", row["name"])[0].strip() for row in rows if code in row}


def script(path: Path, folder: Path) -> Iterator[Fact]:
    """The script that each language is usually written in."""
    languages, scripts = _names(folder, "iso_639-2", "alpha_2"), _names(folder, "iso_15924", "alpha_4")
    likely = json.loads(path.read_text(encoding="utf-8"))["supplemental"]["likelySubtags"]
    for code in shuffled(languages):
        _, _, rest = likely.get(code, "").partition("-")
        if name := scripts.get(rest.partition("-")[0]):
            yield Fact(languages[code], name)


def family(path: Path) -> Iterator[Fact]:
    """The family of each language."""
    known = nouns(path)
    languages = below(path, {("natural_language", 10)})
    found = []
    for identifier in languages:
        above, chain = identifier, []
        while True:
            (above, *_) = known[above].pointers.get(HYPERNYM) or ("",)
            if above not in languages:
                break
            chain.append(known[above].name)
        if chain and "~" not in known[identifier].pointers and known[identifier].name.istitle():
            named = [name for name in chain if name in _FAMILIES]
            found.append((known[identifier].name, named[0] if named else chain[-1], frozenset(chain)))
    mentioned = mentions(path)
    for name, group, also in sorted(found, key=lambda one: (-mentioned[one[0]], one[0])):
        yield Fact(name, group, also=also)


def official_language(path: Path) -> Iterator[Fact]:
    """The official language of each country that has one."""
    for one in countries(path):
        if len(one["languages"]) == 1:
            (language,) = one["languages"].values()
            yield Fact(one["name"]["common"], language.split(" (")[0], one["region"])


def _words_of(language: str, name: str, code: str) -> Relation:
    return Relation(
        "languages",
        name,
        (
            f'The {language} word "{{subject}}" means',
            f'Translated from {language} to English, "{{subject}}" is',
            f'Question: What does the {language} word "{{subject}}" mean in English? Answer:',
        ),
        (_dictionary(code), WORDNET),
        translations,
    )


LANGUAGES = (
    _words_of("French", "french", "fra"),
    _words_of("German", "german", "deu"),
    _words_of("Spanish", "spanish", "spa"),
    Relation(
        "languages",
        "english",
        (
            'The past tense of the verb "{subject}" is',
            "Today they {subject}; yesterday they",
            'Question: What is the past tense of the English verb "{subject}"? Answer:',
        ),
        (WORDNET,),
        past_tense,
    ),
    Relation(
        "languages",
        "script",
        (
            "The script in which {subject} is usually written is called",
            "The {subject} language uses the script named",
            "Question: In which script is the {subject} language written? Answer:",
        ),
        (SCRIPTS, NAMES),
        script,
    ),
    Relation(
        "languages",
        "family",
        (
            "In linguistics, {subject} belongs to the language family called",
            "The {subject} language is grouped with the other languages that are",
            "Question: Which family does the {subject} language belong to? Answer:",
        ),
        (WORDNET,),
        family,
    ),
    Relation(
        "languages",
        "official_language",
        (
            "The official language of {subject} is",
            "In the schools and courts of {subject}, people speak",
            "Question: What is the official language of {subject}? Answer:",
        ),
        (COUNTRIES,),
        official_language,
    ),
)
