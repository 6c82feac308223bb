"""Results of several training seeds and models as one result: the spread over seeds beside the spread over text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from monet.errors import ConfigError, DataError
from monet.eval.core.effects import Effect, Effects
from monet.eval.core.estimate import Estimate
from monet.eval.core.results import Result
from monet.eval.core.seeds import SeedSpread, over_seeds, sd_of_interval
from monet.eval.loading import provenance_now
from monet.eval.model_origin import ModelOrigin, Training

if TYPE_CHECKING:
    pass

# What a run's part of the provenance takes over from its result.
_KEPT = ("date", "versions", "model_fingerprint", "model_origin", "held_out", "controls", "bootstrap")


@dataclass(frozen=True)
class Run:
    """One result.

    Args:
        name: of the result, for example "seed1".
        model_fingerprint: of its model.
        origin: what is recorded of the model; None in results that do not record it.
        held_out: whether its masks were chosen on other text; None if that is not recorded.
    """

    name: str
    model_fingerprint: str
    origin: ModelOrigin | None
    held_out: bool | None

    @property
    def training(self) -> Training:
        """What is recorded of the model's training."""
        return Training() if self.origin is None else self.origin.training


@dataclass(frozen=True)
class MaskOverSeeds:
    """One row: what the mask of one name did in each run of a group.

    Args:
        name: of the row; see `monet.eval.core.effects.Effect`.
        effects: by run; a run that lacks the row is missing.
        target, others_mean, random: the effects' numbers over the runs that have them; None below two.
        passed: runs whose mask passes; None in a suite without a verdict.
    """

    name: str
    effects: dict[str, Effect]
    target: SeedSpread | None
    others_mean: SeedSpread | None
    random: SeedSpread | None
    passed: int | None


@dataclass(frozen=True)
class Group:
    """Runs whose models differ in their training seed only.

    Args:
        name: of the group.
        removed: the unit that was removed, for example "expert".
        runs: in the order of their seeds.
        masks: the rows.
    """

    name: str
    removed: str
    runs: list[Run]
    masks: list[MaskOverSeeds]


@dataclass(frozen=True)
class SeedsResult(Result):
    """Several results of one kind.

    Args:
        quantity, unit: what changed, in words, and the unit of every number.
        confidence: of every interval, over text and over seeds.
        groups: by name, in alphabetical order.
        cautions: what a reader must not miss, in sentences.
        provenance: date, versions, what all results were measured on, and where each comes from.
    """

    FORMAT: ClassVar[str] = "monet-seeds/1"
    COMMAND: ClassVar[str] = "monet report --result A B"

    quantity: str
    unit: str
    confidence: float
    groups: list[Group]
    cautions: list[str]
    provenance: dict[str, Any]

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        return "; ".join(_in_words(group) for group in self.groups)


def compare(results: Mapping[str, Result], groups: Sequence[str] | None = None) -> SeedsResult:
    """Put several results side by side. Their order does not matter.

    Results are one group if their models agree in architecture, configuration, training text and step, and if the same
    kind of unit was removed.

    Args:
        results: by name, all of one kind and measured on the same text.
        groups: one name for each result, in their order, in place of that rule.

    Raises:
        ConfigError: results of several kinds, or of a kind without a row a mask; a number of group names that is not
            that of the results; a result that does not record its model's configuration, without `groups`.
        DataError: results that were measured on other text, or two of one model in a group.
    """
    if groups is not None and len(groups) != len(results):
        raise ConfigError(f"{len(groups)} names of groups for {len(results)} results; give one name for each result")
    first, *others = results
    for other in others:
        if type(results[other]) is not type(results[first]):
            kinds = f"{first} holds {results[first].FORMAT}, {other} holds {results[other].FORMAT}"
            raise ConfigError(f"the results are of several kinds: {kinds}; give results of one kind")
    found = {name: result.effects() for name, result in results.items()}
    for other in others:
        _refuse_other_text(first, found[first], other, found[other])
    runs = {name: _run(name, result, found[name]) for name, result in results.items()}
    members: dict[str, list[Run]] = {}
    for run, group in zip(runs.values(), groups or _group_names(runs, found), strict=True):
        members.setdefault(group, []).append(run)
    made = [_group(name, members[name], found) for name in sorted(members)]
    return SeedsResult(
        found[first].quantity,
        found[first].unit,
        found[first].confidence,
        made,
        [*(words for group in made for words in _cautions(group)), *_unlike_settings(results)],
        {
            **provenance_now(),
            "kind": results[first].FORMAT,
            "measured_on": found[first].text,
            "results": {
                run.name: {key: value for key, value in _provenance(results[run.name]).items() if key in _KEPT}
                for group in made
                for run in group.runs
            },
        },
    )


