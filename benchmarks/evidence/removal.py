"""What docs/evidence.md rests on: statistics, removal by threshold, random masks of equal mass, the dense twin."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from monet import ExpertMask, MonetForCausalLM
from monet.errors import CheckpointError
from monet.eval import neurons, stats
from monet.eval.ablate import measure
from monet.eval.bootstrap import Bootstrap
from monet.eval.conditions import random_like
from monet.eval.curve import CurveResult, evaluate_curve
from monet.eval.inputs import PreparedWindows
from monet.eval.loading import weights_digest
from monet.eval.losses import LossStore, WindowLosses
from monet.eval.results import RESULT_NAME, AblationResult
from monet.eval.rules import Rule, Top, assign
from monet.eval.selection import select_by
from monet.eval.verdicts import Measured, summarise
from monet.files import atomic_write_json


@dataclass(frozen=True)
class Plan:
    """What every measurement shares.

    Args:
        out: folder of everything that is kept, so that a killed command goes on.
        data: prepared text; experts are chosen on its split `identify`, and removals measured on `evaluate`.
        windows: of `seq_len` tokens, a domain.
        fractions: shares of all experts, for each domain; those of the curves.
        seeds: of the random masks.
        fraction: the one of the tables.
        batch_size: windows a forward.
    """

    out: Path
    data: Path
    windows: int
    fractions: Sequence[float]
    seeds: Sequence[int]
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
                for one in (None, mask, *(random_like(mask, seed) for seed in plan.seeds))
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
        random_seeds=plan.seeds, random_on="target", batch_size=plan.batch_size,
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
        random_seeds=plan.seeds, random_on="target", bootstrap=Bootstrap(), progress=True,
    )  # fmt: skip
    atomic_write_json(plan.out / name / RESULT_NAME, found.to_json())
    return found


def equal_mass(mask: ExpertMask, means_REE: Tensor, seed: int) -> ExpertMask:
    """Random experts of as much routing weight in every group as the mask removes, however many that takes.

    Args:
        mask: what is matched.
        means_REE: each expert's mean weight on the domain.
        seed: of the choice.
    """
    generator = torch.Generator().manual_seed(seed)
    keep_RN = torch.ones(mask.keep_REE.flatten(1).shape, dtype=torch.bool)
    for group, (removed_N, means_N) in enumerate(zip(mask.keep_REE.flatten(1) < 1, means_REE.flatten(1), strict=True)):
        order_N = torch.randperm(len(means_N), generator=generator)
        heavier_N = means_N[order_N].cumsum(0) > means_N[removed_N].sum()
        keep_RN[group, order_N[~heavier_N]] = False
    keep_REE = keep_RN.view_as(mask.keep_REE)
    return ExpertMask(keep_REE, {"made_by": "equal_mass", "seed": seed, "of": mask.provenance}, mask.fingerprint)


def against_equal_mass(
    model: MonetForCausalLM, masks: Mapping[str, ExpertMask], statistics: stats.ExpertStatistics, plan: Plan
) -> AblationResult:
    """Each domain's mask beside random ones of equal mass there; its own losses are those that the curve kept."""
    store, data = LossStore(plan.losses, model, plan.batch_size), plan.evaluate
    means = dict(zip(statistics.labels, statistics.means(), strict=True))
    losses: dict[Measured, WindowLosses] = {}
    for label, mask in tqdm(masks.items(), desc="random masks of equal mass", unit="domain"):
        losses[label, None] = store.losses(mask, data, label, lambda _: None)
        for seed in plan.seeds:
            random = equal_mass(mask, means[label], seed)
            losses[label, seed] = store.losses(
                random, data.only([label]), f"equal mass {seed} like {label}", lambda _: None
            )
    whole = store.losses(None, data, "no mask", lambda _: None)
    return summarise(masks, data.labels, whole, losses.items(), Bootstrap(), {"random_seeds": list(plan.seeds)})


def top_neurons(means_CLF: Tensor, labels: Sequence[str], fraction: float) -> dict[str, neurons.NeuronMask]:
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
        "random_seeds": list(plan.seeds),
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
            top_neurons(means_CLF, data.labels, plan.fraction) if name == "top"
            else neurons.select_neurons(means_CLF, data.labels, 2.0, "first")
        )  # fmt: skip
        found[name] = neurons.ablate_neurons(
            model, masks, data, out=out, random_seeds=plan.seeds, batch_size=plan.batch_size, held_out=True
        )
    return found
