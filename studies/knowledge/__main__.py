"""Removes knowledge from converted models and writes docs/knowledge.{json,md,png}.

    python -m studies.knowledge --model runs/knowledge runs/knowledge-seed1 runs/knowledge-seed2 \
        --dense data/smollm2 --data data/subjects --facts data/facts/facts.jsonl --out runs/knowledge-results \
        [--questions FOLDER] [--transcoders runs/transcoders] [--docs docs] [--quick]

Models are folders of `monet convert` that differ in their seed, transcoders those of `python -m studies.transcoders`.
Finished measurements are kept in --out, so the same
command continues after a kill. Without --docs it prints the page.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from benchmarks.cpu_layer import processor
from monet.eval.core.document import Heatmap, Report
from monet.eval.core.loading import provenance_now
from monet.files import atomic_write_json
from studies.knowledge import page
from studies.knowledge.asked import Asking, ask_facts, ask_questions
from studies.knowledge.conversion import Converted, check_same_layers, check_same_model, families_of
from studies.knowledge.overlap import overlap
from studies.knowledge.results import KnowledgeResult, Selective
from studies.removal.candidates import Llama
from studies.removal.measure import Measurement, matrix_of, measure
from studies.removal.models import check_different, timed
from studies.removal.page import draw, insert
from studies.removal.plan import Plan
from studies.removal.relearning import relearning
from studies.removal.rows import model_of, row
from studies.transcoders.candidate import TranscoderLatents

NO_TRANSCODERS = {"transcoders": "none were given with --transcoders"}

QUICK: dict[str, Any] = {
    "windows": 2, "control_windows": 2, "seq_len": 128, "shares": (0.01,), "identify_windows": 24,
    "settling_windows": 2, "settling_controls": 1, "harder_controls": 9,
}  # fmt: skip
QUICK_ASKING: dict[str, Any] = {
    "facts_limit": 2, "facts_controls": 9, "questions_limit": 4, "questions_controls": 1,
}  # fmt: skip


def _mean(values: Sequence[float | None]) -> float | None:
    known = [one for one in values if one is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _selective(one: Measurement, model: Converted) -> Selective:
    plan = one.candidate.plan
    rows = [row(name, [one], plan.bootstrap) for name in plan.evaluate.labels]
    return Selective(
        model.name, model.report.layers, model.report.perplexity_converted, one.settled.share,
        sum(of.passes for of in rows), rows,
    )  # fmt: skip


def result_of(
    models: Sequence[Converted],
    dense: Llama,
    others: Sequence[Converted],
    transcoders: Sequence[TranscoderLatents],
    plan: Plan,
    asking: Asking,
) -> KnowledgeResult:
    """Measure all models; measurements in `plan.out` are not repeated.

    Args:
        models: conversions that differ in their seed.
        dense: the dense model, with the same layers.
        others: conversions of other numbers of layers.
        transcoders: those of the same layers; they differ in their seed.
        plan: sizes of the measurement.
        asking: facts and questions that the conversions and the dense model are asked.
    """
    found: dict[str, Measurement] = {}
    for model in [*models, dense, *transcoders, *others]:
        with timed(f"{model.name}: removals"):
            found[model.name] = measure(model)
    hybrids, neurons, latents = ([found[one.name] for one in of] for of in (models, [dense], transcoders))
    names, first = plan.evaluate.labels, models[0]
    with timed("facts"):
        facts = [ask_facts(one, asking) for one in (*hybrids, *neurons)] if asking.facts else []
    with timed("questions"):
        questions = [ask_questions(one, asking) for one in (*hybrids, *neurons)] if asking.questions else []
    with timed("relearning"):
        relearned = [relearning(of, label) for of in (hybrids, neurons, latents) if of for label in plan.relearn]
    told = first.report
    return KnowledgeResult(
        unit="nats per token", model=told.model, layers=told.layers, tokens=told.tokens,
        distil_tokens=told.distil_tokens,
        fvu={str(layer): sum(one.report.fvu[layer] for one in models) / len(models) for layer in told.layers},
        perplexity_dense=_mean([one.report.perplexity_dense for one in models]),
        perplexity_converted=_mean([one.report.perplexity_converted for one in models]),
        families=dict(plan.families),
        domains=[row(name, hybrids, plan.bootstrap) for name in names],
        dense=[row(name, neurons, plan.bootstrap) for name in names],
        transcoders=[row(name, latents, plan.bootstrap) for name in names] if latents else [],
        models=[model_of(one) for one in hybrids], dense_models=[model_of(one) for one in neurons],
        transcoder_models=[model_of(one) for one in latents],
        trained_transcoders=[one.trained_transcoders for one in transcoders],
        matrix=matrix_of(hybrids, names),
        overlap=overlap(first.statistics, hybrids[0].settled.share),
        by_layers=sorted(
            (_selective(found[one.name], one) for one in [first, *others]), key=lambda one: len(one.layers)
        ),
        facts=facts, questions=questions, relearning=relearned,
        missing={**asking.missing, **({} if transcoders else NO_TRANSCODERS)},
        settings={**plan.described, **asking.described},
        provenance={**provenance_now(), "machine": processor(), "text": plan.evaluate.description["content"]},
    )  # fmt: skip


def figure(result: KnowledgeResult, out: Path, docs: Path) -> None:
    """The picture: target, worst other domain and random removals, by removed domain."""
    columns = ["own domain", "worst other", "equal mass", "equal number"]
    cells = [[one.target_delta, one.others_max_delta, one.equal_mass_delta, one.random_delta] for one in result.domains]
    names = [one.name for one in result.domains]
    heatmap = Heatmap("Increase of mean loss by removed domain", names, columns, cells, result.unit, "removed", "")
    draw(Report("Knowledge", result.sentence, [heatmap], result.provenance), out, docs / page.FIGURE)


def _given(arguments: argparse.Namespace, kind: type) -> dict[str, Any]:
    """The options that the command line gave a value, for the settings of one kind."""
    names = {"facts", "questions", "shares", "steps", *SIZES} & {field.name for field in fields(kind)}
    return {name: value for name in sorted(names) if (value := getattr(arguments, name)) is not None}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then write the page or print it."""
    given = parser().parse_args(arguments)
    sizes = QUICK if given.quick else {}
    plan = replace(Plan(given.out, given.data, relearn=given.relearn, lone_domains=True), **sizes)
    plan = replace(plan, families=families_of(given.families, plan.evaluate.labels), **_given(given, Plan))
    asking = replace(Asking(**(QUICK_ASKING if given.quick else {})), **_given(given, Asking))
    plan.check_families(plan.evaluate.labels)
    asking.check(plan.evaluate.labels)
    models, others = ([Converted(folder, plan) for folder in of] for of in (given.model, given.by_layers))
    check_same_layers(models)
    dense = Llama(given.dense, plan, models[0].report.layers)
    transcoders = [TranscoderLatents(folder, dense) for folder in given.transcoders]
    check_same_model(models, transcoders)
    check_different([*models, dense, *transcoders, *others])
    result = result_of(models, dense, others, transcoders, plan, asking)
    result.save(given.out)
    text = page.body(result)
    if given.docs is None:
        print(text)
        return
    figure(result, given.out, given.docs)
    atomic_write_json(given.docs / "knowledge.json", result.to_json())
    insert(given.docs / "knowledge.md", text, page.BEGIN)
    print(result.sentence, page.failing(result))


