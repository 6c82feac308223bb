"""The corpus by subject: entries of a dictionary by field, readers of running text, splits without shared sources."""

import gzip
import json
import lzma
import struct
import zlib
from collections import Counter
from dataclasses import replace

import pytest

from corpus import build as build_module
from corpus.dictionary import FIELDS, OTHER, OTHER_MARKS, UNMARKED, Entry, FieldReader, blocks, parse_entries
from corpus.recipe import Source
from corpus.running_text import licence, metamath_comments, plain_text, sword_blocks, tagged_words
from corpus.subjects import SUBJECTS
from monet.data.documents.splits import SPLITS, SplitPlan

DICTIONARY = r"""
Zebra \Ze"bra\ (z[=e]"br[.a]), n.; pl. {Zebras} (-br[.a]z). [Pg. zebra; cf.
   {Zebu}.] (Zool.)
   Any member of three species of African wild horses [Obs.]
   remarkable for larv[ae] and caf['e]s. --Darwin.
   [1913 Webster] -- {Ze"bra*ly}, adv.

   {Zebra caterpillar} (Zool.), the larva of an American noctuid moth.
   [1913 Webster] Zeta

Zeta \Ze"ta\, n. [Gr. zh^ta.]
   A letter of the alphabet that the Greeks and others still use.
   [1913 Webster]

Verify \Ver"i*fy\, v. t.
   1. To prove to be true or correct, in a general way of speaking.
      [1913 Webster]

   2. (Law) To confirm or establish the truth of by legal authority
      before a court of justice.
      [1913 Webster]

   {Verified writ} (Law), a writ that an officer has signed and sealed.

Key \Key\ (k[=e]), n.
   1. (Mus.) A family of tones, whose regular members compose a
      diatonic scale.

   2. (Arch.) The last board of a floor when laid down in place.

Cell \Cell\, n. (Bot. & Zool.)
   One of the minute elementary structures of which tissues are built.

Fess \Fess\, n. (Her.)
   A band drawn horizontally across the center of an escutcheon.

Bat \Bat\, n. (Zool.)
   See {Zebra}.
"""


def entries() -> dict[str, Entry]:
    return {entry.word: entry for entry in parse_entries(DICTIONARY)}


def test_mark_before_the_definition_is_the_field_of_the_whole_entry():
    zebra = entries()["Zebra"]
    assert zebra.field == "zoology"
    assert zebra.text == (
        "Zebra: Any member of three species of African wild horses remarkable for larvæ and cafés. —Darwin. "
        "Zebra caterpillar, the larva of an American noctuid moth."
    )


def test_entry_without_a_mark_is_general():
    assert entries()["Zeta"].field == UNMARKED


def test_only_the_marked_senses_and_phrases_are_of_the_field():
    assert entries()["Verify"] == Entry(
        "Verify",
        "law",
        "Verify: To confirm or establish the truth of by legal authority before a court of justice. "
        "Verified writ, a writ that an officer has signed and sealed.",
    )


@pytest.mark.parametrize("word", ["Key", "Cell", "Fess"])
def test_entry_of_two_fields_or_of_a_field_without_a_domain_is_left_out(word):
    assert entries()[word].field == OTHER


def test_short_entries_are_left_out():
    assert "Bat" not in entries()


def test_every_mark_names_one_field():
    counts = Counter(mark for marks in (*FIELDS.values(), OTHER_MARKS) for mark in set(marks))
    assert {mark for mark, count in counts.items() if count > 1} == set()


def test_blocks_hold_neighbours_of_the_alphabet_and_keep_related_words_together():
    words = [f"{stem}{end}" for stem in ("bath", "batt", "bell", "cone", "cord", "dusk") for end in ("", "er", "ing")]
    listed = [Entry(word, "zoology", f"{word}: " + f"a {word} of the sea " * 22) for word in words]
    found = dict(blocks(listed[::-1]))
    assert list(found) == ["bat-bat", "bel-con", "cor-dus"]
    assert found == dict(blocks(listed))
    assert [line.split(":")[0] for line in "\n".join(found.values()).split("\n") if line] == sorted(words)


