"""Make masks from routing statistics: remove or attenuate each label's experts, and write mask files.

`monet.eval.attribution.rules` decides which experts belong to a label. Take the statistics from a split that is not
used for evaluation.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import torch

from monet.errors import CheckpointError, ConfigError
from monet.eval.attribution.label_control import KEY, label_controls, note_on, of_masks, warning
from monet.eval.attribution.rules import RankedBy, Ratio, Rule, RuleName, assign, check_ratio, rule_named
from monet.eval.attribution.statistics.prompt_hashes import without_hashes
from monet.eval.attribution.stats import ExpertStatistics
from monet.eval.core.intervention import check_all
from monet.files import atomic_write_json, sha256_file
from monet.json_text import read_json
from monet.masks.expert_mask import ExpertMask
from monet.terminal import clean, markup

if TYPE_CHECKING:
    from monet.model.modeling_monet import MonetPreTrainedModel

__all__ = ["assign", "check_ratio", "load_masks", "save_masks", "select", "select_by", "summarise"]

SUMMARY_NAME = "summary.json"


def select(statistics: ExpertStatistics, ratio: float = 2.0, *, keep: float = 0.0) -> dict[str, ExpertMask]:
    """One mask for each label, which removes the label's experts by the paper's ratio; a label may have none.

    Args:
        statistics: sums over the identification split (`monet.eval.attribution.stats.collect`).
        ratio: smallest ratio between an expert's highest and second highest mean weight; the paper's is 2.
        keep: see `select_by`.

    Returns:
        Masks by label, in the order of `statistics.labels`; see `select_by`.

    Raises:
        ConfigError: `ratio` is below 1 or not finite, or `keep` is out of range.
        DataError: fewer than two labels, or a label without a token.
    """
    return select_by(statistics, Ratio(ratio), keep=keep)


def select_by(statistics: ExpertStatistics, rule: Rule, *, keep: float = 0.0) -> dict[str, ExpertMask]:
    """One mask for each label, which removes the label's experts; a label may have none.

    Args:
        statistics: statistics of the identification split (`monet.eval.attribution.stats.collect`).
        rule: the rule that assigns experts to labels.
        keep: keep-weight of the chosen experts, at least 0 and below 1; 0 removes them, 0.3 leaves three tenths.

    Returns:
        Masks by label, bound to the model of the statistics. Their provenance holds the rule, its numbers, the number
        of experts that it finds under permuted labels, and the provenance of the statistics.

    Raises:
        ConfigError: `keep` is out of range.
        DataError: the statistics lack what the rule needs.
    """
    if not 0.0 <= keep < 1.0:
        raise ConfigError(f"keep {keep} must be at least 0, which removes experts, and below 1")
    masks = {}
    by_chance = label_controls(rule, statistics)
    for label, chosen_REE in rule.chosen(statistics).items():
        provenance = {"made_by": "select", **rule.settings(), "label": label, "statistics": statistics.provenance}
        if label in by_chance:
            provenance[KEY] = by_chance[label].notes()
        if keep:
            keep_REE = torch.where(chosen_REE, keep, 1.0)
            masks[label] = ExpertMask(keep_REE, {**provenance, "keep": keep}, statistics.model_fingerprint)
        else:
            masks[label] = ExpertMask(~chosen_REE, provenance, statistics.model_fingerprint)
    return masks


def summarise(
    statistics: ExpertStatistics, masks: Mapping[str, ExpertMask], rule: Rule | float, keep: float = 0.0
) -> dict[str, Any]:
    """Numbers and shares of experts by label and routing group, JSON-able (the layout of the paper's Table 9).

    Args:
        statistics: statistics from which the masks were chosen.
        masks: masks by label.
        rule: the rule that chose them; a number means this ratio.
        keep: keep-weight of the chosen experts.
    """
    rule = rule if isinstance(rule, Rule) else Ratio(rule)
    num_groups, num_keys = statistics.sums_CREE.shape[1:3]
    total = num_groups * num_keys**2
    chosen_REE = torch.zeros(statistics.sums_CREE.shape[1:], dtype=torch.bool)
    for mask in masks.values():
        chosen_REE |= mask.keep_REE < 1
    tokens = dict(zip(statistics.labels, statistics.tokens_C.tolist(), strict=True))
    return {
        "format": "monet-selection/1",
        **rule.settings(),
        **({"keep": keep} if keep else {}),
        "model_fingerprint": statistics.model_fingerprint,
        "experts": total,
        "experts_per_group": num_keys**2,
        "generalists": total - int(chosen_REE.sum()),
        "never_active": int((statistics.sums_CREE.amax(dim=0) == 0).sum()),
        **rule.counted(statistics),
        "labels": {
            label: {
                "experts": mask.num_removed,
                "share": mask.num_removed / total,
                "experts_per_group": mask.removed_per_group,
                "tokens": tokens.get(label, sum(tokens.values())),
                **({KEY: mask.provenance[KEY]} if KEY in mask.provenance else {}),
            }
            for label, mask in masks.items()
        },
        "statistics": without_hashes(statistics.provenance),
    }


def save_masks(folder: str | os.PathLike[str], masks: dict[str, ExpertMask], summary: dict[str, Any]) -> None:
    """Write one mask file for each label, and summary.json last. A folder without the summary is never read.

    Raises:
        ConfigError: `folder` holds something other than an earlier selection.
    """
    root = Path(folder)
    if root.exists() and (not root.is_dir() or (any(root.iterdir()) and not (root / SUMMARY_NAME).is_file())):
        raise ConfigError(f"{root} exists but is not an earlier selection; name a new folder")
    root.mkdir(parents=True, exist_ok=True)
    (root / SUMMARY_NAME).unlink(missing_ok=True)
    files = {}
    for label, mask in masks.items():
        path = root / f"{quote(label, safe='+ ')}.safetensors"
        mask.save(path)
        files[label] = {"file": path.name, "sha256": sha256_file(path)}
    labels = {label: {**entry, **files[label]} for label, entry in summary["labels"].items()}
    atomic_write_json(root / SUMMARY_NAME, {**summary, "labels": labels})


def load_masks(source: str | os.PathLike[str], model: MonetPreTrainedModel | None = None) -> dict[str, ExpertMask]:
    """Masks that `monet select` wrote, by label.

    Args:
        source: folder with summary.json and the mask files that it names, or one of these files.
        model: if given, masks of another model are refused.

    Raises:
        CheckpointError: the summary is unreadable, a mask file is missing, changed or not named in the summary, or a
            mask belongs to another model.
    """
    given = Path(source)
    root = given.parent if given.is_file() else given
    named = _listed(root)
    if given.is_file():
        named = {label: (path, digest) for label, (path, digest) in named.items() if path.name == given.name}
        if not named:
            raise CheckpointError(f"{given}: {root / SUMMARY_NAME} names no such mask; choose one that it names")
    masks = {}
    for label, (path, digest) in named.items():
        if not path.is_file() or sha256_file(path) != digest:
            raise CheckpointError(f"{path}: missing or changed since the selection; run `monet select` again")
        masks[label] = ExpertMask.load(path)
        if model is not None:
            check_all({label: masks[label]}, model)
    return masks


def _listed(root: Path) -> dict[str, tuple[Path, str]]:
    """File and SHA-256 of each label's mask, from the summary of a folder."""
    try:
        entries = read_json(root / SUMMARY_NAME)["labels"]
        return {label: (root / Path(entry["file"]).name, entry["sha256"]) for label, entry in entries.items()}
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{root}: no {SUMMARY_NAME}; make the masks with `monet select`") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{root / SUMMARY_NAME}: unreadable ({error!r}); run `monet select` again") from None


