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
    """Which questions are asked, and how.

    Args:
        local_data: folder with the data sets as the hub has them (jsonl, parquet, arrow); without it the hub is asked.
        style: cloze scores the text of every option; letters has MMLU and CSQA answered by a letter, as the harness's
            default tasks do.
        metric: acc_norm divides log-likelihoods by the option's characters where a task defines it; acc does not.
        limit: questions a task (each of MMLU's subjects is one), the first ones; for a quick look.
        faults: count rows that cannot be asked and data that are missing, or refuse them.
        too_long: cut a prompt longer than the model's context from the left, or skip its question; both are counted.
        tokenizer: folder or name; without it the model's.
    """

    local_data: Path | None = None
    style: Style = "cloze"
    metric: Metric = "acc_norm"
    limit: int | None = None
    faults: Faults = "count"
    too_long: TooLong = "cut"
    tokenizer: str | None = None
