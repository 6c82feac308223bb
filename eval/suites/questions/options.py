"""Options of the commands that ask questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from monet.eval.suites.questions.catalog import Metric, Style
from monet.eval.suites.questions.scoring import TooLong
from monet.eval.suites.questions.tasks import Faults
from monet.options import Options


@dataclass(frozen=True)
class QuestionOptions(Options):
    """Which questions are asked, and how the answers are scored.

    Args:
        local_data: folder with copies of the hub's data sets (jsonl, parquet, arrow); if omitted, they are read from
            the hub.
        style: cloze scores the text of every option; letters lets the model answer MMLU and CSQA with a letter, as the
            harness's default tasks do.
        metric: acc_norm divides log-likelihoods by the option's number of characters if a task defines it; acc does
            not.
        limit: ask only this many questions per task, the first ones (each MMLU subject is a task); for a quick look.
        faults: count rows that cannot be asked and missing data, or refuse them.
        too_long: cut a prompt longer than the model's context from the left, or skip its question; both are counted.
        tokenizer: folder or name of a tokenizer; if omitted, the model's own.
    """

    local_data: Path | None = None
    style: Style = "cloze"
    metric: Metric = "acc_norm"
    limit: int | None = None
    faults: Faults = "count"
    too_long: TooLong = "cut"
    tokenizer: str | None = None
