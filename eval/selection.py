"""Which experts belong to which label: the paper's skewness rule on routing statistics.

Expert (group, i, j) belongs to label D when its mean weight over D's tokens is at least `ratio` times its mean weight
over any other label's tokens (arXiv 2412.04139, section 5.1 and appendix D.1; the paper's ratio is 2). What the paper
leaves open is settled so:

* an expert whose mean is zero for every label was never seen active and belongs to nobody;
* one that is active for a single label (second highest mean zero) belongs to that label at every ratio;
* equal highest means belong to nobody, which matters only at ratio 1.

Everything else is a generalist and stays. Take the statistics from a split that is not evaluated on.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import torch
from torch import Tensor

from monet.errors import CheckpointError, ConfigError, DataError
from monet.eval.stats import ExpertStatistics
from monet.files import atomic_write_json, sha256_file
from monet.masks import ExpertMask

if TYPE_CHECKING:
    from monet.modeling_monet import MonetPreTrainedModel

SUMMARY_NAME = "summary.json"
NOBODY = -1


def check_ratio(ratio: float) -> None:
    """Refuse a ratio under which an expert could belong to two labels.

    Raises:
        ConfigError: not a finite number, or below 1.
    """
    if not math.isfinite(ratio) or ratio < 1.0:
        raise ConfigError(f"ratio must be a finite number of at least 1 (the paper's is 2), got {ratio}")


def assign(means_CREE: Tensor, ratio: float = 2.0) -> Tensor:
    """Label that every expert belongs to.

    Args:
        means_CREE: (labels, R, E, E), mean expert weight a token for each label, none negative.
        ratio: least ratio between an expert's highest and second highest mean.

    Returns:
        owner_REE, int64: index of the label, or -1 where the expert belongs to nobody.

    Raises:
        ConfigError: `ratio` below 1 or not finite.
        DataError: fewer than two labels; a single one has nothing to be compared with.
    """
    check_ratio(ratio)
    if means_CREE.shape[0] < 2:
        raise DataError(
            f"selection compares labels and needs at least two, got {means_CREE.shape[0]}; "
            "collect statistics over text of two or more domains"
        )
    owner_REE = torch.empty(means_CREE.shape[1:], dtype=torch.int64)
    for group in range(means_CREE.shape[1]):
        top = means_CREE[:, group].topk(2, dim=0)
        first_EE, second_EE = top.values
        belongs_EE = (first_EE > second_EE) & (first_EE >= ratio * second_EE)
        owner_REE[group] = torch.where(belongs_EE, top.indices[0], NOBODY)
    return owner_REE


def select(statistics: ExpertStatistics, ratio: float = 2.0) -> dict[str, ExpertMask]:
    """One mask a label that removes the experts belonging to it; a label may own none.

    Args:
        statistics: sums over the identification split (`monet.eval.stats.collect`).
        ratio: least ratio between an expert's highest and second highest mean weight; the paper's is 2.

    Returns:
        Masks keyed by label, in the order of `statistics.labels`, bound to the model the statistics were taken from
        and carrying the rule, its ratio and the statistics' own provenance.

    Raises:
        ConfigError: `ratio` below 1 or not finite.
        DataError: fewer than two labels, or a label without a single token.
    """
    owner_REE = assign(statistics.means(), ratio)
    masks = {}
    for index, label in enumerate(statistics.labels):
        provenance = {
            "made_by": "select",
            "rule": "ratio",
            "ratio": ratio,
            "label": label,
            "statistics": statistics.provenance,
        }
        masks[label] = ExpertMask(owner_REE != index, provenance, statistics.model_fingerprint)
    return masks


def summarise(statistics: ExpertStatistics, masks: dict[str, ExpertMask], ratio: float) -> dict[str, Any]:
    """Numbers and shares of experts a label and routing group, JSON-able (the layout of the paper's Table 9)."""
    num_groups, num_keys = statistics.sums_CREE.shape[1:3]
    total = num_groups * num_keys**2
    never_active = int((statistics.sums_CREE.amax(dim=0) == 0).sum())
    owned = sum(mask.num_removed for mask in masks.values())
    return {
        "format": "monet-selection/1",
        "rule": "ratio",
        "ratio": ratio,
        "model_fingerprint": statistics.model_fingerprint,
        "experts": total,
        "experts_per_group": num_keys**2,
        "generalists": total - owned,
        "never_active": never_active,
        "labels": {
            label: {
                "experts": mask.num_removed,
                "share": mask.num_removed / total,
                "experts_per_group": mask.removed_per_group,
                "tokens": int(statistics.tokens_C[index]),
            }
            for index, (label, mask) in enumerate(masks.items())
        },
        "statistics": statistics.provenance,
    }


def save_masks(folder: str | os.PathLike[str], masks: dict[str, ExpertMask], summary: dict[str, Any]) -> None:
    """Write one mask file a label and, last, summary.json; a folder without the summary is never read.

    Raises:
        ConfigError: `folder` holds something else than an earlier selection.
    """
    root = Path(folder)
    if root.exists() and (not root.is_dir() or (any(root.iterdir()) and not (root / SUMMARY_NAME).is_file())):
        raise ConfigError(f"{root} exists and is no earlier selection; name a new folder")
    root.mkdir(parents=True, exist_ok=True)
    (root / SUMMARY_NAME).unlink(missing_ok=True)
    files = {}
    for label, mask in masks.items():
        path = root / f"{quote(label, safe='+ ')}.safetensors"
        mask.save(path)
        files[label] = {"file": path.name, "sha256": sha256_file(path)}
    labels = {label: {**entry, **files[label]} for label, entry in summary["labels"].items()}
    atomic_write_json(root / SUMMARY_NAME, {**summary, "labels": labels})


def load_masks(folder: str | os.PathLike[str], model: MonetPreTrainedModel | None = None) -> dict[str, ExpertMask]:
    """Masks of a folder that `monet select` wrote, keyed by label.

    Args:
        folder: has summary.json and the mask files it names.
        model: if given, masks made for another model are refused.

    Raises:
        CheckpointError: no readable summary, a mask file missing or changed since, or another model's mask.
    """
    root = Path(folder)
    try:
        entries = json.loads((root / SUMMARY_NAME).read_text(encoding="utf-8"))["labels"]
        named = {label: (root / Path(entry["file"]).name, entry["sha256"]) for label, entry in entries.items()}
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{root}: no {SUMMARY_NAME}; make the masks with `monet select`") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{root / SUMMARY_NAME}: unreadable ({error!r}); run `monet select` again") from None
    masks = {}
    for label, (path, digest) in named.items():
        if not path.is_file() or sha256_file(path) != digest:
            raise CheckpointError(f"{path}: missing or changed since the selection; run `monet select` again")
        masks[label] = ExpertMask.load(path)
        if model is not None:
            check_mask(label, masks[label], model)
    return masks


