"""Score explanations: each on contexts that no explainer saw, next to a permuted and an empty explanation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monet.errors import ConfigError
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.loading import windows_bar
from monet.eval.explain.embedders import Embedder
from monet.eval.explain.excerpts import Excerpts
from monet.eval.explain.judges import Judge, Question
from monet.eval.explain.material import BLOCK, Material, materials
from monet.eval.explain.records import SCORES, Explanation, Lines, Score, check_name
from monet.eval.explain.scorers import (
    FEWEST,
    OTHERS,
    Found,
    ScorerName,
    accuracy,
    area,
    mixed_sets,
    precision,
    sets_of,
    share_found,
)
from monet.eval.index.index import Index
from monet.eval.index.units import Unit


@dataclass(frozen=True)
class Scored:
    """What is scored, and how.

    Args:
        scorer: detection: which excerpts does the explanation fit? fuzzing: which marked tokens? embedding: is the
            explanation more similar to active excerpts? intruder: which of five excerpts does not belong to the others?
        judge: who answers; None for embedding.
        embedder: what makes vectors of texts; None for the other scorers.
        explanations: what is scored, by group and unit; empty for intruder.
        source: name and settings of the explanations, for the record.
    """

    scorer: ScorerName
    judge: Judge | None
    embedder: Embedder | None
    explanations: dict[tuple[int, int], Explanation]
    source: dict[str, Any]

    @property
    def key(self) -> dict[str, Any]:
        """Everything that an answer depends on, apart from the text."""
        by = self.judge if self.judge is not None else self.embedder
        assert by is not None, "a judge or an embedder"
        return {"scorer": self.scorer, "explanations": self.source, **by.key}


def score(
    index: Index,
    model: Any,
    units: Sequence[Unit],
    scored: Scored,
    name: str,
    *,
    positives: int = 8,
    around: int = 8,
    seed: int = 0,
    bootstrap: Bootstrap = Bootstrap(resamples=1000),  # noqa: B008 - frozen
    overwrite: bool = False,
    progress: bool = True,
) -> list[Score]:
    """Score units; lines that exist already are kept.

    Args:
        index: the index; the lines go to its folder.
        model: its model, for the weights at every token.
        units: what to score; permuted explanations come from this list.
        scored: scorer, judge and explanations.
        name: name of the file, without ending.
        positives: active excerpts of a unit, and inactive ones, at most.
        around: tokens before and after each context's token.
        seed: seed of the division of documents, which must be that of the explanations, and of all draws.
        bootstrap: settings of the intervals.
        overwrite: begin again if the file was made with other settings.
        progress: show a bar on standard error.

    Returns:
        The lines of the units, in their order.

    Raises:
        ConfigError: a number or the name is out of range, or the file was made with other settings.
    """
    if positives < FEWEST or around < 0:
        raise ConfigError(f"positives {positives} must be at least {FEWEST}, and around {around} at least 0")
    settings = {
        "kind": SCORES, "index": index.info.data.fingerprint, "fingerprint": index.info.model.fingerprint,
        "units": [unit.name for unit in units], "positives": positives, "around": around, "seed": seed,
        "resamples": bootstrap.resamples, "confidence": bootstrap.confidence, **scored.key,
    }  # fmt: skip
    excerpts = Excerpts(index, around, seed)
    path = index.folder / SCORES / f"{check_name(name)}.jsonl"
    with Lines(path, Score, settings, overwrite) as lines:
        with windows_bar(len(units), "", progress, "expert", initial=len(lines.done)) as bar:
            for start in range(0, len(units), BLOCK):
                block = units[start : start + BLOCK]
                if all((unit.group, unit.number) in lines.done for unit in block):
                    continue
                job = _Block(scored, block, seed, bootstrap)
                used = [job.used(unit) for unit in block]
                job.material = materials(model, excerpts, block, positives, used)
                for first in range(0, len(block), job.at_once):
                    chosen = range(first, min(first + job.at_once, len(block)))
                    todo = [n for n in chosen if (block[n].group, block[n].number) not in lines.done]
                    for line in job.lines(todo):
                        lines.put(line)
                        bar.update()
        return [lines.done[unit.group, unit.number] for unit in units]


class _Block:
    """Units that are scored together: permuted explanations and inactive excerpts come from the same block."""

    def __init__(self, scored: Scored, units: Sequence[Unit], seed: int, bootstrap: Bootstrap) -> None:
        self.scored, self.units, self.seed, self.bootstrap = scored, units, seed, bootstrap
        self.material: list[Material] = []
        self.partner = _partners(len(units), seed)

    @property
    def at_once(self) -> int:
        by = self.scored.judge if self.scored.judge is not None else self.scored.embedder
        assert by is not None
        return by.at_once

    def used(self, unit: Unit) -> frozenset[tuple[str, str]]:
        """Documents that the explainer of a unit saw."""
        line = self.scored.explanations.get((unit.group, unit.number))
        return frozenset() if line is None else frozenset((one.label, one.document) for one in line.contexts)

    def text(self, number: int) -> str:
        """The explanation of a unit; "" if it has none."""
        unit = self.units[number]
        line = self.scored.explanations.get((unit.group, unit.number))
        return "" if line is None else line.explanation

    def lines(self, numbers: Sequence[int]) -> list[Score]:
        """The lines of some units of the block, in their order."""
        if self.scored.scorer == "intruder":
            return self._intruders(numbers)
        some = [n for n in numbers if self._enough(self.material[n])]
        texts = [[self.text(n), self.text(self.partner[n]), ""] for n in some]
        if self.scored.scorer == "embedding":
            found = iter(self._areas(some, texts))
        else:
            found = iter(self._accuracies(some, texts))
        return [
            self._line(n, next(found)) if self._enough(self.material[n]) else self._skipped(n, "too few contexts")
            for n in numbers
        ]

    def _enough(self, material: Material) -> bool:
        return min(len(material.active), len(material.inactive)) >= FEWEST

    def _accuracies(self, numbers: Sequence[int], texts: Sequence[list[str]]) -> list[list[Found]]:
        """Own, permuted and empty explanation of each unit."""
        assert self.scored.judge is not None
        questions = []
        for n, three in zip(numbers, texts, strict=True):
            items = self._shuffled(n)
            questions += [Question(text, items, self.scored.scorer == "fuzzing") for text in three]
        answers = self.scored.judge.accepted(questions)
        found = []
        for place, n in enumerate(numbers):
            active_X = [one.interval >= 0 for one in self._shuffled(n)]
            found.append([
                accuracy(
                    [one for one, active in zip(given, active_X, strict=True) if active],
                    [one for one, active in zip(given, active_X, strict=True) if not active],
                    self.bootstrap,
                )
                for given in answers[3 * place : 3 * place + 3]
            ])  # fmt: skip
        return found

    def _shuffled(self, number: int) -> list[Any]:
        material = self.material[number]
        items = [*material.active, *material.inactive]
        generator = np.random.default_rng([self.seed, self.units[number].group, self.units[number].number])
        return [items[n] for n in generator.permutation(len(items))]

    def _areas(self, numbers: Sequence[int], texts: Sequence[list[str]]) -> list[list[Found]]:
        assert self.scored.embedder is not None
        embed = self.scored.embedder
        items = [[*self.material[n].active, *self.material[n].inactive] for n in numbers]
        query_KD = embed.vectors([text for three in texts for text in three])
        item_KD = embed.vectors([one.text for few in items for one in few])
        found, begin = [], 0
        for place, few in enumerate(items):
            own_KD = item_KD[begin : begin + len(few)]
            begin += len(few)
            active = len(self.material[numbers[place]].active)
            found.append([_area(own_KD @ query_KD[3 * place + n], active, self.bootstrap) for n in range(3)])
        return found

    def _intruders(self, numbers: Sequence[int]) -> list[Score]:
        assert self.scored.judge is not None
        every = [
            sets_of(material, [self.seed, unit.group, unit.number])
            for material, unit in zip(self.material, self.units, strict=True)
        ]
        mixed = mixed_sets([sets for sets, _ in every], [places for _, places in every])
        asked = [one for n in numbers for one in [*every[n][0], *mixed[n]]]
        answers = iter(self.scored.judge.odd(asked))
        lines = []
        for n in numbers:
            sets, places = every[n]
            own = [next(answers) for _ in sets]
            control = [next(answers) for _ in mixed[n]]
            if not sets:
                lines.append(self._skipped(n, "too few contexts"))
                continue
            found = share_found(own, places, self.bootstrap)
            permuted = share_found(control, places, self.bootstrap).value if control else None
            chance = 1 / (OTHERS + 1)
            ends = found.ends(self.bootstrap) if len(sets) > 1 else None
            lines.append(self._score(n, found.value, ends, len(sets), found.failed, permuted, None, chance))
        return lines

    def _line(self, n: int, found: Sequence[Found]) -> Score:
        own, permuted, empty = found
        material = self.material[n]
        size = len(material.active) + len(material.inactive)
        line = self._score(
            n, own.value, own.ends(self.bootstrap), size, own.failed,
            permuted.value if len(self.units) > 1 else None, empty.value, 0.5,
        )  # fmt: skip
        at_rate = None
        if self.scored.scorer == "detection" and own.hits is not None and own.alarms is not None:
            at_rate = precision(own.hits, own.alarms, material.rate)
        changes = {"hits": own.hits, "alarms": own.alarms, "rate": material.rate, "precision": at_rate}
        return replace(line, **changes, explanation=self.text(n), explainer=self.scored.source.get("explainer"))

    def _skipped(self, n: int, reason: str) -> Score:
        line = self._score(n, None, None, 0, 0, None, None, 0.5)
        return replace(line, rate=self.material[n].rate, skipped=reason)

    def _score(
        self,
        n: int,
        value: float | None,
        ends: tuple[float, float] | None,
        size: int,
        failed: int,
        permuted: float | None,
        empty: float | None,
        chance: float,
    ) -> Score:
        unit, key = self.units[n], self.scored.key
        judge = str(key.get("judge") or key.get("embedder"))
        return Score(
            unit.group, unit.i, unit.j, unit.number, self.scored.scorer, judge, value, ends, size, failed, permuted,
            empty, chance,
        )  # fmt: skip


def _area(similar_X: NDArray[np.float64], active: int, bootstrap: Bootstrap) -> Found:
    return area(similar_X[:active], similar_X[active:], bootstrap)


def _partners(count: int, seed: int) -> list[int]:
    """For each unit another one, at random; each serves once. A single unit is its own partner."""
    order = np.random.default_rng([seed, count]).permutation(count)
    found = np.zeros(count, np.int64)
    found[order] = np.roll(order, 1)
    return found.tolist()
