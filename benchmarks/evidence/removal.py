"""What docs/evidence.md rests on: statistics, removal by threshold, random masks of equal mass, the dense twin."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from monet import ExpertMask, MonetForCausalLM
from monet.errors import CheckpointError
from monet.eval import neurons, stats
from monet.eval.ablate import ablate, measure
from monet.eval.bootstrap import Bootstrap
from monet.eval.core.controls import Controls
from monet.eval.core.results import RESULT_NAME
from monet.eval.core.weights import weights_of
from monet.eval.curve import CurveResult, evaluate_curve
from monet.eval.inputs import PreparedWindows
from monet.eval.loading import weights_digest
from monet.eval.losses import LossStore
from monet.eval.results import AblationResult
from monet.eval.rules import Rule, Top, assign
from monet.eval.selection import select_by

# Controls that a share is settled with; those that it is judged by are drawn afresh for another text.
SETTLING = 3


@dataclass(frozen=True)
class Plan:
    """What every measurement shares.

    Args:
        out: folder of everything that is kept, so that a killed command goes on.
        data: prepared text; experts are chosen on its split `identify`, and removals measured on `evaluate`.
        windows: of `seq_len` tokens, a domain.
        fractions: shares of all experts, for each domain; those of the curves.
        controls: random controls of every removal that is judged.
        fraction: the one of the tables.
        batch_size: windows a forward.
    """

    out: Path
    data: Path
    windows: int
    fractions: Sequence[float]
    controls: Controls
    fraction: float = 0.0
    batch_size: int = 8
    seq_len: int = 256

    @property
    def identify(self) -> PreparedWindows:
        return PreparedWindows(self.data, "identify", self.seq_len)

    @property
    def evaluate(self) -> PreparedWindows:
        return PreparedWindows(self.data, "evaluate", self.seq_len, self.windows)

    @property
    def rule(self) -> Top:
        """The experts whose firing tells most about the domain; the same number for each."""
        return Top(fraction=self.fraction, by="mutual_information")

    @property
    def losses(self) -> Path:
        """Where `evaluate_curve` keeps losses, so that every other measurement finds its own among them."""
        return self.out / "curve" / "losses"


def statistics_of(model: MonetForCausalLM, plan: Plan) -> stats.ExpertStatistics:
    """Routing statistics of the whole split `identify`, read from `out` where they are those of this model and text."""
    path, data = plan.out / "statistics.safetensors", plan.identify
    if path.exists():
        try:
            kept = stats.ExpertStatistics.load(path, model=model)
            if [part["data_fingerprint"] for part in kept.provenance["parts"]] == [data.fingerprint]:
                return kept
        except CheckpointError:
            pass
    found = stats.collect(model, data, batch_size=plan.batch_size, wanted=stats.Wanted(firing=True))
    found.save(path)
    return found


def times_random(
    model: MonetForCausalLM, statistics: stats.ExpertStatistics, plan: Plan
) -> dict[float, dict[str, float]]:
    """How many times a random mask's increase each domain's own is, by share of experts, on the split `validation`."""
    store = LossStore(plan.losses, model, plan.batch_size)
    data = PreparedWindows(plan.data, "validation", plan.seq_len, plan.windows)
    found: dict[float, dict[str, float]] = {}
    for fraction in tqdm(plan.fractions, desc="shares of experts", unit="share"):
        found[fraction] = {}
        for label, mask in select_by(statistics, plan.rule.at(fraction)).items():
            part = data.only([label])
            whole, own, *others = (
                store.losses(one, part, label, lambda _: None).loss_sum_W.sum()
                for one in (
                    None,
                    mask,
                    *(plan.controls.draw(mask, n, label, data.fingerprint) for n in range(SETTLING)),
                )
            )
            random = np.mean(others) - whole
            found[fraction][label] = float((own - whole) / random) if random > 0 else math.inf
    return found


def settled(times: Mapping[float, Mapping[str, float]], least: float) -> float:
    """The largest share at which every domain's increase is at least so many times a random mask's; else the best."""
    lowest = {fraction: min(by_label.values()) for fraction, by_label in times.items()}
    enough = [fraction for fraction, found in lowest.items() if found >= least]
    return max(enough) if enough else max(lowest, key=lowest.__getitem__)


def curve_of(model: MonetForCausalLM, statistics: stats.ExpertStatistics, plan: Plan) -> CurveResult:
    """Every domain's removal at every fraction, beside random masks of as many experts on the domain itself."""
    result = evaluate_curve(
        model, statistics, plan.rule, plan.fractions, plan.evaluate, out=plan.out / "curve",
        controls=plan.controls, control_on="target", batch_size=plan.batch_size,
    )  # fmt: skip
    assert result is not None, "only a part gives none"
    return result