def check_mask(label: str, mask: ExpertMask, model: MonetPreTrainedModel) -> None:
    """Refuse a mask of another model or size.

    Raises:
        CheckpointError: names the label and both sides.
    """
    try:
        mask.check_fits(model)
    except CheckpointError as error:
        raise CheckpointError(f"mask for {label!r}: {error}") from None


def run(statistics: Path, out: Path, ratio: float = 2.0) -> None:
    """Choose the experts that belong to each domain, and write one removal mask a domain.

    An expert belongs to a domain when its mean routing weight there is at least RATIO times its mean weight in any
    other domain. Experts never seen active belong to nobody; experts seen in a single domain belong to it.

    Args:
        statistics: file written by `monet stats`.
        out: folder for DOMAIN.safetensors and summary.json; an earlier selection there is replaced.
        ratio: least ratio between an expert's highest and second highest mean weight, at least 1; the paper's is 2.

    Raises:
        ConfigError: ratio below 1, or OUT holds something else.
        CheckpointError: the statistics file cannot be read.
        DataError: statistics over fewer than two domains, or a domain without tokens.
    """
    from rich.console import Console
    from rich.table import Table

    check_ratio(ratio)
    loaded = ExpertStatistics.load(statistics)
    masks = select(loaded, ratio)
    summary = summarise(loaded, masks, ratio)
    save_masks(out, masks, summary)
    groups = range(len(next(iter(masks.values())).removed_per_group))
    table = Table("domain", "experts", "share", *(f"group {group}" for group in groups), title=f"experts at {ratio}x")
    for label, entry in summary["labels"].items():
        per_group = map(str, entry["experts_per_group"])
        table.add_row(label, str(entry["experts"]), f"{entry['share']:.1%}", *per_group)
    console = Console()
    console.print(table)
    console.print(
        f"{summary['generalists']} of {summary['experts']} experts are generalists, "
        f"{summary['never_active']} of them never active; masks: {out}",
        highlight=False,
    )