SIZES = {
    "windows": "windows a domain that removals are measured on",
    "control_windows": "windows a domain that removals are compared with random ones on",
    "controls": "random removals of equal number for each removal",
    "harder_controls": "random removals of equal mass, and of equal activity",
    "settling_windows": "windows a domain that the share is settled on",
    "settling_controls": "random removals that the share is settled with",
    "random_removals": "random removals that are trained again",
    "seq_len": "tokens of a window",
    "facts_limit": "facts of each relation",
    "facts_controls": "random removals of equal number that are asked facts, for each removal",
    "questions_limit": "questions of each benchmark",
    "questions_controls": "random removals of equal number that are asked questions, for each removal",
}


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--model", type=Path, nargs="+", required=True, help="conversions, one for each seed")
    found.add_argument("--dense", type=Path, required=True, help="folder of the dense model")
    found.add_argument("--data", type=Path, required=True, help="prepared text of configs/data/subjects.yaml")
    found.add_argument("--out", type=Path, required=True, help="folder for all measurements")
    found.add_argument("--docs", type=Path, help="folder with the knowledge.md to write; default: print the page")
    found.add_argument("--transcoders", type=Path, nargs="*", default=[], help="transcoders of the same layers")
    found.add_argument("--by_layers", type=Path, nargs="*", default=[], help="conversions of other numbers of layers")
    found.add_argument("--families", nargs="*", default=[], help="for example programming=code,shell")
    found.add_argument("--facts", type=Path, nargs="+", help="files of `python -m corpus.build --recipe facts`")
    found.add_argument(
        "--questions", type=Path, help="folder with ARC-Easy, SciQ, PIQA and LAMBADA (python -m corpus.questions)"
    )
    found.add_argument("--relearn", nargs="*", default=[], help="domains trained again")
    found.add_argument("--quick", action="store_true", help="smaller sizes")
    found.add_argument("--shares", type=float, nargs="+", help="shares of all units, to choose from")
    found.add_argument("--steps", type=int, nargs="+", help="steps of training again")
    for name, words in SIZES.items():
        default = getattr(Plan if hasattr(Plan, name) else Asking, name)
        found.add_argument(f"--{name}", type=int, help=f"{words} (default: {default})")
    return found


if __name__ == "__main__":
    main()