def removal_of(
    model: MonetForCausalLM,
    statistics: stats.ExpertStatistics,
    rule: Rule,
    plan: Plan,
    name: str,
    labels: Sequence[str] | None = None,
) -> AblationResult:
    """The matrix of one rule's masks, or of some; what the curve measured is taken from there."""
    masks = {label: mask for label, mask in select_by(statistics, rule).items() if labels is None or label in labels}
    found = measure(
        LossStore(plan.losses, model, plan.batch_size), masks, plan.evaluate,
        controls=plan.controls, control_on="target", bootstrap=Bootstrap(), progress=True,
    )  # fmt: skip
    found.save(plan.out / name)
    return found


def against_equal_mass(
    model: MonetForCausalLM, masks: Mapping[str, ExpertMask], statistics: stats.ExpertStatistics, plan: Plan
) -> AblationResult:
    """Each domain's mask beside controls of equal mass there; its own losses are those that the curve kept."""
    weights = weights_of(statistics, "mass")
    return measure(
        LossStore(plan.losses, model, plan.batch_size), masks, plan.evaluate,
        controls=replace(plan.controls, kind="mass", weights=weights), control_on="target", bootstrap=Bootstrap(),
        progress=True,
    )  # fmt: skip


def top_neurons(
    means_CLF: Tensor, labels: Sequence[str], fraction: float, text: Mapping[str, Any] | None = None
) -> dict[str, neurons.NeuronMask]:
    """So many neurons for each label, of those most active for it: the ones furthest above the next label."""
    owner_LF = assign(means_CLF, 1.0)
    highest_2LF = means_CLF.topk(2, dim=0).values
    lead_LF = highest_2LF[0] - highest_2LF[1]
    masks = {}
    for index, label in enumerate(labels):
        rank_N = torch.where(owner_LF == index, lead_LF, -torch.inf).flatten()
        chosen_N = rank_N.topk(int(fraction * rank_N.numel())).indices
        keep_N = torch.ones(rank_N.numel(), dtype=torch.bool)
        keep_N[chosen_N[rank_N[chosen_N] > -torch.inf]] = False
        notes = {"made_by": "top_neurons", "fraction": fraction, "label": label}
        if text is not None:
            notes["statistics"] = {"parts": [dict(text)]}
        masks[label] = neurons.NeuronMask(keep_N.view_as(owner_LF), notes)
    return masks


def dense_of(folder: str, plan: Plan) -> dict[str, AblationResult]:
    """The dense twin without neurons of each domain, on the same text and beside as many random masks.

    Returns:
        first: neurons of the first layer by the ratio of 2, as in the paper; top: of all layers, as large a share as
        the Monet's experts, by lead in activity.
    """
    model: Any = neurons.load_llama(folder, "auto", "auto")
    data = plan.evaluate
    key = {
        "model_fingerprint": weights_digest(model)[:16], "data_fingerprint": data.fingerprint,
        "controls": {**plan.controls.settings(), "on": "target"},
    }  # fmt: skip
    found: dict[str, AblationResult] = {}
    means_CLF: Tensor | None = None
    for name in ("first", "top"):
        out = plan.out / (f"dense-top-{plan.fraction:g}" if name == "top" else f"dense-{name}")
        if (out / RESULT_NAME).exists():
            found[name] = AblationResult.load(out)
            if all(found[name].provenance[part] == value for part, value in key.items()):
                continue
        if means_CLF is None:
            means_CLF = neurons.activities(model, plan.identify, batch_size=plan.batch_size)
        masks = (
            top_neurons(means_CLF, data.labels, plan.fraction, plan.identify.description) if name == "top"
            else neurons.select_neurons(means_CLF, data.labels, 2.0, "first", plan.identify.description)
        )  # fmt: skip
        measured = ablate(model, masks, data, out=out, controls=plan.controls, batch_size=plan.batch_size)
        assert measured is not None, "only a part gives none"
        found[name] = measured
    return found
