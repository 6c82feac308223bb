"""An ablation's result as blocks of a report: increases of loss, verdicts, perplexities, experts removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from monet.eval.ablation.results import caution_on_few
from monet.eval.core.document import Bars, Block, Heatmap, Panels, Report, Table, Text
from monet.eval.reporting.common import NOTHING, bracketed, signed
from monet.eval.reporting.wording import HOW_JUDGED, ORIGIN, control_blocks, random_units

if TYPE_CHECKING:
    from monet.eval.ablation.results import AblationResult
    from monet.eval.core.estimate import Estimate


def report_of(result: AblationResult) -> Report:
    """Everything that an ablation found."""
    what, group = f"{result.unit}s", result.group
    held_out = result.provenance["held_out"]
    blocks: list[Block] = [
        Text(ORIGIN[held_out], caution=held_out is not True),
        *([Text(caution, caution=True)] if (caution := caution_on_few(result.evaluated)) else []),
        _matrices(result, what),
        verdicts(result, what),
        *control_blocks(result.provenance),
        Text(_how(result, what, group), "How it was measured"),
        _perplexities(result),
        _text(result),
        _removed(result, what, group.removeprefix("routing ")),
    ]
    title = "Knowledge removal" + ("" if result.unit == "expert" else f": {what}")
    return Report(title, result.sentence, blocks, result.provenance, result.to_json())


def _matrices(result: AblationResult, what: str) -> Panels:
    rows = [verdict.name for verdict in result.domains]
    columns = [baseline.name for baseline in result.evaluated]
    controls = max(verdict.controls for verdict in result.domains)
    everywhere = all(cell is not None for row in result.random for cell in row)

    def heatmap(title: str, cells: Sequence[Sequence[Estimate | None]]) -> Heatmap:
        def values(name: str) -> list[list[float | None]]:
            return [[None if cell is None else getattr(cell, name) for cell in row] for row in cells]

        return Heatmap(
            title,
            rows,
            columns,
            values("value"),
            "nats per token",
            row_axis="removed",
            column_axis="evaluated on",
            low=values("low"),
            high=values("high"),
        )

    return Panels(
        "Increase of the mean next-token loss",
        [
            heatmap(f"{what.capitalize()} of one domain removed", result.delta),
            heatmap(
                f"{random_units(result.provenance['controls'], what)} removed "
                f"({'' if everywhere else 'same domain only, '}mean of {controls} controls)",
                result.random,
            ),
        ],
        Bars(
            f"{what.capitalize()} removed, % of all",
            [100 * verdict.share for verdict in result.domains],
            [f"{verdict.removed:,} ({verdict.share:.1%})" for verdict in result.domains],
        ),
        "In nats per token. The domain of the removed units is in bold.",
    )


def verdicts(result: AblationResult, what: str) -> Table:
    """One row for each mask; `what` names the units, for example "experts"."""
    return Table(
        "Verdicts",
        [
            "removed",
            "target",
            "most of others",
            "mean of others",
            "random, on target",
            "controls",
            "p",
            "q",
            what,
            "passes",
        ],
        [
            [
                verdict.name,
                bracketed(verdict.target_delta, *verdict.target_interval),
                f"{signed(verdict.others_max_delta, 3)} ({verdict.others_max_name})",
                bracketed(verdict.others_mean_delta, *verdict.others_mean_interval),
                bracketed(verdict.random_delta, *verdict.random_interval),
                str(verdict.controls),
                f"{verdict.p:.3g}",
                f"{verdict.q:.3g}",
                f"{verdict.removed:,} ({verdict.share:.1%})",
                "yes" if verdict.passes else f"no: {verdict.reason}",
            ]
            for verdict in result.domains
        ],
        f"Increase of loss in nats per token, with its interval in brackets. {HOW_JUDGED}",
    )


def _how(result: AblationResult, what: str, group: str) -> str:
    bootstrap = result.provenance["bootstrap"]
    matched = {
        "number": f"remove the same number of {what} from every {group}",
        "mass": f"remove random {what} from every {group} until these hold the same routing weight on the domain",
        "activity": f"replace every removed {result.unit} by a random one with nearly the same activity on the domain",
    }[result.provenance["controls"]["kind"]]
    return (
        f"Intervals are {bootstrap['confidence']:.0%} bootstraps over {bootstrap['unit']}s "
        f"({bootstrap['resamples']} draws, paired before and after removal). Random controls {matched}. Their interval "
        f"is the interval of one control: it holds the spread over controls and over {bootstrap['unit']}s."
    )


def _perplexities(result: AblationResult) -> Table:
    return Table(
        "Perplexity by evaluated domain",
        ["removed", *(baseline.name for baseline in result.evaluated)],
        [
            ["nothing", *(f"{baseline.perplexity:.2f}" for baseline in result.evaluated)],
            *(
                [verdict.name, *(f"{value:.2f}" for value in row)]
                for verdict, row in zip(result.domains, result.perplexity, strict=True)
            ),
        ],
    )


def _text(result: AblationResult) -> Table:
    return Table(
        "Text evaluated on",
        ["domain", "mean loss", "perplexity", "tokens", "windows", "documents", "sources"],
        [
            [
                baseline.name,
                f"{baseline.loss.value:.3f} [{baseline.loss.low:.3f}, {baseline.loss.high:.3f}]",
                f"{baseline.perplexity:.2f}",
                f"{baseline.tokens:,}",
                f"{baseline.windows:,}",
                f"{baseline.documents:,}",
                NOTHING if baseline.sources is None else f"{baseline.sources:,}",
            ]
            for baseline in result.evaluated
        ],
        "For the whole model; losses are in nats per token. Documents are cut from sources; a dash means: not known.",
    )


def _removed(result: AblationResult, what: str, group: str) -> Table:
    groups = range(len(result.domains[0].removed_per_group))
    return Table(
        f"{what.capitalize()} removed",
        ["domain", "all", "share", *(f"{group} {number}" for number in groups)],
        [
            [one.name, f"{one.removed:,}", f"{one.share:.2%}", *(f"{n:,}" for n in one.removed_per_group)]
            for one in result.domains
        ],
    )
