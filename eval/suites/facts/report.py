"""The report of a result of `monet eval facts`: scores, verdicts, and heat maps by domain and by relation."""

from __future__ import annotations

from collections.abc import Sequence

from monet.eval.choices.texts import ORIGIN
from monet.eval.core.bootstrap import few
from monet.eval.core.document import Block, Heatmap, Report, Table, Text
from monet.eval.core.estimate import Estimate
from monet.eval.reporting.common import NOTHING, estimated
from monet.eval.reporting.wording import HOW_JUDGED, control_blocks, random_units
from monet.eval.suites.facts.results import Change, FactsResult, Scope

_HOW = (
    "Each line puts a prompt and scores every option by the log-likelihood of its tokens after the prompt. The "
    "log-odds of a line are log p(answer) - logsumexp(log p of the other options), in nats. The likelihoods are not "
    "divided by length. A line is answered right if the answer is likelier than every other option. A fact counts "
    "once, with the mean over its lines. The bootstrap resamples facts: all phrasings of a fact stay together, and "
    "every draw takes the same facts for all masks. The number of a domain is the mean over its facts."
)


def report_of(result: FactsResult) -> Report:
    """Tables of scores and verdicts, heat maps of changes, and the counts."""
    blocks: list[Block] = []
    if result.removals:
        held_out = result.provenance["held_out"]
        blocks.append(Text(ORIGIN[held_out], caution=held_out is not True))
    if caution := few({one.name: one.facts for one in result.domains}, "fact"):
        blocks.append(Text(caution, caution=True))
    if result.removals:
        blocks += [
            _heatmap(result, "domain", "log_odds"),
            _verdicts(result),
            _heatmap(result, "domain", "accuracy"),
            _heatmap(result, "relation", "log_odds"),
            _tested(result),
        ]
    blocks += [_scores("domain", result.domains), _scores("relation", result.relations)]
    blocks += [*control_blocks(result.provenance), Text(_HOW, "How it was measured")]
    title = f"Facts without the {result.unit}s of masks" if result.removals else "Facts"
    return Report(title, result.sentence, blocks, result.provenance, result.to_json())


def _heatmap(result: FactsResult, level: str, of: str) -> Heatmap:
    scopes = result.domains if level == "domain" else result.relations
    scale = 100 if of == "accuracy" else 1
    cells: list[list[Estimate]] = [
        [getattr(change, of).times(scale) for change in (one.domains if level == "domain" else one.relations)]
        for one in result.removals
    ]
    what = "answer's log-odds" if of == "log_odds" else "accuracy"
    note = (
        "Below zero, the mask makes the answers less likely against the other options."
        if of == "log_odds"
        else "Accuracy moves only if another option becomes the likeliest; the log-odds move with every change."
    )
    return Heatmap(
        f"Change of the {what} by {level}",
        [one.name for one in result.removals],
        [one.name for one in scopes],
        [[cell.value for cell in row] for row in cells],
        "nats" if of == "log_odds" else "points of accuracy",
        row_axis=f"{result.unit}s removed of",
        column_axis="facts of",
        note=note,
        low=[[cell.low for cell in row] for row in cells],
        high=[[cell.high for cell in row] for row in cells],
    )


def _verdicts(result: FactsResult) -> Table:
    rows = []
    for one in result.removals:
        target = result.target_change(one)
        rows.append(
            [
                one.name,
                one.target or NOTHING,
                f"{one.removed:,} ({one.share:.2%})",
                _nats(target.log_odds if target else None),
                estimated(target.accuracy if target else None, 1, sign=True, scale=100),
                _nats(one.others_mean),
                _nats(target.random if target else None),
                str(one.controls),
                f"{one.p:.3g}",
                f"{one.q:.3g}",
                "yes" if one.passes else f"no: {one.reason}",
            ]
        )
    return Table(
        "Verdicts (changes of log-odds in nats)",
        ["", "target", f"{result.unit}s", "log-odds", "accuracy, points", "others, mean", "random, on target",
         "controls", "p", "q", "passes"],
        rows,
        f"Brackets hold the bootstrap interval over facts. {HOW_JUDGED} A loss is a fall of the log-odds. A mask "
        f"without a target is not judged. {random_units(result.provenance['controls'], f'{result.unit}s')} are "
        "removed as controls. Their interval is that of one control: it includes the spread over controls.",
    )  # fmt: skip


def _tested(result: FactsResult) -> Table:
    """The relations that random controls were asked about."""
    names = [one.name for one in result.relations]
    rows = [
        [
            one.name,
            name,
            _nats(change.log_odds),
            estimated(change.accuracy, 1, sign=True, scale=100),
            _nats(change.random),
            *_chance(change),
        ]
        for one in result.removals
        for name, change in zip(names, one.relations, strict=True)
        if change.p is not None
    ]
    return Table(
        "Relations that random controls were asked about (changes of log-odds in nats)",
        ["", "relation", "log-odds", "accuracy, points", "random", "p", "q"],
        rows,
        "p is the probability that a random control of the mask lowers the log-odds of the relation as much. q is the "
        "expected share of false findings over all rows of this table.",
    )


def _chance(change: Change) -> list[str]:
    return [NOTHING if value is None else f"{value:.3g}" for value in (change.p, change.q)]


def _nats(found: Estimate | None) -> str:
    return estimated(found, 3, sign=True)


def _scores(level: str, scopes: Sequence[Scope]) -> Table:
    rows = [
        [
            one.name,
            f"{one.facts:,}",
            f"{one.lines:,}",
            _nats(one.log_odds),
            estimated(one.accuracy),
            f"{one.chance:.3f}",
            "; ".join(f"{count} {reason}" for reason, count in one.unscored.items()) or "nothing",
        ]
        for one in scopes
    ]
    return Table(
        f"Facts by {level}, without a mask",
        ["", "facts", "lines", "log-odds", "accuracy", "random choice", "without a score"],
        rows,
        "Log-odds are in nats. A random choice among k options has the log-odds -log(k - 1).",
    )
