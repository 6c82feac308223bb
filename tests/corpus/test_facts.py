"""The recipe of facts: what a line holds, which facts are left out, and the readers, on tiny inputs."""

import gzip
import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from corpus import build as build_module
from corpus import facts as facts_module
from corpus import facts_definitions, facts_history, facts_languages, facts_numbers, facts_places, facts_programming
from corpus.dictionary import FIELDS
from corpus.facts import MAX_SAME_ANSWER, RELATIONS, given_away, lines_of, unambiguous
from corpus.facts_form import PHRASINGS, Fact, Relation
from corpus.recipe import Source
from monet.errors import ConfigError, DataError
from monet.eval.suites.facts.read import read_facts


def relation(facts: Iterable[Fact] = (), domain: str = "places", name: str = "capital") -> Relation:
    prompts = (
        "The capital of {subject} is",
        "{subject} has the capital",
        "Question: The capital of {subject}? Answer:",
    )
    source = Source("atlas", "CC0-1.0", 1.0, ("atlas.txt",), client="pip", version="1")
    return Relation(domain, name, prompts, (source,), lambda path: facts)


def word(number: int) -> str:
    """A word that shares no beginning with the others."""
    return "".join(chr(97 + byte % 26) for byte in hashlib.sha256(bytes([number])).digest()[:7])


def many(count: int = 20, place: str = "Land") -> list[Fact]:
    return [Fact(f"{place}{number}", word(number)) for number in range(count)]


def lines(facts: Iterable[Fact], seed: int = 0, limit: int = 60) -> list[dict[str, Any]]:
    return list(lines_of(relation(), facts, seed, limit))


def test_a_fact_gives_one_line_for_each_phrasing_with_four_options():
    found = lines(many())
    assert len(found) == 20 * len(PHRASINGS)
    first = found[: len(PHRASINGS)]
    assert [line["phrasing"] for line in first] == list(PHRASINGS)
    assert first[0]["prompt"] == "The capital of Land0 is" and first[0]["answer"] == word(0)
    assert set(first[0]) == {"prompt", "answer", "choices", "domain", "relation", "phrasing", "subject"}
    answers = {fact.answer for fact in many()}
    for line in found:
        assert len(set(line["choices"])) == 4 and line["answer"] in line["choices"]
        assert set(line["choices"]) <= answers


def test_lines_depend_on_the_seed_only():
    assert lines(many()) == lines(many()) != lines(many(), seed=1)
    places = {line["choices"].index(line["answer"]) for line in lines(many())}
    assert places == {0, 1, 2, 3}


def test_facts_with_two_answers_and_repeated_facts_are_left_out():
    found = unambiguous([Fact("A", "one"), Fact("B", "two"), Fact("a", "three"), Fact("B", "two")])
    assert [fact.subject for fact in found] == ["B"]


@pytest.mark.parametrize(
    "prompt, answer, away",
    [
        ("Mexico", "Mexico City", True),
        ("Tunisia", "Tunis", True),
        ("any bird of the sea", "seabird", True),
        ("Austria", "Australia", True),
        ("France", "Paris", False),
        ("12 plus 30", "42", False),
        ("12 plus 30", "12", True),
        ("iron", "Fe", False),
    ],
)
def test_an_answer_that_the_prompt_gives_away(prompt, answer, away):
    assert given_away(prompt, answer) is away
    assert unambiguous([Fact(prompt, answer)]) == ([] if away else [Fact(prompt, answer)])


def test_wrong_answers_are_near_and_never_right():
    numbers = [Fact(word(number), str(1000 + number), number) for number in range(50)]
    for line in lines(numbers):
        assert all(abs(int(choice) - int(line["answer"])) <= 8 for choice in line["choices"])
    groups = [Fact(f"Land{number}", word(number), "north" if number < 5 else "south") for number in range(20)]
    north = {word(number) for number in range(5)}
    assert all(set(line["choices"]) <= north for line in lines(groups)[: 5 * len(PHRASINGS)])
    also = [Fact("Land0", word(0), also=frozenset(map(word, range(1, 17)))), *many()[1:]]
    assert set(lines(also)[0]["choices"]) == {word(0), word(17), word(18), word(19)}


