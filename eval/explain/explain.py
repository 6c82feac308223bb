"""Explain chosen units: a text for each, written to INDEX/explanations line by line."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from monet.errors import ConfigError
from monet.eval.core.loading import windows_bar
from monet.eval.explain.excerpts import Excerpt, Excerpts, by_turns
from monet.eval.explain.explainers import Explainer, Named
from monet.eval.explain.records import EXPLANATIONS, Explanation, Lines, Used, check_name
from monet.eval.index.index import Index
from monet.eval.index.units import Unit

NO_CONTEXT = "no context in the documents for explaining"


def explain(
    index: Index,
    units: Sequence[Unit],
    explainer: Explainer,
    name: str,
    *,
    contexts: int = 16,
    around: int = 8,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> list[Explanation]:
    """Explain units; lines that exist already are kept.

    Args:
        index: the index; the lines go to its folder.
        units: what to explain.
        explainer: who explains.
        name: name of the file, without ending.
        contexts: excerpts that the explainer sees, at most.
        around: tokens before and after each context's token.
        seed: seed of the division of documents into those that explain and those that score.
        overwrite: begin again if the file was made with other settings.
        progress: show a bar on standard error.

    Returns:
        The lines of the units, in their order.

    Raises:
        ConfigError: a number or the name is out of range, or the file was made with other settings.
    """
    if contexts < 1 or around < 0:
        raise ConfigError(f"contexts {contexts} must be at least 1, and around {around} at least 0")
    excerpts = Excerpts(index, around, seed)
    settings = {
        "kind": EXPLANATIONS, "index": index.info.data.fingerprint, "fingerprint": index.info.model.fingerprint,
        "contexts": contexts, "around": around, "seed": seed, **explainer.key,
    }  # fmt: skip
    path = index.folder / EXPLANATIONS / f"{check_name(name)}.jsonl"
    with Lines(path, Explanation, settings, overwrite) as lines:
        todo = [unit for unit in units if (unit.group, unit.number) not in lines.done]
        with windows_bar(len(units), "", progress, "expert", initial=len(units) - len(todo)) as bar:
            for start in range(0, len(todo), explainer.at_once):
                block = todo[start : start + explainer.at_once]
                shown = [by_turns(excerpts.of(unit, "explain"), contexts) for unit in block]
                for unit, seen, named in zip(block, shown, _named(explainer, block, shown), strict=True):
                    lines.put(_line(unit, seen, named, explainer))
                bar.update(len(block))
        return [lines.done[unit.group, unit.number] for unit in units]


def _named(explainer: Explainer, units: Sequence[Unit], shown: Sequence[list[Excerpt]]) -> list[Named]:
    some = [(unit, seen) for unit, seen in zip(units, shown, strict=True) if seen]
    found = iter(explainer.explain(some) if some else [])
    return [next(found) if seen else Named("", NO_CONTEXT) for seen in shown]


def _line(unit: Unit, seen: Sequence[Excerpt], named: Named, explainer: Explainer) -> Explanation:
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return Explanation(
        unit.group, unit.i, unit.j, unit.number, named.text, str(explainer.key["explainer"]), explainer.model, now,
        [Used(one.window, one.position, one.label, one.document) for one in seen], named.failed,
    )  # fmt: skip


def summary(path: Path, lines: Sequence[Explanation]) -> list[str]:
    """What the command prints."""
    failed: dict[str, int] = {}
    for line in lines:
        if line.failed:
            failed[line.failed] = failed.get(line.failed, 0) + 1
    found = [f"{len(lines) - sum(failed.values()):,} of {len(lines):,} units explained: {path}"]
    return found + [f"without an explanation: {count:,} ({reason})" for reason, count in sorted(failed.items())]
