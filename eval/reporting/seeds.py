"""Combines results of several training seeds and models, to compare the spread over seeds with the spread over text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from monet.errors import CheckpointError, ConfigError, DataError
from monet.eval.core.effects import Effect, Effects
from monet.eval.core.estimate import Estimate
from monet.eval.core.loading import provenance_now
from monet.eval.core.model_origin import ModelOrigin, Training
from monet.eval.core.results import Result
from monet.eval.core.seeds import SeedSpread, over_seeds, sd_of_interval

if TYPE_CHECKING:
    pass

# Keys that a run's part of the provenance copies from its result.
_KEPT = ("date", "versions", "model_fingerprint", "model_origin", "held_out", "controls", "bootstrap")


@dataclass(frozen=True)
class Run:
    """One result of several.

    Args:
        name: name of the result, for example "seed1".
        model_fingerprint: fingerprint of its model.
        origin: record of the model's origin; None in results without such a record.
        held_out: whether its masks were chosen on held-out text; None if there is no record.
    """

    name: str
    model_fingerprint: str
    origin: ModelOrigin | None
    held_out: bool | None

    @property
    def training(self) -> Training:
        """Record of the model's training."""
        return Training() if self.origin is None else self.origin.training


@dataclass(frozen=True)
class MaskOverSeeds:
    """One row: the effect of the mask with one name in each run of a group.

    Args:
        name: name of the row; see `monet.eval.core.effects.Effect`.
        effects: effects by run; runs without the row are missing.
        target, others_mean, random: spread of the effects' numbers over the runs that have them; None below two runs.
        passed: number of runs whose mask passes; None in a suite without a verdict.
    """

    name: str
    effects: dict[str, Effect]
    target: SeedSpread | None
    others_mean: SeedSpread | None
    random: SeedSpread | None
    passed: int | None


@dataclass(frozen=True)
class Group:
    """Runs whose models differ only in their training seed.

    Args:
        name: name of the group.
        removed: the removed unit, for example "expert".
        runs: runs in the order of their seeds.
        masks: the rows, one per mask.
    """

    name: str
    removed: str
    runs: list[Run]
    masks: list[MaskOverSeeds]


@dataclass(frozen=True)
class SeedsResult(Result):
    """Several results of one kind.

    Args:
        quantity, unit: name of the quantity that changed, and the unit of every number.
        confidence: confidence level of every interval, over text and over seeds.
        groups: groups in alphabetical order of their names.
        cautions: sentences that a reader must not miss.
        provenance: date, versions, the text that all results were measured on, and the origin of each result.
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
        """A summary of the comparison."""
        return "; ".join(_in_words(group) for group in self.groups)


def compare(results: Mapping[str, Result], groups: Sequence[str] | None = None) -> SeedsResult:
    """Compare several results. Their order does not matter.

    Results form a group if their models agree in architecture, configuration, training text and step, and if the same
    kind of unit was removed.

    Args:
        results: results by name, all of one kind and measured on the same text.
        groups: one group name per result, in the same order; replaces this rule.

    Raises:
        ConfigError: results are of several kinds, or of a kind that has no row per mask. The number of group names is
            not the number of results. Without `groups`, a result does not record its model's configuration.
        DataError: results were measured on different text, or a group has two results of one model.
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
    """Refuse to compare two results if more than the model and its masks differ."""
    before, after = (_flat({"quantity": x.quantity, "confidence": x.confidence, **x.text}) for x in (one, two))
    unlike = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    if unlike:
        pairs = "; ".join(f"{key}: {_short(before.get(key))} and {_short(after.get(key))}" for key in unlike[:3])
        raise DataError(
            f"{first} and {other} were not measured on the same text in the same way ({pairs}), so their spread would "
            "not be one over seeds; measure both models on the same text with the same options"
        )


def _flat(content: Any, name: str = "") -> dict[str, Any]:
    """Values inside mappings and lists, by a name that holds the path to them."""
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
    try:
        told = None if origin is None else msgspec.convert(origin, ModelOrigin)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{name}: damaged provenance.model_origin: {error}") from None
    return Run(name, str(provenance["model_fingerprint"]), told, effects.held_out)