def _provenance(result: Result) -> dict[str, Any]:
    return getattr(result, "provenance")  # noqa: B009 - every result that has effects has it


def _refuse_other_text(first: str, one: Effects, other: str, two: Effects) -> None:
    """Two results whose numbers differ by more than the model and its masks are not compared."""
    before, after = (_flat({"quantity": x.quantity, "confidence": x.confidence, **x.text}) for x in (one, two))
    unlike = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    if unlike:
        pairs = "; ".join(f"{key}: {_short(before.get(key))} and {_short(after.get(key))}" for key in unlike[:3])
        raise DataError(
            f"{first} and {other} were not measured on the same text in the same way ({pairs}), so their spread would "
            "not be one over seeds; measure both models on the same text with the same options"
        )


def _flat(content: Any, name: str = "") -> dict[str, Any]:
    """Values inside mappings and lists by a name that holds the way to them."""
    if not isinstance(content, (dict, list)) or not content:
        return {name: content}
    entries = content.items() if isinstance(content, dict) else enumerate(content)
    return {
        way: value
        for key, inner in entries
        for way, value in _flat(inner, f"{name}, {key}" if name else str(key)).items()
    }


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else text[:12] + "..."


def _run(name: str, result: Result, effects: Effects) -> Run:
    provenance = _provenance(result)
    origin = provenance.get("model_origin")
    return Run(
        name,
        str(provenance["model_fingerprint"]),
        None if origin is None else msgspec.convert(origin, ModelOrigin),
        effects.held_out,
    )


def _group_names(runs: Mapping[str, Run], found: Mapping[str, Effects]) -> list[str]:
    """A group's name for each run: its architecture, and whatever else tells it from others of that architecture."""
    keys: list[dict[str, str]] = []
    for name, run in runs.items():
        if run.origin is None:
            raise ConfigError(
                f"{name} does not record its model's configuration, so it is open which results differ in their seed "
                "only; measure it again, or name the groups with --group, one name for each result"
            )
        keys.append({
            "": run.origin.architecture,
            "removed": f"{found[name].removed}s",
            "configuration": run.origin.config_digest[:8],
            "training text": str(run.training.data_fingerprint)[:8],
            "step": str(run.training.step),
        })  # fmt: skip
    names = []
    for key in keys:
        alike = [other for other in keys if other[""] == key[""]]
        more = [f"{what} {value}" for what, value in key.items() if len({other[what] for other in alike}) > 1]
        names.append(", ".join([key[""], *more]))
    return names


def _group(name: str, runs: Sequence[Run], found: Mapping[str, Effects]) -> Group:
    by_seed = sorted(runs, key=lambda run: (_number(run.training.seed), _number(run.training.data_seed), run.name))
    models: dict[str, str] = {}
    for run in by_seed:
        if (same := models.setdefault(run.model_fingerprint, run.name)) != run.name:
            raise DataError(
                f"{same} and {run.name} are results of one model (fingerprint {run.model_fingerprint}); two results of "
                "one model are not two seeds: leave one out, or name two groups with --group"
            )
    removed = {found[run.name].removed for run in runs}
    if len(removed) > 1:
        units = " and ".join(f"{unit}s" for unit in sorted(removed))
        raise ConfigError(f"group {name!r} has results about {units}; name a group for each")
    effects = {run.name: {row.name: row for row in found[run.name].rows} for run in by_seed}
    rows = dict.fromkeys(row for of_run in effects.values() for row in of_run)
    confidence = found[runs[0].name].confidence
    masks = [
        _mask(row, {run: of_run[row] for run, of_run in effects.items() if row in of_run}, confidence) for row in rows
    ]
    return Group(name, removed.pop(), by_seed, masks)


