"""What a model loses when experts are removed: mean next-token loss per domain before and after, with controls.

Every mask is set against random masks that remove as many experts of every routing group. Intervals are paired
bootstraps: documents of a domain are drawn again with replacement, the same draw before and after removal.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from monet.errors import ConfigError, DataError
from monet.eval.bootstrap import Bootstrap, interval, resample_means
from monet.eval.inputs import LabelledData, check_labels
from monet.eval.loading import DType, load_model, open_windows, provenance_now
from monet.eval.losses import LossStore, WindowLosses
from monet.eval.results import RESULT_NAME, AblationResult, Baseline, Estimate, Verdict
from monet.eval.selection import check_mask, load_masks
from monet.files import atomic_write_json
from monet.masks import ExpertMask

if TYPE_CHECKING:
    from monet.modeling_monet import MonetForCausalLM

# The mask of a label, or the random mask of that size and seed.
_Condition = tuple[str, int | None]


def _check_masks(model: MonetForCausalLM, masks: Mapping[str, ExpertMask], data: LabelledData) -> None:
    if not masks:
        raise DataError("no mask to evaluate; make masks with `monet select`")
    check_labels(list(masks), data.labels)
    if len(data.labels) < 2:
        raise DataError(
            f"the data have only {data.labels}; removal is judged against other domains, prepare two or more"
        )
    for label, mask in masks.items():
        check_mask(label, mask, model)


def random_like(mask: ExpertMask, seed: int) -> ExpertMask:
    """The mask's keep-weights at random places within each routing group: as many experts removed, as far removed."""
    generator = torch.Generator().manual_seed(seed)
    keep_RN = mask.keep_REE.flatten(1)
    shuffled_RN = torch.stack([row[torch.randperm(len(row), generator=generator)] for row in keep_RN])
    notes = {"made_by": "random_like", "seed": seed, "of": mask.provenance}
    return ExpertMask(shuffled_RN.view_as(mask.keep_REE), notes, mask.fingerprint)


def ablate(
    model: MonetForCausalLM,
    masks: Mapping[str, ExpertMask],
    data: LabelledData,
    *,
    out: str | os.PathLike[str],
    random_seeds: Sequence[int] = (0, 1, 2),
    random_on: Literal["all", "target"] = "all",
    bootstrap: Bootstrap | None = None,
    batch_size: int = 8,
    progress: bool = True,
) -> AblationResult:
    """Measure every domain before and after removing each label's experts, and after random removals of equal size.

    Losses of a mask are kept in `out` as soon as they are known; a second call with the same model, masks, data and
    settings reads them and gives the same numbers.

    Args:
        model: the whole model.
        masks: per label the mask that removes its experts (`monet.eval.selection.select`). One that removes nothing
            is reported with zeros and does not pass.
        data: text that the masks were not chosen on; holds every label of `masks`, and may hold more.
        out: folder for kept losses and result.json.
        random_seeds: one random mask a label and seed.
        random_on: measure random masks on all domains, or on their target only (cheaper by the number of domains).
        bootstrap: how intervals are made.
        batch_size: sequences a forward.
        progress: show a bar on standard error.

    Raises:
        DataError: a label missing in the data, one domain only, a domain with fewer than two documents.
        CheckpointError: a mask of another model or size.
        ConfigError: no or repeated random seeds.
        NonFiniteError: a NaN or infinite loss.
    """
    from tqdm.auto import tqdm

    bootstrap = bootstrap or Bootstrap()
    if not random_seeds or len(set(random_seeds)) != len(random_seeds):
        raise ConfigError(f"random_seeds must name at least one seed and none twice, got {list(random_seeds)}")
    _check_masks(model, masks, data)
    store = LossStore(Path(out) / "losses", model, batch_size)
    passes: dict[_Condition, tuple[ExpertMask, LabelledData]] = {}
    for label, mask in masks.items():
        if not mask.num_removed:
            continue
        passes[label, None] = (mask, data)
        control_data = data if random_on == "all" else data.only([label])
        for seed in random_seeds:
            passes[label, seed] = (random_like(mask, seed), control_data)

    losses: dict[_Condition, WindowLosses] = {}
    windows = data.num_windows + sum(part.num_windows for _, part in passes.values())
    with tqdm(total=windows, desc="no mask", unit="window", disable=not progress) as bar:
        whole = store.losses(None, data, "no mask", bar.update)
        for (label, seed), (mask, part) in passes.items():
            name = label if seed is None else f"random {seed} like {label}"
            bar.set_description(name)
            losses[label, seed] = store.losses(mask, part, name, bar.update)
    provenance = {
        **provenance_now(),
        "model_fingerprint": model.fingerprint(),
        "data_fingerprint": data.fingerprint,
        "data": data.description,
        "masks": {label: mask.provenance for label, mask in masks.items()},
        "random_seeds": list(random_seeds),
        "random_on": random_on,
        "bootstrap": dataclasses.asdict(bootstrap),
        "losses": store.settings,
    }
    result = _summarise(masks, data.labels, _resample(data.labels, whole, losses, bootstrap), provenance, bootstrap)
    atomic_write_json(Path(out) / RESULT_NAME, result.to_json())
    return result


