"""Reads GCIDE, an English dictionary whose entries name their field: (Zool.), (Bot.), (Law).

All of its subjects have one form, so domains made from its fields differ in subject and not in style.
"""

from __future__ import annotations

import gzip
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path

UNMARKED = "general"
OTHER = "other"
MIN_DEFINITION_CHARS = 40
BLOCK_BYTES = 1_500
PREFIX_LETTERS = 3

# Field -> the marks that name it. An entry under a mark of OTHER_MARKS, or under two fields, is in no domain.
FIELDS: dict[str, tuple[str, ...]] = {
    "zoology": ("Zool", "Zoöl", "Ornith", "Ichth", "Entom", "Conch"),
    "botany": ("Bot",),
    "chemistry": ("Chem", "Old Chem", "Org Chem", "Physiol Chem", "Biochem", "Alchemy", "Chem Lab"),
    "medicine": ("Med", "Surg", "Pharm", "Pathol", "Dentistry", "Psychiatry", "Old Med", "Obstetrics"),
    "anatomy": ("Anat", "Physiol", "Compar Anat", "Phys Anat"),
    "law": (
        "Law", "Eng Law", "O Eng Law", "Old Eng Law", "Old Law", "Scots Law", "Civil Law", "Rom Law", "Feudal Law",
        "Criminal Law", "Crim Law", "Common Law", "Mining Law", "Commercial Law", "Internat Law", "Sp Law", "Roman Law",
    ),
    "nautical": ("Naut", "Nav", "Shipbuilding", "Navig", "Yachting", "Boating", "Rowing"),
    "music": ("Mus", "Music", "Encyc of Music"),
    "military": ("Mil", "Fort", "Gun", "Ordnance", "Firearms", "Anc Armor", "Mil Antiq", "Gunnery", "Mil Engin"),
    "architecture": ("Arch", "Masonry", "Carp", "Building", "Joinery", "Civil Engin"),
    "exact_sciences": (
        "Math", "Geom", "Alg", "Arith", "Trig", "Physics", "Astron", "Opt", "Optics", "Mech", "Elec", "Magnetism",
        "Crystallog", "Dynamics", "Thermodynamics", "Hydraulics", "Acoustics", "Phys", "Chem Physics", "Electricity",
    ),
    "geology": ("Geol", "Min", "Mining", "Paleon", "Phys Geog", "Petrog", "Geog", "Metal", "Paleontology", "Meteor"),
    "religion": (
        "Eccl", "Eccl Hist", "R C Ch", "RCCh", "Theol", "Script", "Jewish Antiq", "Ch of Eng", "Eccl Antiq", "Bib",
        "Ch Hist", "Gr Ch", "Hinduism", "Buddhism", "Biblical",
    ),
    "language": ("Gram", "Rhet", "Pros", "Logic", "Philol", "Phon", "Phonetics", "Linguistics", "Lit", "Metaph"),
}  # fmt: skip
OTHER_MARKS = (
    "Mach", "Steam Engine", "Engin", "Founding", "Railroad", "Railroads", "Steam Boilers", "Weaving", "Print",
    "Printing", "Spinning", "Bookbinding", "Telegraphy", "Forging", "Horology",
    "Biol", "Her", "Ethnol", "Com", "Computers", "Far", "Rom Antiq", "Gr Antiq", "Cookery", "Fine Arts", "Baseball",
    "Photog", "Paint", "Card Playing", "Geography", "Agric", "Nat Hist", "Golf", "Class Myth", "Football", "Astrol",
    "Eng Hist", "Cricket", "Hort", "Philos", "Myth", "Man", "Antiq", "Falconry", "Finance", "Aeronautics", "Surv",
    "Electronics", "Stock Exchange", "Billiards", "Sports", "Politics", "Polit Econ", "Art", "Gr Myth", "Psychol",
    "Painting", "Sport", "Fencing", "Phren", "Sporting", "Dyeing", "Hunting", "Chess", "Tennis", "Bookkeeping",
    "Biology", "Embryol", "Bacteriol", "Teleg", "Numis", "Eccl Law", "Eng Eccl Law", "Bot & Zool", "Ecol", "Sculp",
)  # fmt: skip
_FIELD_OF = {mark: field for field, marks in FIELDS.items() for mark in marks} | dict.fromkeys(OTHER_MARKS, OTHER)
# Notes about a word that name no field.
_NO_FIELD = frozenset({"Fig", "Obs", "R", "Poetic", "Colloq", "Cant", "Slang", "Prov Eng", "Scot", "Usually in the pl"})

