"""Tables of facts and questions for docs/knowledge.md.

Values of several conversions are means over them, with the least and the most in brackets; p and q are the largest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from benchmarks.tables import markdown
from monet.eval.core.bootstrap import few
from monet.eval.core.estimate import Estimate
from monet.eval.reporting.common import NOTHING, estimated, signed
from studies.knowledge.results import AskedFacts, AskedQuestions
from studies.removal.tables import MODELS

AskedT = TypeVar("AskedT", AskedFacts, AskedQuestions)
POINTS = 100.0


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    return markdown(rows, dict.fromkeys(rows[0], "")).rstrip()


def _by_kind(asked: Sequence[AskedT]) -> dict[str, list[AskedT]]:
    """The models of each kind, by the name of the kind in tables."""
    found: dict[str, list[AskedT]] = {}
    for one in asked:
        found.setdefault(MODELS[one.kind], []).append(one)
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _over(found: Sequence[Estimate | None], digits: int = 3, scale: float = 1.0, sign: bool = True) -> str:
    """One value with its interval, or the mean of several with the least and the most."""
    known = [one for one in found if one is not None]
    if len(known) < len(found) or not known:
        return NOTHING
    if len(known) == 1:
        return estimated(known[0], digits, sign=sign, scale=scale)
    values = [scale * one.value for one in known]
    mean, least, most = (
        signed(value, digits) if sign else f"{value:.{digits}f}" for value in (_mean(values), min(values), max(values))
    )
    return f"{mean} ({least} to {most})"


def caution(asked: Sequence[AskedFacts]) -> str:
    """A caution that names targets with few facts; empty if none has."""
    first = asked[0]
    counts = dict(zip(first.names, first.facts, strict=True))
    return few({target: counts[target] for target in dict.fromkeys(one.target for one in first.removals)}, "fact")


def passing(asked: Sequence[AskedFacts]) -> str:
    """In how many removals of each kind of model the facts of the domain fall most, in words."""
    told = []
    for kind, models in _by_kind(asked).items():
        count = len(models[0].removals)
        passed = sum(all(one.passes for one in of) for of in zip(*(model.removals for model in models), strict=True))
        told.append(f"This holds for {passed} of {count} removals from {kind}.")
    return " ".join(told)


def facts(asked: Sequence[AskedFacts]) -> str:
    """Scores of the whole models by domain of facts."""
    first, kinds = asked[0], _by_kind(asked)
    rows = []
    for place, name in enumerate(first.domains):
        row = {"facts": name, "number": f"{first.facts[place]:,}"}
        for kind, models in kinds.items():
            row[f"log-odds, {kind}"] = _over([model.log_odds[place] for model in models])
            row[f"accuracy, {kind}"] = _over([model.accuracy[place] for model in models], sign=False)
        rows.append(row)
    return _table(rows)


def lost(asked: Sequence[AskedFacts]) -> str:
    """Each removal: the facts about the removed domain, the other facts, and random removals."""
    kinds = _by_kind(asked)
    rows = []
    for place, removal in enumerate(asked[0].removals):
        for kind, models in kinds.items():
            found = [model.removals[place] for model in models]
            passed = sum(one.passes for one in found)
            rows.append({
                "removed": removal.name, "from": kind, "facts": removal.target,
                "log-odds": _over([one.log_odds for one in found]),
                "accuracy, points": _over([one.accuracy for one in found], 1, POINTS),
                "others, mean": _over([one.others_mean for one in found]),
                "random": _over([one.random for one in found]),
                "p": f"{max(one.p for one in found):.3g}", "q": f"{max(one.q for one in found):.3g}",
                "passes": f"{passed} of {len(found)}" if len(found) > 1 else "yes" if passed else "no",
            })  # fmt: skip
    return _table(rows)


def matrix(asked: Sequence[AskedFacts], of_accuracy: bool = False) -> str:
    """Change by removed domain and domain of facts in the conversions: log-odds in nats, or accuracy in points."""
    models = next(iter(_by_kind(asked).values()))
    rows = []
    for place, removal in enumerate(models[0].removals):
        found = [model.removals[place] for model in models]
        changes = [[POINTS * value for value in one.accuracy_changes] if of_accuracy else one.changes for one in found]
        digits = 1 if of_accuracy else 3
        means = {
            name: signed(_mean([one[scope] for one in changes]), digits) for scope, name in enumerate(models[0].domains)
        }
        rows.append({"removed": removal.name, **means})
    return _table(rows)


def questions(asked: Sequence[AskedQuestions]) -> str:
    """Accuracy of the whole models, and its change under each removal in points."""
    kinds = _by_kind(asked)
    names = asked[0].names
    rows = [
        {
            "removed": "nothing (accuracy)", "from": kind,
            **{name: _over([model.accuracy[place] for model in models], 1, POINTS, sign=False)
               for place, name in enumerate(names)},
        }
        for kind, models in kinds.items()
    ]  # fmt: skip
    for number, removal in enumerate(asked[0].removals):
        for kind, models in kinds.items():
            found = [model.removals[number] for model in models]
            rows.append({
                "removed": removal.name, "from": kind,
                **{name: _over([one.changes[place] for one in found], 1, POINTS) for place, name in enumerate(names)},
                "mean": _over([one.average for one in found], 1, POINTS),
                "random": _over([one.random for one in found], 1, POINTS),
                "p": f"{max(one.p for one in found):.3g}",
            })  # fmt: skip
    return markdown(rows, dict.fromkeys(rows[-1], "")).rstrip()
