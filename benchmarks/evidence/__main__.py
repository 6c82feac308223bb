"""The numbers of docs/evidence.md, from the two trained models to the page's tables.

    python -m benchmarks.evidence --model runs/evidence/export --dense runs/evidence-llama/export \
        --data data/evidence --text data/evidence-text/text --out runs/evidence-results [--docs docs]

What is finished is kept in --out, so the same command goes on after a kill. With --docs, docs/evidence.json, the tables
of docs/evidence.md and its figure are written; without, they are printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

from benchmarks.cpu_layer import processor
from benchmarks.evidence import failures, page, removal
from monet.eval import report
from monet.eval.core.controls import Controls
from monet.eval.loading import load_model
from monet.eval.results import AblationResult, Verdict
from monet.eval.rules import Argmax, Ratio
from monet.eval.selection import select_by
from monet.files import atomic_write_json

FIGURE = "removal.png"


def measured(arguments: argparse.Namespace) -> tuple[dict[str, str], list[dict[str, Any]], dict[str, Any]]:
    """All measurements: tables by name, a row a domain, and what else goes into docs/evidence.json."""
    plan = removal.Plan(
        arguments.out, arguments.data, arguments.windows, arguments.fractions, Controls(arguments.controls)
    )
    model = load_model(str(arguments.model))
    statistics = removal.statistics_of(model, plan)
    times = removal.times_random(model, statistics, plan)
    plan = dataclasses.replace(plan, fraction=removal.settled(times, page.LEAST_OVER_RANDOM))
    masks = select_by(statistics, plan.rule)
    curve = removal.curve_of(model, statistics, plan)
    whole = removal.removal_of(model, statistics, plan.rule, plan, "ablation")
    equal = removal.against_equal_mass(model, masks, statistics, plan)
    dense = removal.dense_of(str(arguments.dense), plan)
    others = {
        "ratio": removal.removal_of(model, statistics, Ratio(2.0), plan, "ratio"),
        "argmax": removal.removal_of(model, statistics, Argmax(), plan, "argmax", arguments.owners),
    }
    subjects = failures.subjects(model, plan, arguments.text)
    relearned = relearning(model, masks, plan, arguments)
    rows = [
        page.domain(verdict, other, {name: _named(result, verdict.name) for name, result in dense.items()})
        for verdict, other in zip(whole.domains, equal.domains, strict=True)
    ]
    tables = {
        "shares": page.shares(times),
        "goals": page.goals(rows), "matrix": page.matrix(whole), "thresholds": page.curve(curve),
        "experts": page.experts(whole.domains), "dense": page.dense(rows),
        "text": page.text(whole.evaluated, dense["top"].evaluated),
        **{name: page.simple(result) for name, result in others.items()},
        "subjects": page.simple(subjects), "relearning": page.relearning(relearned),
    }  # fmt: skip
    more = {
        "matrix": [[cell.value for cell in row] for row in whole.delta],
        "times_random_on_validation": {
            str(share): {name: value if math.isfinite(value) else None for name, value in found.items()}
            for share, found in times.items()
        },
        "curve": [{"fraction": point.threshold, "domains": _verdicts(point.domains)} for point in curve.points],
        **{name: _verdicts(result.domains) for name, result in others.items()},
        "subjects": _verdicts(subjects.domains),
        "relearning": {label: {str(n): losses for n, losses in found.items()} for label, found in relearned.items()},
        "settings": {
            **plan.rule.settings(),
            "windows": plan.windows,
            "seq_len": plan.seq_len,
            "controls": plan.controls.settings(),
        },
        "provenance": {**whole.provenance, "masks": None, "machine": processor()},
    }
    return tables, rows, more


def relearning(
    model: Any, masks: Any, plan: removal.Plan, arguments: argparse.Namespace
) -> dict[str, dict[int, dict[str, float]]]:
    """Of each domain named, kept in a file as soon as it is known."""
    found = {}
    for label in arguments.relearn:
        path = plan.out / "relearning" / f"{label}.json"
        key = [model.fingerprint(), plan.evaluate.fingerprint, plan.rule.settings(), list(arguments.steps)]
        kept = json.loads(path.read_text()) if path.exists() else {}
        if kept.get("of") != key:
            losses = failures.relearned(model, label, masks[label], plan, arguments.steps)
            kept = {"of": key, "losses": list(losses.items())}
            atomic_write_json(path, kept)
        found[label] = {int(step): losses for step, losses in kept["losses"]}
    return found


def _named(result: AblationResult, name: str) -> Verdict:
    return next(verdict for verdict in result.domains if verdict.name == name)


def _verdicts(verdicts: list[Verdict]) -> list[dict[str, Any]]:
    return [{"name": one.name, **page.deltas(one), "experts": one.removed} for one in verdicts]


def figure(out: Path, docs: Path) -> None:
    """The page's picture, from the report of the removal."""
    report.write(AblationResult.load(out / "ablation"), out / "report")
    (docs / "evidence").mkdir(exist_ok=True)
    shutil.copyfile(min((out / "report").glob("figure-01*.png")), docs / "evidence" / FIGURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="exported evidence model")
    parser.add_argument("--dense", type=Path, required=True, help="exported dense twin")
    parser.add_argument("--data", type=Path, required=True, help="prepared text of configs/data/evidence.yaml")
    parser.add_argument("--text", type=Path, required=True, help="folder of text that it was prepared from")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything that is measured")
    parser.add_argument("--docs", type=Path, help="folder with evidence.md, to be filled in; else tables are printed")
    parser.add_argument(
        "--fractions", type=float, nargs="+", default=[0.005, 0.01, 0.03], help="of all experts; the one"
        " of the tables is settled on the split validation (default: 0.005 0.01 0.03)",
    )  # fmt: skip
    parser.add_argument("--owners", nargs="*", default=["french", "german", "java", "php"], help="removed by argmax")
    parser.add_argument("--windows", type=int, default=32, help="windows of 256 tokens a domain (default: 32)")
    parser.add_argument("--controls", type=int, default=99, help="random controls of each removal (default: 99)")
    parser.add_argument("--relearn", nargs="*", default=["french", "php"], help="domains trained again")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 30], help="steps of training again")
    arguments = parser.parse_args()
    tables, rows, more = measured(arguments)
    if arguments.docs is None:
        for name, table in tables.items():
            print(f"\n{name}\n\n{table}")
        return
    page.insert(arguments.docs / "evidence.md", tables)
    page.write_json(arguments.docs / "evidence.json", rows, more)
    figure(arguments.out, arguments.docs)


if __name__ == "__main__":
    main()