@dataclass(frozen=True)
class _Resampled:
    """Losses under the bootstrap: of each domain's whole model, and differences to it for each condition."""

    baseline: list[Baseline]
    delta: dict[tuple[_Condition, str], float]
    draws: dict[tuple[_Condition, str], NDArray[np.float64]]


def _resample(
    domains: Sequence[str], whole: WindowLosses, losses: Mapping[_Condition, WindowLosses], bootstrap: Bootstrap
) -> _Resampled:
    """Draw each domain's documents again, the same draws for all masks; domains are drawn independently."""
    found = _Resampled([], {}, {})
    for number, domain in enumerate(domains):
        rows_W = whole.label_W == number
        unit_W = whole.document_W[rows_W] if bootstrap.unit == "document" else np.arange(rows_W.sum())
        unit_W = np.unique(unit_W, return_inverse=True)[1]
        num_units = int(unit_W.max(initial=-1)) + 1
        measured = {key: kept for key, kept in losses.items() if (kept.label_W == number).any()}
        sums_CW = [kept.loss_sum_W[kept.label_W == number] for kept in (whole, *measured.values())]
        sums_CU = np.stack([np.bincount(unit_W, sums_W, num_units) for sums_W in sums_CW]).astype(np.float64)
        tokens_U = np.bincount(unit_W, whole.tokens_W[rows_W], num_units)
        if num_units < 2:
            raise DataError(
                f"domain {domain!r} has {num_units} {bootstrap.unit}s to evaluate on and an interval needs two; "
                "add text to the evaluation split, or draw windows instead (--unit window)"
            )
        drawn = resample_means(sums_CU, tokens_U, bootstrap.resamples, [bootstrap.seed, number])
        loss = Estimate(float(drawn.mean_C[0]), *interval(drawn.draws_QC[:, 0], bootstrap.confidence))
        documents = len(np.unique(whole.document_W[rows_W]))
        found.baseline.append(
            Baseline(domain, loss, math.exp(loss.value), int(tokens_U.sum()), int(rows_W.sum()), documents)
        )
        for column, key in enumerate(measured, start=1):
            found.delta[key, domain] = float(drawn.mean_C[column] - drawn.mean_C[0])
            found.draws[key, domain] = drawn.draws_QC[:, column] - drawn.draws_QC[:, 0]
    return found


