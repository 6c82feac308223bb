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
import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.cpu_layer import processor
from monet.errors import ConfigError
from monet.eval.core.document import Heatmap, Report
from monet.eval.core.loading import provenance_now
from monet.eval.core.units import choose_unit
from monet.eval.reporting import command as report
from monet.files import atomic_path, atomic_write_json
from studies.evidence import failures, page, relearning
from studies.evidence.candidates import Candidate, Llama, Monet
from studies.evidence.plan import Plan
from studies.evidence.removal import Measurement, measure
from studies.evidence.results import EvidenceResult, Relearning
from studies.evidence.rows import model_of, row


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
    matrix, dense_matrix = (
        [[sum(one.cells[name][other].value for one in of) / len(of) for other in names] for name in names]
        for of in (monet, llama)
    )
    return EvidenceResult(
        "nats per token", [model_of(one) for one in monet], [model_of(one) for one in llama], rows, dense, matrix,
        dense_matrix, [*relearned["monet"], *relearned["llama"]], failing,
        {
            "windows": plan.windows, "control_windows": plan.control_windows, "seq_len": plan.seq_len,
            "controls": plan.controls, "harder_controls": plan.harder_controls,
            "settling_windows": plan.settling_windows, "settling_controls": plan.settling_controls,
            "unit": choose_unit(plan.bootstrap, plan.evaluate)[0].unit,
            "confidence": plan.bootstrap.confidence, "resamples": plan.bootstrap.resamples,
        },
        {**provenance_now(), "machine": processor(), "text": plan.evaluate.description["content"]},
    )  # fmt: skip


@contextlib.contextmanager
def timed(part: str) -> Iterator[None]:
    """Report the duration of a part, in minutes of CPU time of all threads."""
    started = time.process_time()
    yield
    print(f"{part}: {(time.process_time() - started) / 60:.1f} minutes of CPU time", flush=True)


def check_different(candidates: Sequence[Candidate]) -> None:
    """Refuse models that are given twice, because their spread over seeds would be too small.

    Raises:
        ConfigError: two models are equal or have the same name; the message names both.
    """
    for place, one in enumerate(candidates):
        for other in candidates[:place]:
            if one.fingerprint == other.fingerprint or one.name == other.name:
                raise ConfigError(
                    f"{other.folder} and {one.folder} hold the same weights or have the same name ({one.name}); give "
                    "models that were trained with different seeds, each exported from a run with another name"
                )


def figure(result: EvidenceResult, out: Path, docs: Path) -> None:
    """The page's picture: increases by removed and evaluated domain."""
    names = [one.name for one in result.domains]
    title = "Increase of mean loss by removed domain (row) and evaluated domain (column)"
    heatmap = Heatmap(title, names, names, result.matrix, result.unit, "removed", "evaluated")
    report.write(Report("Evidence", result.sentence, [heatmap], result.provenance), out / "report", ["png"])
    (docs / page.FIGURE).parent.mkdir(exist_ok=True)
    with atomic_path(docs / page.FIGURE) as temporary:
        temporary.write_bytes(min((out / "report").glob("figure-01*.png")).read_bytes())


def told(plan: Plan, models: int, llamas: int) -> str:
    """Summary of the planned work."""
    windows = plan.forwards(len(plan.evaluate.labels), plan.identify.num_windows)
    parts = ", ".join(f"{part} {count:,}" for part, count in windows.items())
    return (
        f"{page.number_of(models, 'Monet')} with {page.number_of(models, 'training seed')} and "
        f"{page.number_of(llamas, 'dense LLaMA')}; each reads about "
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
    page.insert(given.docs / "evidence.md", text)
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