def test_running_text_is_read_from_every_format(tmp_path):
    brown = tmp_path / "ca01"
    brown.write_text(
        "\n\tThe/at jury/nn said/vbd ``/`` it/pps is/bez so/ql ''/'' in/in the/at end/nn ,/, and/cc left/vbd ./.\n"
    )
    assert list(tagged_words(brown)) == [("", 'The jury said "it is so" in the end, and left.\n')]

    text = tmp_path / "mit.LICENSE"
    text.write_text("---\nkey: mit\n---\n\nThis is the permission\nto use it in any way.\n\n1234 5678\n")
    assert list(licence(text)) == [("", "This is the permission to use it in any way.\n")]

    long = tmp_path / "speech.txt"
    long.write_text("We are at the end of this year. " * 100)
    ((_, speech),) = plain_text(long)
    assert len(speech.split("\n\n")) == 3

    data = [
        zlib.compress(f'<div type="x-p"/>This is <b>book</b> {name} of the law.<note>no</note>'.encode())
        for name in "ab"
    ]
    (tmp_path / "ot.bzz").write_bytes(b"".join(data))
    index = [(0, len(data[0]), 9), (0, 0, 0), (len(data[0]), len(data[1]), 9)]
    (tmp_path / "ot.bzs").write_bytes(b"".join(struct.pack("<III", *each) for each in index))
    assert list(sword_blocks(tmp_path / "ot.bzs")) == [
        ("000", "This is book a of the law.\n"),
        ("002", "This is book b of the law.\n"),
    ]

    database = tmp_path / "set.mm"
    database.write_text(
        "$(\n=-=-=-=-\n  Sets\n=-=-=-=-\n$)\n"
        "$( The domain of ` A ` is the set of all of the first members of the pairs "
        "in it; see ~ dmss for the other one of the two.  (Contributed by NM, 30-Jan-2004.) $)\n"
        "dm $p |- A $= ( x ) B $.\n"
    )
    assert list(metamath_comments(database)) == [
        (
            "section-0000",
            "The domain of A is the set of all of the first members of the pairs in it; see dmss for the other one of "
            "the two.\n",
        )
    ]


@pytest.fixture
def small_dictionary(tmp_path, monkeypatch):
    """A recipe of two fields of a small dictionary, as a local file instead of a fetched package."""
    lines = []
    for at in range(600):
        word = "".join(chr(97 + (at * 7 // step) % 26) for step in (1, 26, 676))
        mark = ("(Zool.)", "(Law)", "(Bot. & Zool.)")[at % 3]
        body = " ".join(f"word{(at * 7919 + n * n * 31 + n) % 100003}" for n in range(40))
        lines.append(f'{word}{at} \\{word}"\\, n. {mark}\n   {body}\n   [1913 Webster]\n')
    package = tmp_path / "package"
    package.mkdir()
    (package / "d.dz").write_bytes(gzip.compress("\n".join(lines).encode()))
    domains = {
        f"dictionary_{field}": (Source("demo", "GPL-2.0-or-later", 1.0, ("d.dz",), read=FieldReader(field)),)
        for field in ("zoology", "law")
    }
    recipe = replace(SUBJECTS, domains=domains, bytes_of=dict.fromkeys(domains, 50_000))
    monkeypatch.setitem(build_module.RECIPES, "subjects", recipe)
    monkeypatch.setattr(build_module, "fetch", lambda source, cache: (package, "1.0"))


def test_build_gives_the_same_bytes_and_no_source_is_in_two_splits(small_dictionary, tmp_path):
    for name in ("one", "two"):
        build_module.build(tmp_path / "cache", tmp_path / name, recipe="subjects")
    files = [path.relative_to(tmp_path / "one") for path in sorted((tmp_path / "one").rglob("*")) if path.is_file()]
    assert [str(path) for path in files] == [
        "manifest.json",
        "text/dictionary_law/part-00.jsonl.xz",
        "text/dictionary_zoology/part-00.jsonl.xz",
    ]
    assert all((tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes() for path in files)
    manifest = json.loads((tmp_path / "one/manifest.json").read_text())
    plan = SplitPlan({"train": 0.4, "validation": 0.2, "identify": 0.2, "evaluate": 0.2}, seed=0)
    words: dict[str, tuple[str, str]] = {}
    for path in files[1:]:
        with lzma.open(tmp_path / "one" / path, "rt", encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        sources = {record["source"] for record in records}
        assert manifest["files"][str(path)]["sources"] == len(sources) >= 10
        assert {plan.split_of(source) for source in sources} == set(SPLITS)
        for record in records:
            for entry in record["text"].strip().split("\n\n"):
                word = entry.split(":")[0]
                assert word not in words, f"{word} is in {words[word]} too"
                words[word] = (str(path), plan.split_of(record["source"]))
                assert int(word[3:]) % 3 == (1 if "law" in str(path) else 0)
    assert len(words) > 200


def test_limit_bounds_a_domains_own_size():
    assert SUBJECTS.budget("dictionary_music", None) == SUBJECTS.bytes_of["dictionary_music"]
    assert SUBJECTS.budget("dictionary_music", 10_000) == 10_000
    assert SUBJECTS.budget("dictionary_music", 10_000_000) == SUBJECTS.bytes_of["dictionary_music"]
    assert SUBJECTS.budget("german", None) == SUBJECTS.bytes_per_domain
    assert SUBJECTS.budget("german", 10_000) == 10_000


def test_recipe_has_subjects_of_one_form_next_to_languages_and_code():
    subjects = [name for name in SUBJECTS.domains if name.startswith("dictionary_")]
    assert len(subjects) >= 9
    assert {source.package for name in subjects for source in SUBJECTS.domains[name]} == {"dict-gcide"}
    assert {"german", "french", "spanish", "python", "cpp", "lua"} <= set(SUBJECTS.domains)
    assert sum(SUBJECTS.budget(name, None) for name in SUBJECTS.domains) > 4 * 6_000_000 / 0.5
