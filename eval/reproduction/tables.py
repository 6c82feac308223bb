"""The paper's tables as experiments: needs, commands, cost and published values of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from monet.eval.core.control_options import ControlOptions
from monet.eval.reproduction import request as needs
from monet.eval.reproduction import rows
from monet.eval.reproduction.estimate import Work
from monet.eval.reproduction.published import THRESHOLDS
from monet.eval.reproduction.request import Need, Request, Step
from monet.eval.reproduction.scorer import REAL_TOXICITY_PROMPTS, TOXIGEN, PaperScorer

_OPTIONS = 130_705  # options of all test questions of the eight benchmarks, MMLU's 14,042 x 4 among them
_MMLU = 56_168  # of MMLU alone
_LANGUAGES, _PROBLEMS = 6, 161


@dataclass(frozen=True)
class Experiment:
    """One table of the paper.

    Args:
        table: its number.
        title: what it shows.
        paper_model: whose values are published, such as "Monet-VD 1.4B".
        any_size: values of every size are published; those of the model's own are taken.
        protocol: settings, and where the paper leaves them open.
        needs: beside a folder for the results.
        folder: below OUT, for results; tables with one folder share them.
        steps: commands from a request and that folder.
        work: what is computed.
        rows: published values, and ours if the folder is given.
        also: what of the table this command does not do, and how it is done.
        scorer: the paper's, and what takes its place; None where no text is scored.
    """

    table: int
    title: str
    paper_model: str
    protocol: str
    needs: tuple[Need, ...]
    folder: str
    steps: Callable[[Request, Path], list[Step]]
    work: Callable[[Request], Work]
    rows: rows.Rows
    any_size: bool = False
    also: str = ""
    scorer: PaperScorer | None = None


def _conditions(request: Request, masks: int) -> int:
    """Passes over the data: the model as it is, each mask, and its random controls."""
    return 1 + masks * (1 + request.controls.count)


def _general(request: Request, folder: Path) -> list[Step]:
    options = {"out": folder / "general", "local_data": request.data, "shots": [0, 5], "limit": request.limit}
    return [Step("eval general", {**request.computing, **options}, folder / "general" / "result.json")]


def _general_work(request: Request) -> Work:
    return Work(
        _OPTIONS * (120 + 700), 0, f"{_OPTIONS:,} options of all questions; 120 tokens each without and 700 with five "
        "examples are assumed",
    )  # fmt: skip


def _domains(request: Request, folder: Path) -> list[Step]:
    options = {
        "out": folder / "domains", "local_data": request.data, "ratio": 2.0, "controls": request.controls,
        "identify_on": "held_out" if request.held_out else "same", "limit": request.limit,
    }  # fmt: skip
    return [Step("eval domains", {**request.computing, **options}, folder / "domains" / "result.json")]


def _domains_work(request: Request) -> Work:
    passes = 1 + 14 + request.controls.count
    return Work(
        _MMLU * 120 * (passes + 1), 0, f"{passes} passes over MMLU's {_MMLU:,} options (random controls on their own "
        "category only) and one to find experts; 120 tokens an option are assumed",
    )  # fmt: skip


def _local(request: Request, *paths: Path | None) -> tuple[Path, ...]:
    """The paths, and the model's folder if it is on this machine."""
    model = Path(request.model) if request.model else None
    return tuple(path for path in (model, *paths) if path is not None and (path is not model or path.is_dir()))


def _language_masks(request: Request, folder: Path) -> list[Step]:
    statistics, masks = folder / "statistics.safetensors", folder / "masks"
    reading = {"out": statistics, "data": request.data, "split": "identify", "max_windows": request.limit}
    return [
        Step("stats", {**request.computing, **reading}, statistics, resumes=False, reads=_local(request, request.data)),
        Step("select", {"statistics": statistics, "out": masks, "rule": "ratio", "ratio": 2.0}, masks / "summary.json",
             resumes=False, reads=(statistics,)),
    ]  # fmt: skip


def _language_work(request: Request) -> Work:
    return Work(60e6, 0, "10 million tokens of text a language are assumed; DATA decides", seq_len=2048)


def _code(request: Request, folder: Path) -> list[Step]:
    options = {
        "out": folder / "code", "masks": folder / "masks", "problems": request.problems, "benchmark": "humaneval",
        "libraries": request.libraries, "limit": request.limit, "allow_code_execution": request.allow_code_execution,
        "num_samples": 200, "ks": [1, 10, 100], "temperature": 0.8, "batch_size": 200,
        "controls": request.controls,
    }  # fmt: skip
    suite = Step("eval code", {**request.computing, **options}, folder / "code" / "result.json")
    return [*_language_masks(request, folder), suite]


