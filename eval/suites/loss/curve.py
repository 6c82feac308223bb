"""Measure how a removal grows with its threshold: nested masks from one file of statistics, as in `monet ablate`.

A rule with a threshold gives smaller masks at stricter thresholds. The masks of a label must be nested, so that a
curve adds experts and never exchanges them. This is checked. Losses are shared: equal masks are scored once.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from monet.errors import ConfigError
from monet.eval.ablation.measure import check_request, measure, passes
from monet.eval.ablation.results import Baseline, Verdict, caution_on_few, how_drawn
from monet.eval.attribution.control_options import ControlOptions
from monet.eval.attribution.label_control import KEY
from monet.eval.attribution.rules import RankedBy, Rule, RuleName, rule_named
from monet.eval.attribution.selection import select_by
from monet.eval.attribution.statistics.prompt_hashes import without_hashes
from monet.eval.attribution.stats import ExpertStatistics
from monet.eval.core.announce import announce
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.conditions import dealt
from monet.eval.core.controls import ControlOn, Controls
from monet.eval.core.document import Block, Curve, Report, Series, Table, Text
from monet.eval.core.held_out import Protocol, check_protocol, evaluation_split
from monet.eval.core.inputs import LabelledData
from monet.eval.core.loading import check_batch_size
from monet.eval.core.options import DividedCompute, TextIntervals, WindowOptions
from monet.eval.core.results import Result
from monet.eval.core.units import choose_unit
from monet.eval.core.window_losses import LossStore, keep_losses
from monet.eval.reporting.common import bracketed, signed
from monet.eval.reporting.wording import HOW_JUDGED, ORIGIN, control_blocks, random_units
from monet.masks.expert_mask import ExpertMask
from monet.model.fingerprint import holds_weights
from monet.parts import Part

if TYPE_CHECKING:
    from monet.model.modeling_monet import MonetForCausalLM


@dataclass(frozen=True)
class CurvePoint:
    """The effects of the masks of one threshold.

    Args:
        threshold: threshold of the rule.
        domains: one verdict for each label.
    """

    threshold: float
    domains: list[Verdict]


@dataclass(frozen=True)
class CurveResult(Result):
    """Outcome of a curve.

    Args:
        rule: name and numbers of the rule; ignore the value of its threshold, each point has its own.
        nested: whether each label's masks contain one another; always true, because other masks are refused.
        points: from the fewest removed experts to the most.
        provenance: as for an ablation, but of each mask only the numbers under permuted labels.
        evaluated: one baseline for each domain of the data; empty in files of earlier versions.
    """

    FORMAT: ClassVar[str] = "monet-curve/2"
    COMMAND: ClassVar[str] = "monet curve"

    rule: dict[str, Any]
    nested: bool
    points: list[CurvePoint]
    provenance: dict[str, Any]
    evaluated: list[Baseline] = field(default_factory=list)

    @property
    def sentence(self) -> str:
        """The number of masks that pass at each threshold, in words."""
        passed = ", ".join(
            f"{sum(verdict.passes for verdict in point.domains)} at {point.threshold:g}" for point in self.points
        )
        return (
            f"number of {len(self.points[0].domains)} masks by {self.rule['rule']} that hit their own domain hardest, "
            f"and harder than chance explains: {passed}"
        )

    def lines(self) -> list[str]:
        """What a command prints of its result, with the unit of the intervals."""
        return [*super().lines(), how_drawn(self.provenance, self.evaluated)]

    def report(self) -> Report:
        """A table of all labels, then a curve and a table for each label."""
        names = [verdict.name for verdict in self.points[0].domains]
        held_out = self.provenance["held_out"]
        keep = self.provenance["keep"]
        removed = "removed" if not keep else f"weakened to {keep:g} of their weight"
        thresholds = ", ".join(f"{point.threshold:g}" for point in self.points)
        settings = (f"{key} {value}" for key, value in self.rule.items() if key in ("by", "per") and value is not None)
        rule = " ".join([self.rule["rule"], *settings])
        unit = self.provenance["bootstrap"]["unit"]
        blocks: list[Block] = [
            Text(
                f"Experts were chosen by the rule {rule} at {thresholds} from one file of statistics, and {removed}. "
                "Masks of a domain are nested: a looser threshold adds experts and exchanges none. Bands and brackets "
                f"are intervals over {unit}s. {random_units(self.provenance['controls'], 'experts')} are removed for "
                f"comparison. {HOW_JUDGED} q is taken over the domains of each threshold."
            ),
            Text(ORIGIN[held_out], caution=held_out is not True),
            _overview(self.points),
        ]
        if caution := caution_on_few(self.evaluated):
            blocks.insert(2, Text(caution, caution=True))
        for index, name in enumerate(names):
            rows = [point.domains[index] for point in self.points]
            blocks += [_curve(name, rows), _table(name, self.points, rows)]
        blocks += control_blocks(self.provenance)
        return Report("Removal by threshold", self.sentence, blocks, self.provenance, self.to_json())


def _overview(points: Sequence[CurvePoint]) -> Table:
    def told(verdict: Verdict) -> str:
        changes = (verdict.target_delta, verdict.others_mean_delta, verdict.random_delta)
        return " / ".join(signed(change, 3) for change in changes)

    return Table(
        title="All domains by threshold",
        header=["removed", *(f"{point.threshold:g}" for point in points)],
        rows=[[rows[0].name, *map(told, rows)] for rows in zip(*(point.domains for point in points), strict=True)],
        note="Increase of loss in nats per token: domain itself / mean of the others / random controls on the domain.",
    )


def _curve(name: str, rows: Sequence[Verdict]) -> Curve:
    share = [100 * row.share for row in rows]

    def series(title: str, value: str, interval: str) -> Series:
        low, high = zip(*(getattr(row, interval) for row in rows), strict=True)
        return Series(title, share, [getattr(row, value) for row in rows], low, high)

    return Curve(
        title=f"{name}: increase of mean loss by share of experts",
        x_label="experts chosen, % of all",
        y_label="nats per token",
        series=[
            series(f"{name} itself", "target_delta", "target_interval"),
            series("mean of the others", "others_mean_delta", "others_mean_interval"),
            series(f"{name} under random controls", "random_delta", "random_interval"),
        ],
        note="The band of the random controls holds the spread over controls and the spread over text.",
    )


def _table(name: str, points: Sequence[CurvePoint], rows: Sequence[Verdict]) -> Table:
    return Table(
        title=f"{name}: values by threshold",
        header=[
            "threshold",
            "experts",
            "share",
            "itself",
            "mean of the others",
            "random, on itself",
            "p",
            "q",
            "passes",
        ],
        rows=[
            [
                f"{point.threshold:g}",
                f"{row.removed:,}",
                f"{row.share:.2%}",
                bracketed(row.target_delta, *row.target_interval),
                bracketed(row.others_mean_delta, *row.others_mean_interval),
                bracketed(row.random_delta, *row.random_interval),
                f"{row.p:.3g}",
                f"{row.q:.3g}",
                "yes" if row.passes else f"no: {row.reason}",
            ]
            for point, row in zip(points, rows, strict=True)
        ],
    )


def check_nested(masks: Sequence[Mapping[str, ExpertMask]]) -> None:
    """Refuse masks of a label that do not contain one another.

    Args:
        masks: masks by label, for each threshold.

    Raises:
        ConfigError: masks are not nested; the message names the label and both sizes.
    """
    for label in masks[0]:
        by_size = sorted((of[label] for of in masks), key=lambda mask: mask.num_removed)
        for smaller, larger in itertools.pairwise(by_size):
            if bool(((smaller.keep_REE != 1) & (larger.keep_REE == 1)).any()):
                raise ConfigError(
                    f"masks of {label!r} that remove {smaller.num_removed} and {larger.num_removed} experts are not "
                    "nested; a curve needs a rule whose looser thresholds only add experts"
                )


@holds_weights
def evaluate_curve(
    model: MonetForCausalLM,
    statistics: ExpertStatistics,
    rule: Rule,
    thresholds: Sequence[float],
    data: LabelledData,
    *,
    out: str | os.PathLike[str],
    keep: float = 0.0,
    controls: Controls | None = None,
    control_on: ControlOn = "target",
    bootstrap: Bootstrap | None = None,
    batch_size: int = 8,
    part: Part | None = None,
    progress: bool = True,
) -> CurveResult | None:
    """Measure each label's masks at several thresholds, with random controls for each.

    The losses of a window are kept in `out` as soon as they are known. A second call continues from them.

    Args:
        model: the whole model, from which the statistics were taken.
        statistics: statistics of text other than `data`.
        rule: a rule with a threshold; see `monet.eval.attribution.rules`.
        thresholds: at least one, none twice, in any order.
        data: text that has every label of the rule's masks; it may have more labels.
        out: folder for kept losses and result.json.
        keep: keep-weight of the chosen experts; 0 removes them.
        controls, control_on, bootstrap, batch_size, part, progress: as in `monet.eval.ablation.measure.ablate`; parts
            divide the masks of all thresholds.

    Returns:
        The result; None if `part` is given.

    Raises:
        ConfigError: the rule has no threshold, thresholds are out of range or repeated, or masks are not nested.
        DataError, CheckpointError, NonFiniteError: as in `ablate`.
    """
    check_batch_size(batch_size)
    controls = controls or Controls()
    if not thresholds or len(set(thresholds)) != len(thresholds):
        raise ConfigError(f"thresholds {list(thresholds)}: name at least one, and none twice")
    by_threshold = {threshold: select_by(statistics, rule.at(threshold), keep=keep) for threshold in thresholds}
    check_nested(list(by_threshold.values()))
    for masks in by_threshold.values():
        check_request(model, masks, data, controls)
    store = LossStore(Path(out) / "losses", model, batch_size)
    if part is not None:
        choose_unit(bootstrap or Bootstrap(), data)  # fails now with an error that would otherwise come after the work
        asked = [one for masks in by_threshold.values() for one in passes(masks, data, controls, control_on)]
        whole, under_masks = asked[0], [one for one in asked if one[0].like is not None]
        keep_losses(store, dealt([whole, *under_masks], part), progress)
        return None
    points = []
    provenance: dict[str, Any] = {}
    evaluated: list[Baseline] = []
    found: dict[str, Any] = {}
    taken: list[dict[str, Any]] = []
    for threshold, masks in sorted(by_threshold.items(), key=lambda item: sum(m.num_removed for m in item[1].values())):
        measured = measure(
            store, masks, data, controls=controls, control_on=control_on,
            bootstrap=bootstrap or Bootstrap(), progress=progress,
        )  # fmt: skip
        points.append(CurvePoint(threshold, measured.domains))
        evaluated = measured.evaluated
        provenance = measured.provenance
        found |= {f"{label} at {threshold:g}": {KEY: of[KEY]} for label, of in provenance["masks"].items() if KEY in of}
        taken += [{**one, "mask": f"{one['mask']} at {threshold:g}"} for one in provenance["controls"]["achieved"]]
    provenance["controls"]["achieved"] = taken
    provenance |= {"masks": found, "keep": keep, "statistics": without_hashes(statistics.provenance)}
    result = CurveResult(rule.settings(), True, points, provenance, evaluated)
    result.save(out)
    return result


def run(
    model: str,
    data: Path,
    statistics: Path,
    thresholds: list[float],
    out: Path,
    rule: RuleName = "ratio",
    by: RankedBy | None = None,
    per: Literal["group", "all"] | None = None,
    label: str | None = None,
    keep: float = 0.0,
    split: str | None = None,
    protocol: Protocol = "held_out",
    controls: ControlOptions = ControlOptions(),  # noqa: B008 - frozen
    control_on: ControlOn = "target",
    windows: WindowOptions = WindowOptions(),  # noqa: B008 - frozen
    intervals: TextIntervals = TextIntervals(),  # noqa: B008 - frozen
    compute: DividedCompute = DividedCompute(),  # noqa: B008 - frozen
) -> None:
    """Measure how the loss of each domain grows with the share of its experts that is removed.

    Chooses masks at several thresholds from one file of statistics, checks that they are nested, and measures each
    mask as `monet ablate` does. Writes OUT/result.json, which `monet report` turns into curves and tables. Finished
    losses are kept in OUT/losses, so the same command continues after a kill.

    Args:
        model: Hugging Face folder or name of the model from which the statistics were taken.
        data: folder of `monet data prepare`, made with the model's tokenizer.
        statistics: file of `monet stats`.
        thresholds: thresholds for the rule: ratios, correlations, bits, or for top the fractions of experts.
        out: folder for result.json and kept losses.
        rule: ratio, pearson, mutual_information or top; see `monet select --help`.
        by: for rule top: the quantity that ranks experts; see `monet select --help`.
        per: for rule top: take the experts of every routing group separately ("group"), or of all groups together
            ("all", default).
        label: for rule pearson, and for top by pearson: the domain of DATA that the mask targets.
        keep: keep-weight of the chosen experts: 0 removes them, 0.3 leaves three tenths of their contribution.
        split: split of DATA to evaluate on, default "evaluate".
        protocol: held_out evaluates on SPLIT; same evaluates on the split from which the statistics were taken.
        controls: random controls of each mask.
        control_on: measure controls only on their target, or on all domains, which takes that many times longer.

    Raises:
        CheckpointError: the model does not exist, or the statistics belong to another model.
        ConfigError: an option is out of range or does not belong to the rule, or masks are not nested.
        DataError: the split does not exist or lacks a domain of the masks, or the data have another tokenizer.
        NonFiniteError: a loss is NaN or infinite; the message names mask, domain and window.
    """
    bootstrap = intervals.bootstrap()
    part = compute.own_part
    if not thresholds:
        raise ConfigError("thresholds []: name at least one")
    first = thresholds[0]
    chosen = rule_named(
        rule, ratio=first if rule == "ratio" else None, by=by, per=per, label=label,
        fraction=first if rule == "top" else None,
        threshold=first if rule in ("pearson", "mutual_information") else None,
    )  # fmt: skip
    chosen.at(first)
    loaded = compute.load(model)
    found = ExpertStatistics.load(statistics, model=loaded)
    texts = list(found.provenance["parts"])
    text = windows.open(data, evaluation_split(protocol, split, texts), loaded)
    check_protocol(protocol, texts, text)
    result = evaluate_curve(
        loaded, found, chosen, thresholds, text, out=out, keep=keep, controls=controls.open(loaded),
        control_on=control_on, bootstrap=bootstrap, batch_size=compute.batch_size, part=part, progress=compute.progress,
    )  # fmt: skip
    announce(result, out, "curves")