def run(
    statistics: Path,
    out: Path,
    rule: RuleName = "ratio",
    ratio: float | None = None,
    threshold: float | list[float] | None = None,
    count: int | None = None,
    fraction: float | None = None,
    by: RankedBy | None = None,
    per: Literal["group", "all"] | None = None,
    label: str | None = None,
    keep: float = 0.0,
) -> None:
    """Choose the experts that belong to each domain, and write one removal mask for each domain.

    Rules. ratio (the paper's): the domain in which an expert's mean routing weight is at least RATIO times that of any
    other domain. argmax: the domain in which it is most often the strongest expert of its group. mutual_information:
    the domain on which its firing carries most information, THRESHOLD bits or more. top: the COUNT or FRACTION
    strongest experts of each domain. pearson: one mask, with the experts whose weight correlates with the text's score,
    r above THRESHOLD. argmax and mutual_information need `monet stats --firing`. pearson needs `--scores`. An expert
    that is never active belongs to no domain.

    The table also shows how many experts the rule finds under permuted labels, which mean nothing. top takes a fixed
    number of experts. For top, the table takes the lowest rank of the chosen experts, and counts the experts that reach
    it under permuted labels.

    Args:
        statistics: file written by `monet stats`.
        out: folder for DOMAIN.safetensors and summary.json; an earlier selection in it is replaced.
        rule: the rule that assigns experts to domains.
        ratio: for rule ratio: smallest ratio between an expert's highest and second highest mean weight, at least 1;
            if omitted, 2 as in the paper.
        threshold: for rules pearson (default 0.1; the paper's are 0.2, 0.1 and 0.05) and mutual_information (default
            0.01). A list makes one mask for each threshold, only for pearson.
        count: for rule top: number of experts of each domain.
        fraction: for rule top, in place of count: share of a group's experts, or of all, rounded down.
        by: for rule top: the quantity that ranks experts: ratio (default), mean, mutual_information or pearson.
        per: for rule top: take the experts of every routing group separately ("group"), or of all groups together
            ("all", default).
        label: for rule pearson, and for top by pearson: name of the mask; default "score".
        keep: keep-weight of the chosen experts: 0 removes them, 0.3 leaves three tenths of their contribution.

    Raises:
        ConfigError: an option is out of range or does not belong to the rule, or OUT holds something else.
        CheckpointError: the statistics file cannot be read.
        DataError: the statistics have fewer than two domains, a domain without tokens, or lack what the rule needs.
    """
    thresholds = threshold if isinstance(threshold, list) else [threshold]
    if len(thresholds) != 1 and rule != "pearson":
        raise ConfigError(f"threshold {threshold}: only the rule pearson takes a list; give one number")
    if not thresholds or len(set(thresholds)) != len(thresholds):
        raise ConfigError(f"threshold {threshold}: name at least one, and none twice")
    rules = [
        rule_named(
            rule, ratio=ratio, threshold=each, count=count, fraction=fraction, by=by, per=per,
            label=label if len(thresholds) == 1 else f"{label or 'score'} {each}",
        )
        for each in thresholds
    ]  # fmt: skip
    loaded = ExpertStatistics.load(statistics)
    masks: dict[str, ExpertMask] = {}
    for each in rules:
        masks |= select_by(loaded, each, keep=keep)
    summary = summarise(loaded, masks, rules[0], keep)
    if len(rules) > 1:
        summary |= {"threshold": thresholds, "label": label or "score"}
    save_masks(out, masks, summary)
    _print(summary, rules[0], len(rules), out)


