"""An ablation's result as blocks of a report: increases of loss, verdicts, perplexities, experts removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from monet.eval.document import Bars, Block, Heatmap, Panels, Report, Table, Text
from monet.eval.reporting.common import bracketed, signed

if TYPE_CHECKING:
    from monet.eval.results import AblationResult, Estimate

ORIGIN = {
    True: "The masks were chosen on another split, or on text prepared apart from this.",
    False: "The masks were chosen on the text they are evaluated on, which flatters them.",
    None: "It is not recorded what text the masks were chosen on; if it is this one, that flatters them.",
}


def report_of(result: AblationResult) -> Report:
    """Everything an ablation found."""
    dense = "removed" in result.provenance
    what, group = ("neurons", "layer") if dense else ("experts", "routing group")
    held_out = result.provenance["held_out"]
    blocks: list[Block] = [
        Text(ORIGIN[held_out], caution=held_out is not True),
        _matrices(result, what),
        _verdicts(result, what),
        Text(_how(result, what, group), "How it was measured"),
        _perplexities(result),
        _text(result),
        _removed(result, what, group.removeprefix("routing ")),
    ]
    title = "Knowledge removal: neurons of a dense model" if dense else "Knowledge removal"
    return Report(title, result.sentence, blocks, result.provenance, result.to_json())


def _matrices(result: AblationResult, what: str) -> Panels:
    rows = [verdict.name for verdict in result.domains]
    columns = [baseline.name for baseline in result.evaluated]
    seeds = len(result.provenance["random_seeds"])
    everywhere = all(cell is not None for row in result.random for cell in row)

    def heatmap(title: str, cells: Sequence[Sequence[Estimate | None]]) -> Heatmap:
        def values(name: str) -> list[list[float | None]]:
            return [[None if cell is None else getattr(cell, name) for cell in row] for row in cells]

        return Heatmap(
            title,
            rows,
            columns,
            values("value"),
            "nats a token",
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
                f"As many random {what} removed ({'' if everywhere else 'same domain only, '}mean of {seeds} masks)",
                result.random,
            ),
        ],
        Bars(
            f"{what.capitalize()} removed, % of all",
            [100 * verdict.share for verdict in result.domains],
            [f"{verdict.experts:,} ({verdict.share:.1%})" for verdict in result.domains],
        ),
        "In nats a token. In bold is the domain that the removed belong to.",
    )


def _verdicts(result: AblationResult, what: str) -> Table:
    return Table(
        "Verdicts",
        ["removed", "target", "most of others", "mean of others", "random, on target", what, "passes"],
        [
            [
                verdict.name,
                bracketed(verdict.target_delta, *verdict.target_interval),
                f"{signed(verdict.others_max_delta, 3)} ({verdict.others_max_name})",
                bracketed(verdict.others_mean_delta, *verdict.others_mean_interval),
                bracketed(verdict.random_delta, *verdict.random_interval),
                f"{verdict.experts:,} ({verdict.share:.1%})",
                "yes" if verdict.passes else f"no: {verdict.reason}",
            ]
            for verdict in result.domains
        ],
        "Increase of loss in nats a token, its interval in brackets. A mask passes if its own domain lost more than "
        "any other, and the low end of that interval lies above the high end of the random masks'.",
    )


def _how(result: AblationResult, what: str, group: str) -> str:
    bootstrap = result.provenance["bootstrap"]
    seeds = ", ".join(map(str, result.provenance["random_seeds"]))
    return (
        f"Intervals are {bootstrap['confidence']:.0%} bootstraps over {bootstrap['unit']}s "
        f"({bootstrap['resamples']} draws, paired before and after removal). Random masks remove as many {what} of "
        f"every {group}; their interval is that of one such mask: it holds the spread over masks (seeds {seeds}) and "
        f"over {bootstrap['unit']}s."
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
        ["domain", "mean loss", "perplexity", "tokens", "windows", "documents"],
        [
            [
                baseline.name,
                f"{baseline.loss.value:.3f} [{baseline.loss.low:.3f}, {baseline.loss.high:.3f}]",
                f"{baseline.perplexity:.2f}",
                f"{baseline.tokens:,}",
                f"{baseline.windows:,}",
                f"{baseline.documents:,}",
            ]
            for baseline in result.evaluated
        ],
        "Of the whole model; the loss in nats a token.",
    )


def _removed(result: AblationResult, what: str, group: str) -> Table:
    groups = range(len(result.domains[0].experts_per_group))
    return Table(
        f"{what.capitalize()} removed",
        ["domain", "all", "share", *(f"{group} {number}" for number in groups)],
        [
            [one.name, f"{one.experts:,}", f"{one.share:.2%}", *(f"{n:,}" for n in one.experts_per_group)]
            for one in result.domains
        ],
    )
