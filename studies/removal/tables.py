"""Tables of a study's page, computed only from its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.tables import markdown
from monet.eval.ablation.results import Verdict
from monet.eval.core.estimate import Estimate
from monet.eval.reporting.common import bracketed, signed
from studies.removal.results import Against, Arm, Domain, Model, Relearning, Times

MODELS = {"monet": "Monet", "llama": "LLaMA", "transcoder": "transcoder"}
KINDS = {"number": "equal number", "mass": "equal mass", "activity": "equal activity"}


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    return markdown(rows, dict.fromkeys(rows[0], "")).rstrip()


def _once(value: float | None) -> str:
    return "any" if value is None else f"{value:.1f}"


def times(found: Times | None) -> str:
    """For example "6.5 [4.8, 9.1]"; "any" if the other domains lose nothing, empty without a family."""
    if found is None:
        return ""
    return f"{_once(found.value)} [{_once(found.low)}, {_once(found.high)}]"


def passes(row: Domain) -> str:
    """Number of models in which the domain passes."""
    if len(row.seeds) == 1:
        return "yes" if row.passes else "no"
    return f"{row.passed} of {len(row.seeds)}"


def removal(rows: Sequence[Domain]) -> str:
    """Each domain, the other domains and random removals of equal number, with the verdict."""
    return _table([
        {
            "removed": row.name, "target": bracketed(row.target_delta, *row.target_interval),
            "others, most": f"{signed(row.others_max_delta, 3)} ({row.others_max_name})",
            "others, mean": bracketed(row.others_mean_delta, *row.others_mean_interval),
            "random": bracketed(row.random_delta, *row.random_interval),
            "p": f"{row.p:.3g}", "q": f"{row.q:.3g}", "passes": passes(row),
        }
        for row in rows
    ])  # fmt: skip


def reasons(rows: Sequence[Domain], models: Sequence[Model]) -> str:
    """Why domains do not pass, model by model; empty if all pass."""
    failing = [
        {"removed": row.name, "model": model.name, "why it does not pass": one.reason}
        for row in rows
        for one, model in zip(row.seeds, models, strict=True)
        if not one.passes
    ]
    return _table(failing) if failing else ""


def _family(row: Domain) -> dict[str, str]:
    mean, interval, most = row.family_mean_delta, row.family_mean_interval, row.family_max_delta
    if mean is None or interval is None or most is None:
        return {"family, mean": "no other", "family, most": ""}
    return {
        "family, mean": bracketed(mean, *interval),
        "family, most": f"{signed(most, 3)} ({row.family_max_name})",
    }


def families(rows: Sequence[Domain]) -> str:
    """Each domain, the other languages of its family, and the worst other domain of all."""
    return _table([
        {
            "removed": row.name, "target": signed(row.target_delta, 3),
            **_family(row),
            "times family's mean": times(row.times_family), "times worst other": times(row.times_worst),
        }
        for row in rows
    ])  # fmt: skip


def _against(found: Against) -> str:
    return f"{bracketed(found.random_delta, *found.random_interval)}, p {found.p:.3g}"


def controls(rows: Sequence[Domain]) -> str:
    """Each domain and random removals of all kinds, on the windows that these were measured on."""

    def mass(found: Against) -> str:
        return "" if found.reached is None else f"{found.reached:.2f}"

    return _table([
        {
            "removed": row.name, "target": bracketed(row.against["number"].target_delta,
                                                     *row.against["number"].target_interval),
            **{
                key: value
                for kind, title in KINDS.items()
                for key, value in ((title, _against(row.against[kind])), (f"{kind}: mass", mass(row.against[kind])))
            },
        }
        for row in rows
    ])  # fmt: skip


def matrix(names: Sequence[str], cells: Sequence[Sequence[float]]) -> str:
    """Increase of every domain's loss under every removal."""
    return _table([
        {"removed": name, **{other: signed(value, 3) for other, value in zip(names, row, strict=True)}}
        for name, row in zip(names, cells, strict=True)
    ])  # fmt: skip


def spread(rows: Sequence[Domain]) -> str:
    """The target's increase in each model, and its spread over seeds and over text."""
    found = [(row, row.spread["target_delta"]) for row in rows]
    return _table([
        {
            "removed": row.name, "in each model": ", ".join(signed(one.target_delta, 3) for one in row.seeds),
            "mean": bracketed(of.mean, of.low, of.high), "sd over seeds": f"{of.sd_seeds:.3f}",
            "sd over text": "" if of.sd_text is None else f"{of.sd_text:.3f}",
        }
        for row, of in found
    ])  # fmt: skip


def shares(models: Sequence[Model]) -> str:
    """Which domains hold at each share on `validation`."""
    return _table([
        {
            "model": model.name, "share": f"{one.share:.1%}", "taken": "yes" if one.share == model.share else "",
            "hold": f"{len(one.holds)} of {len(one.domains)}",
            "do not hold": ", ".join(name for name in one.domains if name not in one.holds),
        }
        for model in models for one in model.shares
    ])  # fmt: skip