def _print(summary: dict[str, Any], rule: Rule, num_rules: int, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    settings = {key: value for key, value in rule.settings().items() if key not in ("rule", "label")}
    told = "" if num_rules > 1 else " ".join(f"{key} {value}" for key, value in settings.items())
    title = f"experts at {summary['ratio']}x" if isinstance(rule, Ratio) else f"experts by {rule.name} {told}"
    groups = range(len(next(iter(summary["labels"].values()))["experts_per_group"]))
    by_chance = of_masks(summary["labels"])
    permuted = ["permuted labels"] if by_chance else []
    table = Table("domain", "experts", *permuted, "share", *(f"group {group}" for group in groups), title=title)
    for label, entry in summary["labels"].items():
        beside = [by_chance[label].words] if label in by_chance else []
        per_group = map(str, entry["experts_per_group"])
        table.add_row(markup(label), str(entry["experts"]), *beside, f"{entry['share']:.1%}", *per_group)
    console = Console()
    console.print(table)
    undefined = f", {summary['undefined']} have no correlation" if "undefined" in summary else ""
    console.print(
        f"{summary['generalists']} of {summary['experts']} experts are generalists, "
        f"{summary['never_active']} of them never active{undefined}; masks: {out}",
        highlight=False,
    )
    told = note_on(by_chance) if by_chance else "These statistics have no permuted labels for a comparison."
    console.print(told, highlight=False, markup=False)
    if caution := warning(by_chance):
        console.print(f"warning: {clean(caution)}", style="bold", highlight=False, markup=False)
