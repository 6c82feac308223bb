"""The parts of a language result that describe the masks, and a result that holds only losses on text."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from monet.eval.ablation.results import AblationResult
from monet.eval.attribution.statistics.prompt_hashes import judged_before, mask_notes
from monet.eval.core.intervention import Intervention, share, unit_of
from monet.eval.core.loading import provenance_now
from monet.eval.core.model_origin import about_model
from monet.eval.suites.code.results import CodeResult, MaskSize


def losses_only(
    model: Any,
    masks: Mapping[str, Intervention],
    perplexity: AblationResult,
    out: str | os.PathLike[str],
) -> CodeResult:
    """A result with only losses on text, without problems, completions and runtimes."""
    result = CodeResult(
        executed=False,
        ks=[],
        judged_k=None,
        languages={},
        unavailable={},
        conditions=[],
        verdicts=[],
        perplexity=perplexity,
        partial=["pass@k was not asked for (perplexity_only)"],
        provenance=provenance_of(model, masks),
        **about_masks(masks, []),
    )
    result.save(out)
    return result


def mask_sizes(masks: Mapping[str, Intervention]) -> list[MaskSize]:
    """Count the units that each mask removes."""
    return [MaskSize(label, one.num_removed, one.removed_per_group, share(one)) for label, one in masks.items()]


def about_masks(masks: Mapping[str, Intervention], problems: Sequence[str]) -> dict[str, Any]:
    """Fields of a result that depend only on the masks and on the text of the problems."""
    unit, group = unit_of(masks)
    seen = judged_before((mask.provenance for mask in masks.values()), problems)
    held_out = None if seen is None else not seen
    return {"unit": unit, "group": group, "masks": mask_sizes(masks), "held_out": held_out}


def provenance_of(model: Any, masks: Mapping[str, Intervention]) -> dict[str, Any]:
    """Provenance of a result: the model, the masks, versions and the date; JSON-able."""
    return {**provenance_now(), **about_model(model), "masks": mask_notes(masks)}