def test_the_first_facts_are_taken_and_few_with_one_answer():
    assert {line["subject"] for line in lines(many(), limit=15)} == {f"Land{number}" for number in range(15)}
    same = [Fact(f"Sea{number}", word(99)) for number in range(30)]
    found = [line["answer"] for line in lines([*same, *many()])][:: len(PHRASINGS)]
    assert found.count(word(99)) == MAX_SAME_ANSWER


def test_a_relation_with_few_facts_is_refused():
    with pytest.raises(DataError, match="places/capital: only 5 facts"):
        lines(many(5))


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    """Two domains of one local package."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package/atlas.txt").write_text("atlas")
    monkeypatch.setattr(facts_module, "RELATIONS", (relation(many()), relation(many(30, "Sea"), "seas", "depth")))
    monkeypatch.setattr(facts_module, "DOMAINS", ("places", "seas"))
    monkeypatch.setattr(facts_module, "fetch", lambda source, cache: (tmp_path / "package", "1"))
    return tmp_path


def test_the_build_writes_what_the_suite_reads(small):
    for name in ("one", "two"):
        build_module.build(small / "cache", small / name, recipe="facts")
    build_module.build(small / "cache", small / "other", recipe="facts", seed=1, domains=["seas"])
    text = (small / "one/facts.jsonl").read_bytes()
    assert text == (small / "two/facts.jsonl").read_bytes()
    read = read_facts([small / "one/facts.jsonl"])
    assert (read.description["facts"], read.description["lines"]) == (50, 150)
    assert {line["domain"] for line in map(json.loads, (small / "other/facts.jsonl").open())} == {"seas"}
    manifest = json.loads((small / "one/manifest.json").read_text())
    assert manifest["relations"] == {"places/capital": 20, "seas/depth": 30} and manifest["facts"] == 50
    assert manifest["packages"] == [
        {
            "package": "atlas", "client": "pip", "version": "1", "licence": "CC0-1.0",
            "relations": ["places/capital", "seas/depth"],
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"bytes_per_domain": 5}, "bytes_per_domain=5"),
        ({"domains": ["places", "moons"]}, r"domains=\['moons'\]"),
        ({"out": build_module.HERE}, "another folder"),
        ({"recipe": "demo", "seed": 3}, "seed=3"),
    ],
)
def test_the_build_refuses(small, arguments, words):
    given = {"out": small / "out", "recipe": "facts", **arguments}
    with pytest.raises(ConfigError, match=words):
        build_module.build(small / "cache", **given)


def test_a_package_with_another_form_is_refused(small):
    (small / "package/atlas.txt").unlink()
    with pytest.raises(DataError, match=r"atlas: 0 files match atlas\.txt"):
        build_module.build(small / "cache", small / "out", recipe="facts")


def test_every_relation_has_a_name_prompts_and_a_licence():
    assert len({(one.domain, one.name) for one in RELATIONS}) == len(RELATIONS) >= 33
    assert {"places", "elements", "events", "definitions", "arithmetic"} <= {one.domain for one in RELATIONS}
    for one in RELATIONS:
        assert len(set(one.prompts)) == len(PHRASINGS)
        assert all(prompt.count("{subject}") == 1 and prompt.strip() == prompt for prompt in one.prompts)
        assert one.sources or one.domain == "arithmetic"
        assert all(source.licence and (source.client == "apt" or source.version) for source in one.sources)
    assert [one.name for one in facts_definitions.DEFINITIONS] == list(FIELDS)


def pairs(facts: Iterable[Fact]) -> list[tuple[str, str]]:
    return [(fact.subject, fact.answer) for fact in facts]


def test_places(tmp_path):
    def country(name: str, code: str, capital: list[str], member: bool = True, **more: Any) -> dict[str, Any]:
        return {
            "name": {"common": name}, "cca2": code, "capital": capital, "unMember": member, "region": "Europe",
            "subregion": "Western Europe", "area": len(name), "languages": {"fra": "French"},
            "currencies": {"X": {"name": f"{name} Crown"}}, **more,
        }  # fmt: skip

    file = tmp_path / "countries.json"
    file.write_text(json.dumps([
        country("France", "FR", ["Paris"]), country("Bolivia", "BO", ["Sucre", "La Paz"]),
        country("United Kingdom", "GB", ["London"]), country("Guernsey", "GG", ["Port"], member=False),
    ]))  # fmt: skip
    assert pairs(facts_places.capital(file)) == [("France", "Paris")]
    assert pairs(facts_places.country_of_capital(file)) == [("Paris", "France")]
    assert pairs(facts_places.currency(file)) == [("Bolivia", "crown"), ("France", "crown")]
    assert pairs(facts_languages.official_language(file))[1] == ("France", "French")
    cities = tmp_path / "cities15000.json"
    cities.write_text(json.dumps({
        str(id): {"geonameid": id, "name": name, "countrycode": country, "population": people, "admin1code": state}
        for id, (name, country, people, state) in enumerate([
            ("Paris", "FR", 9, ""), ("Lyon", "FR", 5, ""), ("Nancy", "FR", 4, ""), ("Nancy", "US", 1, "NY"),
            ("Albany", "US", 3, "NY"), ("Salem", "US", 2, "OR"), ("Salem", "US", 1, "NY"),
        ])
    }))  # fmt: skip
    (tmp_path / "us_states.json").write_text(json.dumps({"NY": {"name": "New York"}, "OR": {"name": "Oregon"}}))
    assert pairs(facts_places.country_of_city(file, cities)) == [("Lyon", "France")]
    assert pairs(facts_places.state_of_city(cities)) == [("Albany", "New York"), ("Nancy", "New York")]


def test_quizzes(tmp_path):
    (tmp_path / "state").write_text("Cal{if{ornia}}|CA:Sac[ramento|to]:CA:poppy\n")
    (tmp_path / "pres").write_text(
        "{W{illiam|m} }{H{oward} }Taft:1909-{19}13:{J{ames} }Sherman:\\\n{M{artin} }Van Buren\n"
        "{G{eorge} }{W{alker} }Bush{{,} J{unio}r}:2001-:X:\n"
    )
    assert pairs(facts_places.state_capital(tmp_path)) == [("California", "Sacramento")]
    assert pairs(facts_history.president_year(tmp_path)) == [("William Taft", "1909"), ("George Bush", "2001")]
    assert pairs(facts_history.next_president(tmp_path)) == [("William Taft", "Martin Van Buren")]


def test_elements_and_numbers(tmp_path):
    file = tmp_path / "elements.db"
    with sqlite3.connect(file) as database:
        database.execute("CREATE TABLE series (id, name)")
        database.execute("INSERT INTO series VALUES (1, 'Noble gases')")
        database.execute("CREATE TABLE elements (name, symbol, atomic_number, series_id, discovery_year)")
        database.execute("INSERT INTO elements VALUES ('Neon', 'Ne', 10, 1, 1898), ('Helium', 'He', 2, 1, NULL)")
    database.close()
    assert pairs(facts_numbers.symbol(file)) == [("helium", "He"), ("neon", "Ne")]
    assert pairs(facts_numbers.element_of_symbol(file))[1] == ("Ne", "neon")
    assert pairs(facts_numbers.atomic_number(file))[0] == ("helium", "2")
    assert pairs(facts_numbers.element_of_number(file))[0] == ("2", "helium")
    assert pairs(facts_numbers.series(file))[0] == ("helium", "noble gases")
    assert pairs(facts_numbers.discovery(file)) == [("neon", "1898")]


@pytest.mark.parametrize(
    "read, sign",
    [
        (facts_numbers.sums, "plus +"),
        (facts_numbers.differences, "minus -"),
        (facts_numbers.products, "times *"),
        (facts_numbers.quotients, "divided by /"),
    ],
)
def test_arithmetic_is_right(read: Callable[[], Iterable[Fact]], sign: str):
    words, symbol = sign.rsplit(" ", 1)
    found = list(read())
    assert len(found) > 60
    assert all(eval(fact.subject.replace(words, symbol)) == int(fact.answer) for fact in found)


def test_roman_numerals():
    found = {int(fact.subject): fact.answer for fact in facts_numbers.roman_numerals()}
    assert (found[4], found[49], found[90], found[100]) == ("IV", "XLIX", "XC", "C")


def noun(identifier: int, file: int, words: str, gloss: str, pointers: str = "") -> str:
    """A line of data.noun; pointers are symbols and identifiers."""
    given = pointers.split()
    links = " ".join(f"{symbol} {int(to):08d} n 0000" for symbol, to in zip(given[::2], given[1::2], strict=True))
    names = " ".join(f"{name} 0" for name in words.split())
    return f"{identifier:08d} {file:02d} n {len(words.split()):02x} {names} {len(given) // 2:03d} {links} | {gloss}  \n"


@pytest.fixture
def wordnet(tmp_path) -> Path:
    lines = [
        noun(1, 5, "animal", "a living thing that moves", "~ 2"),
        noun(2, 5, "dog hound", 'a common four-legged friend of man (tame); loud; "the dog barks"', "@ 1"),
        noun(3, 20, "fern", "any plant without flowers that dogs ignore", ""),
        noun(4, 10, "law", "legal matters and what is about them"),
        noun(5, 4, "crime", "an act that breaks the rules of the state", ";c 4"),
        noun(10, 4, "battle", "a fight"),
        noun(11, 4, "Hundred_Years'_War", "a war of 1337-1453"),
        noun(12, 4, "Agincourt battle_of_Agincourt", "the English won in 1415", "@i 10 #p 11"),
        noun(13, 4, "Cannae", "Hannibal defeated the Romans in 216 BC", "@i 10"),
        noun(20, 18, "poet", "a writer of verse", "@ 24"),
        noun(21, 18, "Heine Heinrich_Heine", "German poet and critic (1797-1856)", "@i 20"),
        noun(22, 18, "Keats John_Keats", "Englishman and romantic poet (1795-1821)", "@i 20"),
        noun(
            23, 18, "Frost Robert_Frost", "United States poet famous for verse about New England (1874-1963)", "@i 20"
        ),
        noun(24, 18, "writer", "a person who writes books"),
        noun(25, 18, "Greek_deity", "a deity of the Greeks"),
        noun(26, 18, "Zeus", "the supreme god", "@i 25"),
        noun(30, 10, "natural_language", "a language of people", "~ 31"),
        noun(31, 10, "Indo-European", "many languages", "@ 30 ~ 32"),
        noun(32, 10, "Germanic", "languages of the north", "@ 31 ~ 33"),
        noun(33, 10, "Danish", "what is spoken in Denmark", "@ 32"),
    ]
    file = tmp_path / "data.noun"
    file.write_text("  1 licence\n" + "".join(lines))
    index = [("dog", 2), ("fern", 3), ("crime", 5), ("animal", 1)]
    (tmp_path / "index.noun").write_text(
        "".join(f"{word} n 1 1 @ 1 0 {identifier:08d}  \n" for word, identifier in index)
    )
    (tmp_path / "verb.exc").write_text("brought bring\nbringing bring\nsang sing\nsung sing\ncut cut\n")
    return file


def test_history_and_people(wordnet, tmp_path):
    assert pairs(facts_history.battle_year(wordnet)) == [("Agincourt", "1415")]
    assert pairs(facts_history.war_of_battle(wordnet)) == [("Agincourt", "Hundred Years' War")]
    assert pairs(facts_history.birth_year(wordnet))[1] == ("John Keats", "1795")
    people = sorted(facts_history.occupation(wordnet), key=lambda fact: fact.subject)
    assert pairs(people) == [("John Keats", "poet"), ("Robert Frost", "poet")] and "writer" in people[0].also
    assert sorted(pairs(facts_history.nationality(wordnet))) == [
        ("Heinrich Heine", "German"),
        ("Robert Frost", "American"),
    ]
    assert pairs(facts_history.culture_of_deity(wordnet)) == [("Zeus", "Greek")]
    calendar = tmp_path / "calendar.history"
    calendar.write_text(
        "01/01\tFirst bridge over\n\tthe river opens, 1883\n01/02\tBattle of somewhere\n"
        "01/03\tThe war of 1812 ends at last, 1815\n01/04*\tNew law about old ships, 1901\n"
    )
    assert sorted(pairs(facts_history.event_year(calendar))) == [
        ("First bridge over the river opens", "1883"),
        ("New law about old ships", "1901"),
    ]


def test_definitions(wordnet):
    (dog,) = (fact for fact in facts_definitions.definitions(wordnet, "zoology") if fact.answer == "dog")
    assert dog.subject == "a common four-legged friend of man" and {"hound", "animal"} <= dog.also
    assert pairs(facts_definitions.definitions(wordnet, "botany")) == [
        ("any plant without flowers that dogs ignore", "fern")
    ]
    assert pairs(facts_definitions.definitions(wordnet, "law")) == [
        ("an act that breaks the rules of the state", "crime")
    ]


def test_languages(wordnet, tmp_path):
    german = tmp_path / "freedict-deu-eng.dict.dz"
    german.write_bytes(gzip.compress(
        "Hund /hʊnt/ <masc, n, sg>\n [zool.] dog <n>, dog <n>\n   Synonym: {Köter}\n\n"
        "Hunde /hʊndə/ <pl>\ndog <n>\n\nFarn /farn/ <masc, n, sg>\nfern <n>\n\nFarn /farn/ <masc, n, sg>\ncrime <n>\n"
        .encode()
    ))  # fmt: skip
    assert pairs(facts_languages.translations(german, wordnet)) == [("Hund", "dog")]
    french = tmp_path / "freedict-fra-eng.dict.dz"
    french.write_bytes(gzip.compress("chien /ʃjɛ̃/ <n>\ndog\nloi /lwa/ <n>\n1. crime\n2. law\nou /u/\nor\n".encode()))
    assert pairs(facts_languages.translations(french, wordnet)) == [("chien", "dog"), ("loi", "crime")]
    assert pairs(facts_languages.past_tense(wordnet)) == [("bring", "brought")]
    assert pairs(facts_languages.family(wordnet)) == [("Danish", "Germanic")]
    (tmp_path / "iso_639-2.json").write_text(
        json.dumps({"639-2": [{"alpha_2": "el", "name": "Greek, Modern (1453-)"}, {"name": "Old"}]})
    )
    (tmp_path / "iso_15924.json").write_text(json.dumps({"15924": [{"alpha_4": "Grek", "name": "Greek script"}]}))
    likely = tmp_path / "likelySubtags.json"
    likely.write_text(json.dumps({"supplemental": {"likelySubtags": {"el": "el-Grek-GR"}}}))
    assert pairs(facts_languages.script(likely, tmp_path)) == [("Greek", "Greek script")]


def test_programming(tmp_path):
    (tmp_path / "http").mkdir()
    (tmp_path / "http/__init__.py").write_text(
        "class S:\n    OK = 200, 'OK', 'x'\n    GONE = (410, 'Gone',\n      'y')\n"
    )
    (tmp_path / "shop.py").write_text(
        "__all__ = ['Basket', 'opened']\nclass Basket: pass\ndef opened(): pass\ndef hidden(): pass\n"
    )
    (tmp_path / "farm.py").write_text("__all__ = ['opened', 'harvest']\ndef opened(): pass\ndef harvest(): pass\n")
    assert pairs(facts_programming.python_modules(tmp_path)) == [("Basket", "shop"), ("harvest", "farm")]
    assert pairs(facts_programming.status_codes(tmp_path)) == [("200", "OK"), ("410", "Gone")]
    for name, header in (("std::sort", "algorithm"), ("std::move", "utility"), ("std::move", "algorithm")):
        page = tmp_path / "cpp" / header / f"{name[5:]}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(
            f'<title>{name} - cppreference.com</title>Defined in header <code><a href="h">&lt;{header}&gt;</a>'
        )
    assert pairs(facts_programming.cpp_headers(tmp_path / "cpp")) == [("std::sort", "<algorithm>")]
    (tmp_path / "_lua_builtins.py").write_text(
        "MODULES = {'basic': ('print',), 'math': ('math.floor', 'math.pi2'), 'io': ('io.open', 'io.floor2')}\n"
    )
    assert sorted(pairs(facts_programming.lua_libraries(tmp_path))) == [("floor", "math"), ("open", "io")]
    for name, kind, endings in (
        ("Ada", "programming", "'.adb', '.ada'"), ("Text", "prose", "'.txt'"), ("B", "programming", "'.bb'"),
    ):  # fmt: skip
        (tmp_path / f"{name}.js").write_text(
            f"{{\n  name: '{name}',\n  type: '{kind}',\n  extensions: [{endings}],\n}}"
        )
    assert pairs(facts_programming.file_endings(tmp_path)) == [("Ada", ".adb"), ("B", ".bb")]
    services = tmp_path / "services"
    services.write_text("# names\nssh\t\t22/tcp\t# login\ndomain\t53/tcp\ndomain\t53/udp\n")
    assert pairs(facts_programming.ports(services)) == [("ssh", "22"), ("domain", "53")]
