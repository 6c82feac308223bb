"""The paper's eight benchmarks and two others as tasks of lm-evaluation-harness, and the folders that hold their data.

Small models answer multiple-choice questions far better when the text of each option is scored ("cloze") than when they
must name its letter. The paper does not say which style it used. Its MMLU of 0.320 at 850M parameters (Table 2) points
to cloze, which is the default here. The prompts come from the harness. The styles differ for MMLU (the harness's tasks
`mmlu_SUBJECT_continuation` or `mmlu_SUBJECT`) and for CommonsenseQA, whose cloze prompt is that of ARC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from monet.errors import ConfigError
from monet.eval.suites.questions.categories import SUBJECTS
from monet.eval.suites.questions.schemas import SCHEMAS, Schema

Style = Literal["cloze", "letters"]
Metric = Literal["acc_norm", "acc"]

_BOTH_METRICS = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")]
_CSQA_CLOZE = {
    "doc_to_text": "Question: {{question.strip()}}\nAnswer:",
    "doc_to_choice": "{{choices.text}}",
    "doc_to_target": "{{choices.label.index(answerKey)}}",
    "metric_list": _BOTH_METRICS,
}


@dataclass(frozen=True)
class TaskSpec:
    """One task of the harness.

    Args:
        name: our name, unique among all tasks.
        harness_name: the harness's name.
        folder: folder within the harness's tasks/ that holds the YAML file of the task.
        schema: schema of its rows.
        local_names: folders that may hold a local copy of the data, in addition to the data set's name on the hub.
        overrides: keys that replace those of the harness's task file.
        subject: subject of MMLU; a local file of several subjects has it in its column `subject`.
    """

    name: str
    harness_name: str
    folder: str
    schema: Schema
    local_names: tuple[str, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    subject: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """One column of the paper's Table 2, or one of OTHERS.

    Args:
        name: heading of the column.
        tasks: tasks that make up the benchmark. Every question counts equally over MMLU's subjects; ARC is the mean of
            its two parts.
        pooled: if true, every question counts equally over all tasks; if false, every task counts equally.
    """

    name: str
    tasks: tuple[TaskSpec, ...]
    pooled: bool = True


def _mmlu(style: Style) -> tuple[TaskSpec, ...]:
    suffix, folder = ("_continuation", "mmlu/continuation") if style == "cloze" else ("", "mmlu/default")
    names = ("mmlu", "hails/mmlu_no_train", "mmlu_no_train")
    return tuple(
        TaskSpec(f"mmlu_{subject}", f"mmlu_{subject}{suffix}", folder, SCHEMAS["mmlu"], names, subject=subject)
        for subject in SUBJECTS
    )


def _task(name: str, folder: str, schema: str, *local_names: str, **overrides: Any) -> TaskSpec:
    return TaskSpec(name, name, folder, SCHEMAS[schema], local_names, overrides)


_ARC = ("ai2_arc", "arc")
# Benchmarks that are asked only if they are named.
OTHERS = (
    Benchmark("ARC-Easy", (_task("arc_easy", "arc", "arc", *_ARC),)),
    Benchmark("SciQ", (_task("sciq", "sciq", "sciq"),)),
    Benchmark("LAMBADA", (_task("lambada_openai", "lambada", "lambada", "lambada", "EleutherAI/lambada_openai"),)),
)


def benchmarks(style: Style = "cloze", names: Sequence[str] | None = None) -> list[Benchmark]:
    """The benchmarks of Table 2, in the order of the table, or the named ones.

    Args:
        style: `cloze` scores the text of each option. `letters` lets the model answer MMLU and CommonsenseQA with a
            letter, and scores SIQA without length normalisation, as the harness's own tasks do.
        names: names of the benchmarks, also of OTHERS; None takes the eight of Table 2.

    Raises:
        ConfigError: a name is unknown or repeated, or the list is empty.
    """
    cloze = style == "cloze"
    found = [
        Benchmark("MMLU", _mmlu(style)),
        Benchmark(
            "ARC", tuple(_task(name, "arc", "arc", *_ARC) for name in ("arc_easy", "arc_challenge")), pooled=False
        ),
        Benchmark("WinoGrande", (_task("winogrande", "winogrande", "winogrande"),)),
        Benchmark("PIQA", (_task("piqa", "piqa", "piqa", "ybisk/piqa"),)),
        Benchmark(
            "SIQA",
            (
                _task(
                    *("social_iqa", "siqa", "siqa", "social_i_qa", "social_iqa", "allenai/social_i_qa"),
                    **({"metric_list": _BOTH_METRICS} if cloze else {}),
                ),
            ),
        ),
        Benchmark("OBQA", (_task("openbookqa", "openbookqa", "openbookqa"),)),
        Benchmark("HellaSwag", (_task("hellaswag", "hellaswag", "hellaswag"),)),
        Benchmark(
            "CSQA",
            (_task("commonsense_qa", "commonsense_qa", "commonsense_qa", "csqa", **(_CSQA_CLOZE if cloze else {})),),
        ),
    ]
    if names is None:
        return found
    known = {benchmark.name: benchmark for benchmark in (*found, *OTHERS)}
    if wrong := [name for name in names if name not in known]:
        raise ConfigError(f"no benchmark {', '.join(map(repr, wrong))}; choose from {', '.join(known)}")
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"benchmarks must name one or more benchmarks, each once, got {list(names)}")
    return [known[name] for name in names]
