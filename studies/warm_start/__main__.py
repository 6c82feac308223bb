"""Counts the tokens that a start from pieces of a dense twin's MLPs saves against a random start, at equal loss.

    python -m studies.warm_start --random runs/evidence-from-random --rest runs/evidence-from-rest \
        --pieces runs/evidence-from-pieces --twin runs/evidence-llama --out runs/warm-start [--docs docs]

`make warm-start` trains these runs. *rest* starts with the twin's weights and random experts: it shows what the other
weights save without the pieces. Each option takes several runs that differ in their seed. Without --docs it prints the
page.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.tables import markdown
from monet.eval.core.loading import provenance_now
from monet.files import atomic_write_json
from studies.removal.page import insert, wrap
from studies.warm_start.curves import arm_of, check_equal, curve_of, levels, settings_of
from studies.warm_start.results import WarmStartResult

BEGIN = "<!-- warm start -->"
ARMS = {
    "random": "random weights",
    "rest": "the twin's weights, random routers and experts",
    "pieces": "the twin's weights, experts from pieces of its MLPs",
}


def result_of(runs: dict[str, Sequence[Path]], twin: Path | None) -> WarmStartResult:
    """Compare the runs.

    Args:
        runs: by arm; the random start first, arms without runs are left out.
        twin: the run of the dense twin, to count its tokens.
    """
    given = {name: of for name, of in runs.items() if of}
    everything = [run for of in given.values() for run in of]
    check_equal(everything)
    arms = [arm_of(name, of) for name, of in given.items()]
    return WarmStartResult(
        arms, levels(arms), None if twin is None else curve_of(twin)[-1].tokens, settings_of(everything[0]),
        provenance_now(),
    )  # fmt: skip


def body(result: WarmStartResult) -> str:
    """Everything between the page's marks."""
    rows = []
    for level in result.levels:
        row: dict[str, str] = {"loss": f"{level.loss:.4f}"}
        for arm in result.arms:
            tokens = level.tokens[arm.name]
            most = "at most " if arm.name in level.is_bound else ""
            row[f"tokens, {arm.name}"] = "never" if tokens is None else f"{most}{tokens:,}"
            if arm is not result.arms[0]:
                whole = level.tokens[result.arms[0].name]
                assert whole is not None, "the random start has its own losses"
                row[f"saved by {arm.name}"] = "" if tokens is None else f"{1 - tokens / whole:.0%}"
        rows.append(row)
    ends = [
        {
            "start": arm.name, "what it starts with": ARMS[arm.name], "runs": str(len(arm.runs)),
            "first loss": f"{arm.curve[0].loss:.4f} at {arm.curve[0].tokens:,} tokens",
            "last loss": ", ".join(f"{loss:.4f}" for loss in arm.final),
        }
        for arm in result.arms
    ]  # fmt: skip
    twin = "an unknown number of" if result.twin_tokens is None else f"{result.twin_tokens:,}"
    words = (
        "Losses are means over the domains on validation text, in nats per token. A row holds a loss that the random "
        "start has after a part of its tokens, and the tokens at which each start first has it, linear between "
        f"validations. The twin itself had read {twin} tokens, which are not counted here. All runs have the same "
        "schedule, so losses before and after its decay are not comparable with each other."
    )
    tables = [markdown(of, dict.fromkeys(of[0], "")).rstrip() for of in (ends, rows)]
    return "\n\n".join([wrap(f"{result.sentence[0].upper()}{result.sentence[1:]}."), tables[0], wrap(words), tables[1]])


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, then write the page or print it."""
    given = parser().parse_args(arguments)
    result = result_of({name: getattr(given, name) for name in ARMS}, given.twin)
    result.save(given.out)
    if given.docs is None:
        print(body(result))
        return
    atomic_write_json(given.docs / "warm-start.json", result.to_json())
    insert(given.docs / "pretraining.md", body(result), BEGIN)
    print(result.sentence)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, words in ARMS.items():
        found.add_argument(f"--{name}", type=Path, nargs="+", required=name != "rest", default=[],
                           help=f"runs that start with {words}")  # fmt: skip
    found.add_argument("--twin", type=Path, help="run of the dense twin, to count its tokens")
    found.add_argument("--out", type=Path, required=True, help="folder for result.json")
    found.add_argument("--docs", type=Path, help="folder with the pretraining.md to write; default: print the text")
    return found


if __name__ == "__main__":
    main()