_ENTRY = re.compile(r"^(?=\S[^\n\\]*\\)", re.MULTILINE)
_HEADWORD = re.compile(r"([^\\]+?)\s*\\[^\\]*\\(?:(?:,|\sor)?\s*[^\\\[\](){}.;:]{1,40}\\[^\\]*\\)*")
_PART_OF_SPEECH = re.compile(
    r"(?:[,;&.]|(?:v\. ?[ti]|n|a|adj|v|adv|prep|conj|interj|pron|p|pr|vb|imp|pl|sing|t|i|fem|masc|obs|superl|compar)\."
    r"|prop\.|(?:E\. |L\. |F\. |G\. )?pl\.|\{[^{}]*\}|(?:n|adj|adv|v) (?=[A-Z1(\[]))\s*"
)
_MARK = re.compile(r"\(([A-Z][^()]{0,40})\)")
_BRACKETED = re.compile(r"\[[^\[\]]*\]")
# A numbered sense begins a line; a phrase follows a blank line or a dash.
_UNIT = re.compile(r"^(?= {1,4}\d{1,2}\. )|(?<=\n\n)(?= +\{)|--(?=\s+\{)", re.MULTILINE)
_LEAD = re.compile(
    r"(?:\d{1,2}\. (?:\([a-z]\) )?|(?P<phrase>(?:(?:or |, |, or )?\{[^{}]*\})+),? )\((?P<mark>[A-Z][^()]{0,40})\)"
)
# "-- {Bath`y*met"ric*al*ly}, adv.": a derived word with its pronunciation and no definition.
_DERIVED = re.compile(r"(?:--\s*)?\{[^{}]*[*\"`][^{}]*\},?\s*(?:n|a|adv|adj|v\. ?[ti])\.")
_ACCENTS = {"'": "\u0301", "`": "\u0300", "^": "\u0302", '"': "\u0308", "~": "\u0303", ",": "\u0327", "=": "\u0304"}
_LETTERS = {"ae": "æ", "AE": "Æ", "oe": "œ", "OE": "Œ", "deg": "°", "root": "√", "frac12": "1/2", "frac14": "1/4"}


@dataclass(frozen=True)
class Entry:
    """A cleaned entry.

    Attributes:
        word: headword.
        field: a key of FIELDS; UNMARKED for an entry without any mark; OTHER for one under other marks or two fields.
        text: headword and definition in one line, without marks, pronunciation and origin of the word.
    """

    word: str
    field: str
    text: str


def _fields(mark: str) -> set[str]:
    """Return the fields that one mark names: (Bot. & Zool.) names two; OTHER for an unknown mark."""
    pieces = [" ".join(piece.replace(".", " ").split()) for piece in re.split(r"&|,|\band\b|\bor\b", mark)]
    return {_FIELD_OF.get(piece, OTHER) for piece in pieces if piece and piece not in _NO_FIELD}


def _known_fields(text: str) -> set[str]:
    """Return the fields of all known marks in a text; other words in brackets are no marks."""
    found: set[str] = set()
    for mark in _MARK.findall(text):
        first = " ".join(re.split(r"&|,|\band\b", mark)[0].replace(".", " ").split())
        if first in _FIELD_OF:
            found |= _fields(mark)
    return found


def _letter(match: re.Match[str]) -> str:
    inner = match[1]
    if inner in _LETTERS:
        return _LETTERS[inner]
    if len(inner) == 2 and inner[0] in _ACCENTS and inner[1].isalpha():
        return unicodedata.normalize("NFC", inner[1] + _ACCENTS[inner[0]])
    return match[0]


def _plain(text: str) -> str:
    """Return the text with the dictionary's spellings of foreign letters replaced, and other brackets removed."""
    text = re.sub(r"\[([^\[\]\s]{2,6})\]", _letter, text)
    while (shorter := _BRACKETED.sub("", text)) != text:
        text = shorter
    return text