def trials(models: Sequence[Model]) -> str:
    """Target, worst other domain and worst random removal of each domain at each share, mean over the models."""
    rows = []
    for name in models[0].shares[0].domains:
        row = {"removed": name}
        for place, share in enumerate(models[0].shares):
            found = [model.shares[place].domains[name] for model in models]
            means = [
                sum(getattr(one, key) for one in found) / len(found)
                for key in ("target_delta", "others_max_delta", "random_max_delta")
            ]
            row[f"{share.share:.1%}"] = " / ".join(signed(mean, 3) for mean in means)
        rows.append(row)
    return _table(rows)


def groups(rows: Sequence[Domain]) -> str:
    """How many units each domain loses, by group."""
    return _table([
        {
            "domain": row.name, "removed": f"{row.removed:.0f} ({row.share:.1%})",
            **{f"group {place}": f"{count:.0f}" for place, count in enumerate(row.removed_per_group)},
        }
        for row in rows
    ])  # fmt: skip


def side_by_side(*kinds: Sequence[Domain]) -> str:
    """Monets, dense models and, if given, transcoders with the same columns, one row each under the other."""

    def cells(row: Domain, model: str) -> dict[str, str]:
        return {
            "removed": row.name, "from": model, "share": f"{row.share:.1%}",
            "target": bracketed(row.target_delta, *row.target_interval),
            "others, most": f"{signed(row.others_max_delta, 3)} ({row.others_max_name})",
            "times family's mean": times(row.times_family), "times worst other": times(row.times_worst),
            **{title: f"{signed(row.against[kind].random_delta, 3)}, p {row.against[kind].p:.3g}"
               for kind, title in KINDS.items()},
            "q": f"{row.q:.3g}", "passes": passes(row),
        }  # fmt: skip

    return _table([cells(row, model) for rows in zip(*kinds, strict=True)
                   for row, model in zip(rows, MODELS.values(), strict=False)])  # fmt: skip


def relearning(found: Sequence[Relearning]) -> str:
    """Cost of each removal at first and after training, and the recovered share of the first cost."""

    def stage(arm: Arm) -> dict[str, str]:
        cells = {"before": estimate(arm.stages[0].cost)}
        for one in arm.stages[1:]:
            returned = "" if one.returned is None else f", returned {estimate(one.returned, _percent)}"
            cells[f"after {one.step} steps"] = estimate(one.cost) + returned
        return cells

    return _table([
        {
            "removed": one.name, "from": MODELS[one.kind],
            "units": f"{ {'own': 'its own', 'random': 'random, equally costly'}[arm.name] }, {arm.removed:,.0f}",
            **stage(arm),
        }
        for one in found for arm in one.arms
    ])  # fmt: skip


def _percent(value: float) -> str:
    return f"{value:.0%}"


def estimate(found: Estimate, form: Callable[[float], str] = lambda value: signed(value, 3)) -> str:
    """A value with its interval, if it has one."""
    if found.low is None or found.high is None:
        return form(found.value)
    return f"{form(found.value)} [{form(found.low)}, {form(found.high)}]"


def verdicts(found: Sequence[Verdict]) -> str:
    """The product's own verdicts."""
    return _table([
        {
            "removed": one.name, "units": f"{one.removed:,} ({one.share:.1%})",
            "target": bracketed(one.target_delta, *one.target_interval),
            "others, most": f"{signed(one.others_max_delta, 3)} ({one.others_max_name})",
            "random": bracketed(one.random_delta, *one.random_interval),
            "p": f"{one.p:.3g}", "q": f"{one.q:.3g}", "passes": "yes" if one.passes else "no",
        }
        for one in found
    ])  # fmt: skip


def losses(models: Sequence[Model]) -> str:
    """The whole models' losses on the text evaluated on."""
    return _table([
        {
            "domain": first.name,
            **{model.name: f"{model.losses[place].loss.value:.3f} [{model.losses[place].loss.low:.3f}, "
                           f"{model.losses[place].loss.high:.3f}]" for model in models},
            "windows": f"{first.windows:,}", "documents": f"{first.documents:,}",
            "sources": "" if first.sources is None else f"{first.sources:,}",
        }
        for place, first in enumerate(models[0].losses)
    ])  # fmt: skip


def trained(models: Sequence[Model]) -> str:
    """The models."""
    return _table([
        {
            "model": one.name, "kind": MODELS[one.kind],
            "parameters": f"{one.parameters:,}", "units": f"{one.units:,} {one.unit}s",
            "steps": "" if one.step is None else f"{one.step:,}",
            "tokens": "" if one.tokens is None else f"{one.tokens:,}", "share removed": f"{one.share:.1%}",
        }
        for one in models
    ])  # fmt: skip
