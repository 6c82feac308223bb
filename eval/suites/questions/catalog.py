"""The paper's eight benchmarks as tasks of lm-evaluation-harness, and where their data lie.

Small models answer multiple-choice questions far better when the text of each option is scored ("cloze") than when they
must name its letter. The paper does not say which it used; its MMLU of 0.320 at 850M parameters (Table 2) points to
cloze, which is the default here. The prompts are the harness's own: the styles differ for MMLU (its tasks
`mmlu_SUBJECT_continuation` or `mmlu_SUBJECT`) and for CommonsenseQA, whose cloze prompt is ARC's.
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
        name: ours, unique among all tasks.
        harness_name: the harness's.
        folder: of the harness's tasks/ that holds its YAML file.
        schema: of its data's rows.
        local_names: folders a local copy of the data may have, beside the data set's name on the hub.
        overrides: keys of the harness's task file that are replaced.
        subject: of MMLU; a local file that holds several has it in a column of that name.
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
    """One column of the paper's Table 2.

    Args:
        name: heading of the column.
        tasks: what it consists of. Questions of MMLU's subjects count alike; ARC is the mean of its two parts.
        pooled: whether questions count alike over the tasks; if not, tasks do.
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


def benchmarks(style: Style = "cloze", names: Sequence[str] | None = None) -> list[Benchmark]:
    """The benchmarks of Table 2, in its order.

    Args:
        style: `cloze` scores the text of each option; `letters` has MMLU and CommonsenseQA answered by a letter, and
            SIQA without length normalisation, as the harness's own tasks do.
        names: which of them; None takes all eight.

    Raises:
        ConfigError: an unknown or repeated name, or none.
    """
    cloze = style == "cloze"
    arc = ("ai2_arc", "arc")
    found = [
        Benchmark("MMLU", _mmlu(style)),
        Benchmark(
            "ARC", tuple(_task(name, "arc", "arc", *arc) for name in ("arc_easy", "arc_challenge")), pooled=False
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
    known = {benchmark.name: benchmark for benchmark in found}
    if wrong := [name for name in names if name not in known]:
        raise ConfigError(f"no benchmark {', '.join(map(repr, wrong))}; there are {', '.join(known)}")
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"benchmarks must name one or more, none twice, got {list(names)}")
    return [known[name] for name in names]