def _definition(entry: str) -> tuple[str, str, set[str]] | None:
    """Return the headword, the definition in one line, and the fields of the marks before the definition."""
    flat = " ".join(entry.split())
    head = _HEADWORD.match(flat)
    if head is None:
        return None
    rest = _plain(flat[head.end() :])
    fields: set[str] = set()
    while True:
        rest = rest.lstrip()
        mark = _MARK.match(rest)
        skipped = mark or re.match(r"\([^()]*\)", rest) or _PART_OF_SPEECH.match(rest)
        if skipped is None:
            break
        if mark:
            fields |= _fields(mark[1])
        rest = rest[skipped.end() :]
    return head[1], rest, fields


def _marked_units(entry: str) -> list[tuple[set[str], str]]:
    """Return the numbered senses and the phrases of an entry that begin with a mark: the mark's fields, the text."""
    units = []
    for unit in _UNIT.split(entry)[1:]:
        text = " ".join(unit.split())
        lead = _LEAD.match(text)
        if lead:
            units.append((_fields(lead["mark"]), (lead["phrase"] or "") + " " + text[lead.end() :]))
    return units


def _field_and_text(entry: str, definition: str, before: set[str]) -> tuple[str, str]:
    """Return an entry's field and the part of its definition that is of this field."""
    units = [] if before else _marked_units(entry)
    fields = before | _known_fields(definition).union(*(fields for fields, _ in units))
    if not fields:
        return UNMARKED, definition
    if len(fields) > 1:
        return OTHER, definition
    (field,) = fields
    if before:
        return field, definition
    return (field, " ".join(text for _, text in units)) if units else (OTHER, definition)


def _clean(definition: str) -> str:
    text = _MARK.sub(lambda mark: "" if _known_fields(mark[0]) else mark[0], _plain(definition))
    text = re.sub(r"[{}]", "", _DERIVED.sub("", text)).replace("--", "—")
    text = re.sub(r"https?://\S+", "", text)
    return re.sub(r" +([.,;:])", r"\1", " ".join(text.split())).strip()


def parse_entries(text: str) -> Iterator[Entry]:
    """Read the entries of the dictionary's text.

    An entry with marks of two fields is of none. The mark before the definition holds for the whole entry; otherwise
    the text is the marked senses and phrases. The marks are removed, so that only the content shows the subject.
    """
    found = _ENTRY.split(text)
    for entry, following in zip(found, [*found[1:], ""], strict=True):
        # The digitised text often repeats the next entry's word at the end of an entry.
        entry = entry.rstrip().removesuffix(following.partition("\\")[0].rstrip() or "\n")
        parts = _definition(entry)
        if parts is None:
            continue
        word, definition, before = parts
        field, of_field = _field_and_text(entry, definition, before)
        cleaned = _clean(of_field)
        if len(cleaned) >= MIN_DEFINITION_CHARS and not re.search(r"[\[\]\\]", cleaned):
            yield Entry(word, field, f"{word}: {cleaned}")


@lru_cache(maxsize=1)
def _entries(path: Path) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = defaultdict(list)
    for entry in parse_entries(gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace")):
        found[entry.field].append(entry)
    return found


def _prefix(entry: Entry) -> str:
    return re.sub(r"\W", "", entry.word).lower()[:PREFIX_LETTERS]


def blocks(entries: list[Entry]) -> Iterator[tuple[str, str]]:
    """Join entries that are neighbours in the alphabet to blocks of at least BLOCK_BYTES, the sources of a domain.

    Words with the same first three letters are in one block: derived words (Bathometer, Bathymetry) repeat each other.

    Yields:
        Name of the block, "bat-bea", and its entries, separated by blank lines.
    """
    texts: list[str] = []
    first = last = ""
    ordered = sorted(entries, key=lambda entry: (_prefix(entry), entry.word, entry.text))
    for prefix, group in groupby(ordered, key=_prefix):
        first = first or prefix
        last = prefix
        texts += [entry.text for entry in group]
        if sum(len(text.encode()) + 2 for text in texts) >= BLOCK_BYTES:
            yield f"{first}-{last}", "\n\n".join(texts) + "\n"
            texts, first = [], ""
    if texts:
        yield f"{first}-{last}", "\n\n".join(texts) + "\n"


@dataclass(frozen=True)
class FieldReader:
    """Reads the blocks of one field from the dictionary's file."""

    field: str

    def __call__(self, path: Path) -> Iterator[tuple[str, str]]:
        """Yield the name and the text of each block."""
        return blocks(_entries(path)[self.field])