def _number(seed: int | None) -> tuple[bool, int]:
    """Sorts what is not recorded to the end."""
    return seed is None, seed or 0


def _mask(name: str, effects: dict[str, Effect], confidence: float) -> MaskOverSeeds:
    rows = list(effects.values())
    verdicts = [row.passes for row in rows if row.passes is not None]
    return MaskOverSeeds(
        name,
        effects,
        _spread([row.target for row in rows], confidence),
        _spread([row.others_mean for row in rows], confidence),
        _spread([row.random for row in rows], confidence),
        sum(verdicts) if verdicts else None,
    )


def _spread(estimates: Sequence[Estimate | None], confidence: float) -> SeedSpread | None:
    """Over the runs that have the number; None below two."""
    known = [one for one in estimates if one is not None]
    if len(known) < 2:
        return None
    ends = [one.ends for one in known if one.low is not None and one.high is not None]
    sd = [sd_of_interval(low, high, confidence) for low, high in ends] if len(ends) == len(known) else None
    return over_seeds([one.value for one in known], sd, confidence)


def _cautions(group: Group) -> list[str]:
    """What limits the numbers of one group."""
    found, seeds = [], len(group.runs)
    if seeds == 1:
        found.append(f"{group.name}: one result, so nothing is known about the spread over seeds.")
    elif any(mask.target is not None and mask.target.few for mask in group.masks):
        found.append(
            f"{group.name}: {seeds} seeds. So few give wide intervals of the mean, and an uncertain standard deviation "
            "over seeds. Take five or more."
        )
    trained: dict[tuple[int | None, int | None], str] = {}
    for run in group.runs:
        key = (run.training.seed, run.training.data_seed)
        if key[0] is not None and (same := trained.setdefault(key, run.name)) != run.name:
            found.append(f"{group.name}: the models of {same} and {run.name} were trained with the same seeds.")
    if flattered := [run.name for run in group.runs if run.held_out is not True]:
        found.append(
            f"{group.name}: in {', '.join(flattered)} the masks were chosen on the text they are evaluated on, which "
            "flatters them, or it is not recorded where they were chosen."
        )
    return found


def _unlike_settings(results: Mapping[str, Result]) -> list[str]:
    """Settings that change p, q or the intervals, where results differ in them."""
    settings: dict[str, dict[str, list[str]]] = {}
    for name, result in results.items():
        provenance = _provenance(result)
        controls = f"{provenance['controls']['count']} of equal {provenance['controls']['kind']}"
        for key, value in {"random controls": controls, "intervals over": provenance["bootstrap"]["unit"]}.items():
            settings.setdefault(key, {}).setdefault(value, []).append(name)
    return [
        f"The results differ in their {key}: "
        + "; ".join(f"{value} in {', '.join(sorted(names))}" for value, names in sorted(values.items()))
        + "."
        for key, values in settings.items()
        if len(values) > 1
    ]


def _in_words(group: Group) -> str:
    seeds, masks = len(group.runs), len(group.masks)
    words = [f"{group.name}, {seeds} seed{'s' if seeds > 1 else ''}"]
    passed = [mask.passed for mask in group.masks if mask.passed is not None]
    if passed:
        words.append(f"{sum(n == seeds for n in passed)} of {masks} masks pass with every seed")
        words.append(f"{sum(n > 0 for n in passed)} with at least one")
    spreads = [mask.target for mask in group.masks if mask.target is not None]
    if spreads:
        more = sum(spread.larger == "seeds" for spread in spreads)
        words.append(f"the target's change spreads more over seeds than over text for {more} of {len(spreads)}")
    return f"{words[0]}: {', '.join(words[1:])}" if words[1:] else words[0]