def _summarise(
    masks: Mapping[str, ExpertMask],
    domains: Sequence[str],
    found: _Resampled,
    provenance: dict[str, Any],
    bootstrap: Bootstrap,
) -> AblationResult:
    seeds: list[int] = provenance["random_seeds"]
    nothing = np.zeros(bootstrap.resamples)

    def estimate(label: str, domain: str) -> Estimate:
        key = ((label, None), domain)
        return Estimate(found.delta.get(key, 0.0), *interval(found.draws.get(key, nothing), bootstrap.confidence))

    def control(label: str, domain: str) -> Estimate | None:
        if not masks[label].num_removed:
            return Estimate(0.0, 0.0, 0.0)
        keys: list[tuple[_Condition, str]] = [((label, seed), domain) for seed in seeds]
        if keys[0] not in found.delta:
            return None
        one_of = np.random.default_rng([bootstrap.seed, len(seeds)]).integers(len(seeds), size=bootstrap.resamples)
        draws_QS = np.stack([found.draws[key] for key in keys], axis=1)
        draws_Q = draws_QS[np.arange(bootstrap.resamples), one_of]
        return Estimate(float(np.mean([found.delta[key] for key in keys])), *interval(draws_Q, bootstrap.confidence))

    def verdict(label: str) -> Verdict:
        mask = masks[label]
        target, random = estimate(label, label), control(label, label)
        assert random is not None, "random masks are always measured on their target"
        others = {domain: estimate(label, domain).value for domain in domains if domain != label}
        others_max_name = max(others, key=others.__getitem__)
        others_draws_Q = np.mean([found.draws.get(((label, None), domain), nothing) for domain in others], axis=0)
        reasons = []
        if not mask.num_removed:
            reasons.append("no expert belongs to it")
        elif target.value <= others[others_max_name]:
            reasons.append(f"{others_max_name} lost as much or more")
        if mask.num_removed and target.low <= random.high:
            reasons.append("within the interval of random masks")
        return Verdict(
            name=label,
            target_delta=target.value,
            target_interval=(target.low, target.high),
            others_max_delta=others[others_max_name],
            others_max_name=others_max_name,
            others_mean_delta=float(np.mean(list(others.values()))),
            others_mean_interval=interval(others_draws_Q, bootstrap.confidence),
            random_delta=random.value,
            random_interval=(random.low, random.high),
            random_per_seed=[found.delta.get(((label, seed), label), 0.0) for seed in seeds],
            experts=mask.num_removed,
            experts_per_group=mask.removed_per_group,
            share=mask.num_removed / mask.num_experts,
            passes=not reasons,
            reason="; ".join(reasons),
        )

    delta = [[estimate(label, domain) for domain in domains] for label in masks]
    return AblationResult(
        domains=[verdict(label) for label in masks],
        evaluated=found.baseline,
        delta=delta,
        perplexity=[
            [math.exp(before.loss.value + cell.value) for before, cell in zip(found.baseline, row, strict=True)]
            for row in delta
        ],
        random=[[control(label, domain) for domain in domains] for label in masks],
        provenance=provenance,
    )


def run(
    model: str,
    data: Path,
    masks: Path,
    out: Path,
    split: str = "evaluate",
    seq_len: int | None = None,
    max_windows: int | None = None,
    random_seeds: list[int] = [0, 1, 2],  # noqa: B006 - shown in --help, never changed
    random_on: Literal["all", "target"] = "all",
    resamples: int = 2000,
    confidence: float = 0.95,
    unit: Literal["document", "window"] = "document",
    seed: int = 0,
    batch_size: int = 8,
    device: str = "auto",
    dtype: DType = "auto",
    progress: bool = True,
) -> None:
    """Measure what every domain loses when each domain's experts are removed, beside random removals of equal size.

    Prints one verdict a domain and writes OUT/result.json, which `monet report` turns into tables and a heat map. What
    is finished is kept in OUT/losses, so the same command goes on after a kill.

    Args:
        model: Hugging Face folder or name of the model that the masks were made for.
        data: folder of `monet data prepare`, made with the model's tokenizer.
        masks: folder of `monet select`.
        out: folder for result.json and kept losses.
        split: split of DATA to evaluate on; choose masks on another.
        seq_len: tokens a window; without it the most the model was made for.
        max_windows: windows a domain, evenly spread over its text; without it all.
        random_seeds: one random mask per domain and seed, of as many experts of every routing group.
        random_on: measure random masks on all domains, or on their target only, which is cheaper.
        resamples: bootstrap draws an interval, at least 1000.
        confidence: share of the draws inside an interval.
        unit: what is drawn again: documents (windows that begin in one document stay together) or windows.
        seed: of the draws.
        batch_size: windows a forward.
        device: cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.
        dtype: precision of the weights; auto keeps that of the files.
        progress: show a bar on standard error.

    Raises:
        CheckpointError: no such model, or masks of another model.
        ConfigError: an option out of range.
        DataError: no such split, a domain of the masks missing in it, or another tokenizer's data.
        NonFiniteError: a NaN or infinite loss; names mask, domain and window.
    """
    from monet.eval.report import print_result

    bootstrap = Bootstrap(resamples=resamples, confidence=confidence, unit=unit, seed=seed)
    loaded = load_model(model, device, dtype)
    windows = open_windows(data, split, loaded, seq_len, max_windows)
    result = ablate(
        loaded,
        load_masks(masks, model=loaded),
        windows,
        out=out,
        random_seeds=random_seeds,
        random_on=random_on,
        bootstrap=bootstrap,
        batch_size=batch_size,
        progress=progress,
    )
    print_result(result)
    print(f"result: {Path(out) / RESULT_NAME}")