def _code_work(request: Request) -> Work:
    passes = (1 + _LANGUAGES) * _LANGUAGES + _LANGUAGES * request.controls.count
    steps = passes * _PROBLEMS * 512
    return Work(
        60e6, steps, f"{passes} passes (the model as it is and each mask in {_LANGUAGES} languages, random controls in "
        f"their own) x {_PROBLEMS} problems, the 200 samples of a problem at once, all of 512 new tokens (most end "
        "sooner), and 60 million tokens to find experts are assumed",
    )  # fmt: skip


def _toxicity(protocol: str, source: str, scorer: PaperScorer) -> Callable[[Request, Path], list[Step]]:
    def steps(request: Request, folder: Path) -> list[Step]:
        scores, statistics, masks = folder / "scores.jsonl", folder / "statistics.safetensors", folder / "masks"
        asked = {"prompts": request.prompts, "limit": request.limit}
        asked["scorer"] = scorer.chosen(request.scorer)
        kept = {"kept_scores": folder / "kept_scores", "progress": request.progress}
        chosen = {"statistics": statistics, "out": masks, "rule": "pearson", "threshold": list(THRESHOLDS)}
        # The averages stand beside the masks; whether they are above chance is not asked here.
        ability = {
            "out": folder / "general", "masks": masks, "controls": ControlOptions(count=0), "local_data": request.data,
            "shots": [0], "limit": request.limit,
        }  # fmt: skip
        beside = {
            "out": folder / "toxicity",
            "masks": masks,
            "controls": request.controls,
            "protocol": protocol,
            "subset": "evaluate",
            "general": [folder / "general"],
        }
        subset = "identify" if request.held_out else "all"
        return [
            Step("eval toxicity-scores", {**asked, **kept, "out": scores, "source": source, "subset": subset}, scores),
            Step("stats", {**request.computing, "scores": scores, "out": statistics}, statistics, resumes=False,
                 reads=_local(request, scores)),
            Step("select", chosen, masks / "summary.json", resumes=False, reads=(statistics,)),
            Step("eval general", {**request.computing, **ability}, folder / "general" / "result.json"),
            Step("eval toxicity", {**request.computing, **asked, **kept, **beside},
                 folder / "toxicity" / "result.json"),
        ]  # fmt: skip

    return steps


def _toxicity_work(prompts: int, samples: int, new_tokens: int, texts: int) -> Callable[[Request], Work]:
    def work(request: Request) -> Work:
        conditions, general = _conditions(request, len(THRESHOLDS)), 1 + len(THRESHOLDS)
        scored = conditions * prompts * samples
        return Work(
            texts * 30 + general * _OPTIONS * 120,
            scored / 100 * new_tokens,
            f"{conditions} conditions x {prompts:,} prompts x {samples} continuations of {new_tokens} tokens, 100 at "
            f"once; {general} conditions x the eight benchmarks of 120 tokens an option; {texts:,} texts of 30 tokens "
            f"to find experts; all assumed. The scorer reads {scored:,} continuations, which is not counted",
        )

    return work


def _nothing(request: Request, folder: Path) -> list[Step]:
    return []


_BASE = "MonetLLM/monet-vd-1.4B-100BT-hf, or a model of yours"
_OPEN = "--held_out true chooses them on others"
_GIVEN = (
    "The scores that experts are chosen by are the data set's own, which are the Perspective API's of 2020. The "
    "continuations are scored by the classifier named here, in the paper by the Perspective API, which ends on 31 "
    "December 2026."
)