def _group_names(runs: Mapping[str, Run], found: Mapping[str, Effects]) -> list[str]:
    """A group name for each run: its architecture, and everything else that differs within the architecture."""
    keys: list[dict[str, str]] = []
    for name, run in runs.items():
        if run.origin is None:
            raise ConfigError(
                f"{name} does not record its model's configuration, so results that differ only in their seed cannot "
                "be found; measure it again, or name the groups with --group, one name for each result"
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
                f"{same} and {run.name} are results of one model (fingerprint {run.model_fingerprint}). Two results "
                "of one model are not two seeds: omit one of them, or name two groups with --group"
            )
    removed = {found[run.name].removed for run in runs}
    if len(removed) > 1:
        units = " and ".join(f"{unit}s" for unit in sorted(removed))
        raise ConfigError(
            f"group {name!r} has results about several units ({units}); name a group for each unit with --group"
        )
    effects = {run.name: {row.name: row for row in found[run.name].rows} for run in by_seed}
    rows = dict.fromkeys(row for of_run in effects.values() for row in of_run)
    confidence = found[runs[0].name].confidence
    masks = [
        _mask(row, {run: of_run[row] for run, of_run in effects.items() if row in of_run}, confidence) for row in rows
    ]
    return Group(name, removed.pop(), by_seed, masks)


def _number(seed: int | None) -> tuple[bool, int]:
    """Sort key that puts missing seeds at the end."""
    return seed is None, seed or 0


def _mask(name: str, effects: dict[str, Effect], confidence: float) -> MaskOverSeeds:
    rows = list(effects.values())
    verdicts = [row.passes for row in rows if row.passes is not None]
    return MaskOverSeeds(
        name,
        effects,
        _spread([row.target for row in rows], confidence),
        _spread([row.others_mean for row in rows], confidence),
        # the interval of random controls holds the spread over controls too, so it is not one over text
        _spread([row.random for row in rows], confidence, over_text=False),
        sum(verdicts) if verdicts else None,
    )


def _spread(estimates: Sequence[Estimate | None], confidence: float, *, over_text: bool = True) -> SeedSpread | None:
    """Spread over the runs that have the number; None below two runs."""
    known = [one for one in estimates if one is not None]
    if len(known) < 2:
        return None
    ends = [one.ends for one in known if one.low is not None and one.high is not None]
    sd = (
        [sd_of_interval(low, high, confidence) for low, high in ends] if over_text and len(ends) == len(known) else None
    )
    return over_seeds([one.value for one in known], sd, confidence)


def _cautions(group: Group) -> list[str]:
    """Limits of the numbers of one group."""
    found, seeds = [], len(group.runs)
    if seeds == 1:
        found.append(f"{group.name}: there is only one result, so the spread over seeds is unknown.")
    elif any(mask.target is not None and mask.target.few for mask in group.masks):
        found.append(
            f"{group.name}: {seeds} seeds are few. The intervals of the mean are wide, and the standard deviation "
            "over seeds is uncertain. Use five or more.",
        )
    trained: dict[tuple[int | None, int | None], str] = {}
    for run in group.runs:
        key = (run.training.seed, run.training.data_seed)
        if key[0] is not None and (same := trained.setdefault(key, run.name)) != run.name:
            found.append(f"{group.name}: the models of {same} and {run.name} were trained with the same seeds.")
    if flattered := [run.name for run in group.runs if run.held_out is not True]:
        found.append(
            f"{group.name}: in {', '.join(flattered)} the masks were chosen on the text they are evaluated on, which "
            "makes them look better than they are, or there is no record of that text.",
        )
    return found


def _unlike_settings(results: Mapping[str, Result]) -> list[str]:
    """Cautions about settings that change p, q or the intervals and differ between results."""
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
        words.append(
            f"the change of the target has a larger spread over seeds than over text for {more} of {len(spreads)}"
        )
    return f"{words[0]}: {', '.join(words[1:])}" if words[1:] else words[0]
