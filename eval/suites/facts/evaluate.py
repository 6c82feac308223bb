"""The `monet eval facts` command: log-odds of facts without a mask, under each mask, and under random controls."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monet.eval.attribution.control_options import ControlOptions
from monet.eval.attribution.selection import load_masks
from monet.eval.attribution.statistics.prompt_hashes import mask_notes
from monet.eval.choices.scoring import Outcome, tokenizer_of
from monet.eval.choices.texts import as_sequences
from monet.eval.core.achieved import control_notes
from monet.eval.core.announce import announce
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.conditions import Condition, conditions, dealt
from monet.eval.core.controls import ControlOn, Controls
from monet.eval.core.held_out import held_out
from monet.eval.core.intervention import Intervention, check_all, unit_of
from monet.eval.core.loading import mask_digest, windows_bar
from monet.eval.core.model_origin import about_run
from monet.eval.core.options import DividedCompute, Intervals
from monet.eval.suites.facts.read import Facts, Question, read_facts
from monet.eval.suites.facts.results import FactsResult
from monet.eval.suites.facts.scoring import FactScorer
from monet.eval.suites.facts.verdicts import summarise, targets_of
from monet.model.fingerprint import holds_weights
from monet.parts import Part


@holds_weights
def evaluate_facts(
    model: Any,
    masks: Mapping[str, Intervention],
    facts: Facts,
    *,
    out: str | os.PathLike[str],
    targets: Mapping[str, str] | None = None,
    controls: Controls | None = None,
    control_on: ControlOn = "target",
    tokenizer: str | None = None,
    bootstrap: Bootstrap | None = None,
    batch_size: int = 8,
    part: Part | None = None,
    progress: bool = True,
) -> FactsResult | None:
    """Log-odds and accuracy of facts without a mask, under each mask, and under the masks' random controls.

    `out` keeps the outcomes of single lines. A second call with the same model, masks, facts and settings reads them
    and gives the same numbers.

    Args:
        model: the complete model: a Monet, or any other causal language model that the masks fit.
        masks: masks by label; may be empty.
        facts: facts from `read_facts`.
        out: folder for kept outcomes and result.json.
        targets: the domain, or "domain/relation", that a mask is judged by, by label; see `verdicts.targets_of`.
        controls: random controls of each mask; None takes the default number. The count may be 0.
        control_on: ask controls about their mask's target only, a domain or a relation, or about all domains. If a mask
            has no target, its controls are asked about all domains.
        tokenizer: folder or name of another tokenizer than the model's.
        bootstrap: settings of the bootstrap, which resamples facts.
        batch_size: sequences in each forward pass.
        part: share of the conditions to compute and keep; None takes all.
        progress: show a bar on standard error.

    Returns:
        The result; None if a part is given.

    Raises:
        ConfigError: an option is out of range, or a target does not exist.
        DataError: no line of a domain or relation has a score, or the masks are of several kinds.
        CheckpointError: a mask belongs to another model, or there is no tokenizer.
        NonFiniteError: a log-likelihood is NaN or infinite.
    """
    bootstrap = bootstrap or Bootstrap()
    controls = controls or Controls()
    check_all(masks, model)
    units = unit_of(masks)
    target_of = targets_of(list(masks), facts, targets)
    tokens = tokenizer_of(model, tokenizer)
    scorer = FactScorer(model, tokens, Path(out) / "outcomes", batch_size)
    run_under = conditions(masks, controls, facts.fingerprint)
    asked = facts.of_domain

    def measured(condition: Condition) -> dict[str, list[Question]]:
        """The questions of each domain that a condition is asked."""
        target = target_of.get(str(condition.label), "")
        if condition.control is None or control_on == "all" or not target:
            return asked
        domain, _, relation = target.partition("/")
        return {domain: [question for question in asked[domain] if relation in ("", question.relation)]}

    passes = dealt([(condition, (number, measured(condition))) for number, condition in enumerate(run_under)], part)
    outcomes: dict[str, dict[int, list[Outcome]]] = {f"{one.domain}/{one.relation}": {} for one in facts.questions}
    total = sum(len(own) for _, (_, of) in passes for own in of.values())
    with windows_bar(total, "", progress, unit="line") as bar:
        for condition, (number, of) in passes:
            for domain, questions in of.items():
                bar.set_description(f"{condition.name}: {domain}", refresh=False)
                found = scorer.outcomes(questions, condition, bar.update)
                for question, outcome in zip(questions, found, strict=True):
                    outcomes[f"{domain}/{question.relation}"].setdefault(number, []).append(outcome)
    if part is not None:
        return None
    texts = {domain: [question.text for question in questions] for domain, questions in asked.items()}
    sequences, _ = as_sequences(texts, tokens, scorer.max_length)
    provenance = {
        **about_run(model),
        "masks": mask_notes(masks),
        "mask_hashes": {one.name: mask_digest(one.mask) for one in run_under if one.control is None},
        "held_out": held_out([mask.provenance for mask in masks.values()], sequences) if masks else None,
        "controls": control_notes(controls, run_under, on=control_on),
        "facts": facts.description,
        "bootstrap": {**dataclasses.asdict(bootstrap), "unit": "fact"},
        "scoring": scorer.settings,
    }
    result = summarise(masks, target_of, units, run_under, facts, outcomes, bootstrap, provenance)
    result.save(out)
    return result


def run(
    model: str,
    facts: list[Path],
    out: Path,
    masks: Path | None = None,
    targets: dict[str, str] | None = None,
    controls: ControlOptions = ControlOptions(),  # noqa: B008 - frozen
    control_on: ControlOn = "target",
    limit: int | None = None,
    tokenizer: str | None = None,
    intervals: Intervals = Intervals(),  # noqa: B008 - frozen
    compute: DividedCompute = DividedCompute(),  # noqa: B008 - frozen
) -> None:
    """Measure which facts a model loses under masks: log-odds of the answer, by domain and relation.

    A line of FACTS has a prompt, its answer and wrong choices. The command writes OUT/result.json, which `monet report`
    turns into tables and heat maps. It keeps each line's outcome in OUT/outcomes, so the same command continues after a
    kill.

    Args:
        model: a Monet model: a Hugging Face folder or a name on the hub.
        facts: files of JSON lines with prompt, answer, choices, domain, relation and phrasing, and perhaps subject and
            fact; docs/suites.md explains the keys.
        out: folder for result.json and kept outcomes.
        masks: folder of `monet select`, or one mask file in it; if omitted, only the unmasked model is measured.
        targets: the domain, or domain/relation, that a mask is judged by, by label of the mask. If omitted, it is the
            domain of the same name, or the relation of the same name if only one domain has it.
        controls: random controls of each mask. A count of 0 makes none.
        control_on: ask controls about their mask's target only, or about all domains.
        limit: ask at most this many facts of each relation, the first ones, in all their phrasings.
        tokenizer: folder or name of a tokenizer; if omitted, the model's own.

    Raises:
        CheckpointError: there is no such model or no tokenizer, or masks belong to another model.
        ConfigError: an option is out of range, or a target does not exist.
        DataError: a file of facts is missing, empty, or has a line that cannot be asked; the message names the line.
        NonFiniteError: a log-likelihood is NaN or infinite.
    """
    bootstrap = intervals.bootstrap()
    part = compute.own_part
    read = read_facts(facts, limit)
    loaded = compute.load(model)
    result = evaluate_facts(
        loaded,
        {} if masks is None else load_masks(masks, model=loaded),
        read,
        out=out,
        targets=targets,
        controls=controls.open(loaded),
        control_on=control_on,
        tokenizer=tokenizer,
        bootstrap=bootstrap,
        batch_size=compute.batch_size,
        part=part,
        progress=compute.progress,
    )
    announce(result, out, "tables and heat maps")