EXPERIMENTS = (
    Experiment(
        2, "general ability, 0- and 5-shot", "Monet-VD 1.4B",
        "Eight benchmarks through lm-evaluation-harness, cloze style, acc_norm; the paper names neither style nor "
        "metric. Values of single benchmarks are those of the released models' cards.",
        (needs.model("any of MonetLLM/monet-{hd,vd}-{850M,1.4B,4.1B}-100BT-hf, or a model of yours"), needs.LM_EVAL,
         needs.BENCHMARKS, needs.GPU),
        ".", _general, _general_work, rows.general, any_size=True,
        also="The paper's 0-shot averages of LLaMA are .463, .484 and .520 (770M, 1.3B, 3.8B); their weights are not "
        "released. Train twins with configs/pretrain/llama_*.yaml.",
    ),
    Experiment(
        3, "programming languages removed, pass@100", "CodeMonet-VD 1.4B",
        "Experts at twice the second language's mean weight; 200 samples at temperature 0.8, pass@100 on MultiPL-E's "
        "HumanEval. The paper does not say what text the experts were chosen on.",
        (needs.model("MonetLLM/codemonet-vd-1.4B-100BT-hf, or a model of code"),
         needs.text("--data: folder of `monet data prepare` with a split `identify` and the domains python, cpp, java, "
                    "javascript, lua, php (configs/data/starcoder.yaml)"),
         needs.PROBLEMS, needs.PERMISSION, needs.RUNTIMES, needs.GPU),
        "languages", _code, _code_work, rows.code,
        also="The smallest and the largest change over the six languages are compared; the suite's own report has all.",
    ),
    Experiment(
        4, "toxic experts removed, RealToxicityPrompts", "Monet-VD 1.4B",
        "Experts whose weight correlates with a text's toxicity above 0.2, 0.1 or 0.05; each token has its text's "
        "score, which the paper leaves open. 25 continuations of 20 tokens, temperature 1, top-p 0.9, challenging "
        f"prompts. Experts are chosen on all prompts, as the paper seems to; {_OPEN}. {_GIVEN}",
        (needs.model(_BASE), needs.prompts("--prompts: prompts.jsonl of RealToxicityPrompts"),
         *needs.scorer(REAL_TOXICITY_PROMPTS), needs.LM_EVAL, needs.BENCHMARKS, needs.GPU),
        "toxic_prompts", _toxicity("realtoxicityprompts", "given", REAL_TOXICITY_PROMPTS),
        _toxicity_work(1_199, 25, 20, 200_000), rows.toxic_prompts, scorer=REAL_TOXICITY_PROMPTS,
    ),
    Experiment(
        5, "toxic experts removed, ToxiGen", "Monet-VD 1.4B",
        "As Table 4, with ToxiGen's prompts for choosing and judging: one greedy continuation of 30 tokens. "
        f"Experts are chosen on all prompts, as the paper seems to; {_OPEN}.",
        (needs.model(_BASE), needs.prompts("--prompts: ToxiGen's files of prompts, hate_*.txt and neutral_*.txt"),
         *needs.scorer(TOXIGEN), needs.LM_EVAL, needs.BENCHMARKS, needs.GPU),
        "toxigen", _toxicity("toxigen", "scorer", TOXIGEN), _toxicity_work(31_000, 1, 30, 31_000), rows.toxigen,
        scorer=TOXIGEN,
    ),
    Experiment(
        8, "parameters and operations by sharing of routers", "Monet-VD 1.4B",
        "Counted from the configurations, attention over the whole square as the paper seems to count.",
        (), "counts", _nothing, lambda request: Work(0, 0, "nothing is computed but sums"), rows.counts,
        also="Its 5-shot averages (.518 LLaMA, .510 a router for four layers, .511 a router a layer) need models "
        "trained on 100 billion tokens each: `python train.py fit --config configs/pretrain/recipe.yaml --config "
        "configs/pretrain/monet_1.4b_vd.yaml --model.shape.moe_groups 1 --run_dir DIR`, then `monet export` and "
        "`monet reproduce --table 2`. `monet plan` tells their cost. Likewise Table 7, with "
        "--model.router_loss.uniformity_weight and --model.router_loss.ambiguity_weight 0, 2e-4, 1e-3 and 5e-3 (its "
        "5-shot averages: .505, .505, .510, .502).",
    ),
    Experiment(
        9, "experts of MMLU's categories", "Monet-VD 1.4B",
        "Experts at twice the second category's mean weight, chosen on the questions that are asked, as the paper "
        f"seems to; {_OPEN}.",
        (needs.model(_BASE), needs.LM_EVAL, needs.BENCHMARKS, needs.GPU),
        ".", _domains, _domains_work, rows.domain_experts,
    ),
    Experiment(
        10, "experts of programming languages", "CodeMonet-VD 1.4B",
        "Experts at twice the second language's mean weight. The paper does not say on what text.",
        (needs.model("MonetLLM/codemonet-vd-1.4B-100BT-hf, or a model of code"),
         needs.text("--data: as for Table 3"), needs.GPU),
        "languages", _language_masks, _language_work, rows.code_experts,
    ),
    Experiment(
        11, "MMLU's categories removed", "Monet-VD 1.4B",
        "As Table 9; every category's experts removed in turn, 0-shot, all categories asked.",
        (needs.model(_BASE), needs.LM_EVAL, needs.BENCHMARKS, needs.GPU),
        ".", _domains, _domains_work, rows.domains,
        also="The result's own report has the whole matrix in the layout of the paper's table.",
    ),
)  # fmt: skip
TABLES: dict[int, Experiment] = {one.table: one for one in EXPERIMENTS}
