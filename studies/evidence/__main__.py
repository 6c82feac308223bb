"""Measures trained models and writes the numbers of docs/evidence.md.

    python -m studies.evidence --model runs/evidence/export runs/evidence-seed1/export runs/evidence-seed2/export \
        --dense runs/evidence-llama/export --data data/evidence --text data/evidence-text/text \
        --out runs/evidence-results [--docs docs]

It takes one model, or several that differ in their training seed. Finished measurements are kept in --out, so the same
command continues after a kill. With --docs it writes docs/evidence.json, the page between its marks and the page's
figure; without --docs it prints the page.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cpu_layer import processor
from monet.eval.core.document import Heatmap, Report
from monet.eval.core.loading import provenance_now
from monet.files import atomic_write_json
from studies.evidence import failures, page
from studies.evidence.results import EvidenceResult
from studies.removal import relearning
from studies.removal.candidates import Llama, Monet
from studies.removal.measure import Measurement, matrix_of, measure
from studies.removal.models import check_different, timed
from studies.removal.page import draw, insert, number_of
from studies.removal.plan import Plan
from studies.removal.results import Relearning
from studies.removal.rows import model_of, row


def result_of(
    monets: Sequence[Monet], llamas: Sequence[Llama], plan: Plan, text: Path, owners: Sequence[str]
) -> EvidenceResult:
    """Measure all models; measurements in `plan.out` are not repeated.

    Args:
        monets, llamas: at least one of each.
        plan: sizes of the measurement.
        text: folder of the original text.
        owners: domains to remove by the rule argmax.
    """
    found: dict[str, list[Measurement]] = {"monet": [], "llama": []}
    relearned: dict[str, list[Relearning]] = {}
    for kind, candidates in (("monet", monets), ("llama", llamas)):
        for candidate in candidates:
            with timed(f"{candidate.name}: removals"):
                found[kind].append(measure(candidate))
        with timed(f"relearning, {kind}"):
            relearned[kind] = [relearning.relearning(found[kind], label) for label in plan.relearn]
    monet, llama = found["monet"], found["llama"]
    names = plan.evaluate.labels
    rows, dense = ([row(name, of, plan.bootstrap) for name in names] for of in (monet, llama))
    with timed("where removal fails"):
        failing = failures.other_rules(monets[0], owners)
        failing["subjects"] = failures.subjects(monets[0], monet[0].settled.share, text)
        failing["first_layer"] = failures.first_layer(llamas[0])
    matrix, dense_matrix = matrix_of(monet, names), matrix_of(llama, names)
    return EvidenceResult(
        "nats per token", [model_of(one) for one in monet], [model_of(one) for one in llama], rows, dense, matrix,
        dense_matrix, [*relearned["monet"], *relearned["llama"]], failing,
        plan.described,
        {**provenance_now(), "machine": processor(), "text": plan.evaluate.description["content"]},
    )  # fmt: skip


def figure(result: EvidenceResult, out: Path, docs: Path) -> None:
    """The page's picture: increases by removed and evaluated domain."""
    names = [one.name for one in result.domains]
    title = "Increase of mean loss by removed domain (row) and evaluated domain (column)"
    heatmap = Heatmap(title, names, names, result.matrix, result.unit, "removed", "evaluated")
    draw(Report("Evidence", result.sentence, [heatmap], result.provenance), out, docs / page.FIGURE)


def told(plan: Plan, models: int, llamas: int) -> str:
    """Summary of the planned work."""
    windows = plan.forwards(len(plan.evaluate.labels), plan.identify.num_windows)
    parts = ", ".join(f"{part} {count:,}" for part, count in windows.items())
    return (
        f"{number_of(models, 'Monet')} with {number_of(models, 'training seed')} and "
        f"{number_of(llamas, 'dense LLaMA')}; each reads about "
        f"{sum(windows.values()):,} windows of {plan.seq_len} tokens, if nothing is kept: {parts}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then write the page or print it."""
    given = parser().parse_args(arguments)
    plan = Plan(
        given.out, given.data, given.shares, given.windows, given.control_windows, given.controls,
        given.harder_controls, given.settling_windows, given.settling_controls, given.relearn, given.steps,
        given.random_removals,
    )  # fmt: skip
    plan.check_families(plan.evaluate.labels)
    monets, llamas = [Monet(folder, plan) for folder in given.model], [Llama(folder, plan) for folder in given.dense]
    check_different([*monets, *llamas])
    print(told(plan, len(monets), len(llamas)), flush=True)
    result = result_of(monets, llamas, plan, given.text, given.owners)
    result.save(given.out)
    text = page.body(result)
    if given.docs is None:
        print(text)
        return
    figure(result, given.out, given.docs)
    atomic_write_json(given.docs / "evidence.json", result.to_json())
    insert(given.docs / "evidence.md", text, page.BEGIN)
    print(page.summary(result))


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument(
        "--model", type=Path, nargs="+", required=True, help="exported Monets, one for each training seed"
    )
    found.add_argument(
        "--dense", type=Path, nargs="+", required=True, help="exported dense twins, one for each training seed"
    )
    found.add_argument("--data", type=Path, required=True, help="prepared text of configs/data/evidence.yaml")
    found.add_argument("--text", type=Path, required=True, help="folder of the text that --data was prepared from")
    found.add_argument("--out", type=Path, required=True, help="folder for all measurements")
    found.add_argument("--docs", type=Path, help="folder with the evidence.md to write; default: print the page")
    found.add_argument(
        "--shares", type=float, nargs="+", default=Plan.shares, help="shares of all units, to choose from"
    )
    found.add_argument("--relearn", nargs="*", default=Plan.relearn, help="domains trained again")
    found.add_argument("--steps", type=int, nargs="+", default=Plan.steps, help="steps of training again")
    found.add_argument("--owners", nargs="*", default=["french", "german", "java", "php"], help="removed by argmax")
    for name, words in {
        "windows": "windows a domain that removals are measured on",
        "control-windows": "windows a domain that removals are compared with random ones on",
        "controls": "random removals of equal number for each removal",
        "harder-controls": "of equal mass, and of equal activity",
        "settling-windows": "windows a domain that the share is settled on",
        "settling-controls": "random removals that the share is settled with",
        "random-removals": "random removals that are trained again, as each domain's own is",
    }.items():
        default = getattr(Plan, name.replace("-", "_"))
        found.add_argument(f"--{name}", type=int, default=default, help=f"{words} (default: {default})")
    return found


if __name__ == "__main__":
    main()
