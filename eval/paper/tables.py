"""The paper's tables as experiments: requirements, commands, cost and published values of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from monet.eval.attribution.control_options import ControlOptions
from monet.eval.paper import request as needs
from monet.eval.paper import rows
from monet.eval.paper.estimate import Work
from monet.eval.paper.published import THRESHOLDS
from monet.eval.paper.request import Need, Request, Step
from monet.eval.paper.scorer import REAL_TOXICITY_PROMPTS, TOXIGEN, PaperScorer

_OPTIONS = 130_705  # options of all test questions of the eight benchmarks, MMLU's 14,042 x 4 among them
_MMLU = 56_168  # options of MMLU only
_LANGUAGES, _PROBLEMS = 6, 161


@dataclass(frozen=True)
class Experiment:
    """One table of the paper.

    Args:
        table: number of the table.
        title: title of the table.
        paper_model: model of the published values, such as "Monet-VD 1.4B".
        any_size: whether values of every size are published; then those of our model's size are used.
        protocol: settings, and what the paper leaves open.
        needs: requirements in addition to a folder for the results.
        folder: folder below OUT for results; tables with the same folder share results.
        steps: function from a request and that folder to commands.
        work: function from a request to its computation.
        rows: function that returns published values, and ours if the folder is given.
        also: the parts of the table that this command does not do, and how to do them.
        scorer: the paper's scorer, and our replacement; None if no text is scored.
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
    """Number of passes over the data: the unmasked model, each mask, and its random controls."""
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
        "category only) and one to find experts; 120 tokens per option are assumed",
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
    return Work(60e6, 0, "10 million tokens of text per language are assumed; DATA decides", seq_len=2048)


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
        60e6, steps, f"{passes} passes x {_PROBLEMS} problems: the unmasked model and each mask in {_LANGUAGES} "
        "languages, random controls only in their own. Assumptions: all 200 samples of a problem run at once, each "
        "has 512 new tokens (most end sooner), and finding experts takes 60 million tokens",
    )  # fmt: skip


def _toxicity(protocol: str, source: str, scorer: PaperScorer) -> Callable[[Request, Path], list[Step]]:
    def steps(request: Request, folder: Path) -> list[Step]:
        scores, statistics, masks = folder / "scores.jsonl", folder / "statistics.safetensors", folder / "masks"
        asked = {"prompts": request.prompts, "limit": request.limit}
        asked["scorer"] = scorer.chosen(request.scorer)
        kept = {"kept_scores": folder / "kept_scores", "progress": request.progress}
        chosen = {"statistics": statistics, "out": masks, "rule": "pearson", "threshold": list(THRESHOLDS)}
        # Only the averages under the masks are needed, without a comparison with chance.
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
            f"once; {general} conditions x the eight benchmarks of 120 tokens per option; {texts:,} texts of 30 "
            f"tokens to find experts; all assumed. The scorer reads {scored:,} continuations, which are not counted",
        )

    return work


def _nothing(request: Request, folder: Path) -> list[Step]:
    return []


_BASE = "MonetLLM/monet-vd-1.4B-100BT-hf, or your own model"
_OPEN = "--held_out true chooses them on held-out ones"
_GIVEN = (
    "The experts are chosen by the scores of the data set, which the Perspective API gave in 2020. The classifier "
    "named here scores the continuations. The paper used the Perspective API, which ends on 31 December 2026."
)

EXPERIMENTS = (
    Experiment(
        2, "general ability, 0- and 5-shot", "Monet-VD 1.4B",
        "Eight benchmarks through lm-evaluation-harness, cloze style, acc_norm; the paper names neither style nor "
        "metric. Values of single benchmarks are those of the released models' cards.",
        (needs.model("any of MonetLLM/monet-{hd,vd}-{850M,1.4B,4.1B}-100BT-hf, or your own model"), needs.LM_EVAL,
         needs.BENCHMARKS, needs.GPU),
        ".", _general, _general_work, rows.general, any_size=True,
        also="The paper's 0-shot averages of LLaMA are .463, .484 and .520 (770M, 1.3B, 3.8B); their weights are not "
        "released. Train twins with configs/pretrain/llama_*.yaml.",
    ),
    Experiment(
        3, "programming languages removed, pass@100", "CodeMonet-VD 1.4B",
        "Experts belong to a language if their mean weight is at least twice that in any other; 200 samples at "
        "temperature 0.8, pass@100 on MultiPL-E's HumanEval. The paper does not name the text that the experts were "
        "chosen on.",
        (needs.model("MonetLLM/codemonet-vd-1.4B-100BT-hf, or a model of code"),
         needs.text("--data: folder of `monet data prepare` with a split `identify` and the domains python, cpp, java, "
                    "javascript, lua, php (configs/data/starcoder.yaml)"),
         needs.PROBLEMS, needs.PERMISSION, needs.RUNTIMES, needs.GPU),
        "languages", _code, _code_work, rows.code,
        also="The comparison shows the smallest and the largest change over languages; the suite's report shows all.",
    ),
    Experiment(
        4, "toxic experts removed, RealToxicityPrompts", "Monet-VD 1.4B",
        "Experts are toxic if their weight correlates with a text's toxicity above 0.2, 0.1 or 0.05. Each token has "
        "its text's score, which the paper leaves open. 25 continuations of 20 tokens, temperature 1, top-p 0.9, "
        f"challenging prompts. Experts are chosen on all prompts, as the paper seems to do; {_OPEN}. {_GIVEN}",
        (needs.model(_BASE), needs.prompts("--prompts: prompts.jsonl of RealToxicityPrompts"),
         *needs.scorer(REAL_TOXICITY_PROMPTS), needs.LM_EVAL, needs.BENCHMARKS, needs.GPU),
        "toxic_prompts", _toxicity("realtoxicityprompts", "given", REAL_TOXICITY_PROMPTS),
        _toxicity_work(1_199, 25, 20, 200_000), rows.toxic_prompts, scorer=REAL_TOXICITY_PROMPTS,
    ),
    Experiment(
        5, "toxic experts removed, ToxiGen", "Monet-VD 1.4B",
        "Like Table 4, but ToxiGen's prompts choose the experts and judge them: one greedy continuation of 30 tokens. "
        f"Experts are chosen on all prompts, as the paper seems to do; {_OPEN}.",
        (needs.model(_BASE), needs.prompts("--prompts: ToxiGen's files of prompts, hate_*.txt and neutral_*.txt"),
         *needs.scorer(TOXIGEN), needs.LM_EVAL, needs.BENCHMARKS, needs.GPU),
        "toxigen", _toxicity("toxigen", "scorer", TOXIGEN), _toxicity_work(31_000, 1, 30, 31_000), rows.toxigen,
        scorer=TOXIGEN,
    ),
    Experiment(
        8, "parameters and operations by sharing of routers", "Monet-VD 1.4B",
        "Counted from the configurations, with attention over the whole square, as the paper seems to count it.",
        (), "counts", _nothing, lambda request: Work(0, 0, "only sums are computed"), rows.counts,
        also="Its 5-shot averages (.518 LLaMA, .510 one router per four layers, .511 one router per layer) need "
        "models trained on 100 billion tokens each: `python train.py fit --config configs/pretrain/recipe.yaml "
        "--config configs/pretrain/monet_1.4b_vd.yaml --model.shape.moe_groups 1 --run_dir DIR`, then `monet export` "
        "and `monet reproduce --table 2`. `monet plan` estimates their cost. Table 7 works the same way, with "
        "--model.router_loss.uniformity_weight and --model.router_loss.ambiguity_weight 0, 2e-4, 1e-3 and 5e-3 (its "
        "5-shot averages: .505, .505, .510, .502).",
    ),
    Experiment(
        9, "experts of MMLU's categories", "Monet-VD 1.4B",
        "Experts belong to a category if their mean weight is at least twice that in any other. They are chosen on "
        f"the questions that are asked, as the paper seems to do; {_OPEN}.",
        (needs.model(_BASE), needs.LM_EVAL, needs.BENCHMARKS, needs.GPU),
        ".", _domains, _domains_work, rows.domain_experts,
    ),
    Experiment(
        10, "experts of programming languages", "CodeMonet-VD 1.4B",
        "Experts belong to a language if their mean weight is at least twice that in any other. The paper does not "
        "name the text that the experts were chosen on.",
        (needs.model("MonetLLM/codemonet-vd-1.4B-100BT-hf, or a model of code"),
         needs.text("--data: the same as for Table 3"), needs.GPU),
        "languages", _language_masks, _language_work, rows.code_experts,
    ),
    Experiment(
        11, "MMLU's categories removed", "Monet-VD 1.4B",
        "Like Table 9. The experts of each category are removed in turn; all categories are asked, 0-shot.",
        (needs.model(_BASE), needs.LM_EVAL, needs.BENCHMARKS, needs.GPU),
        ".", _domains, _domains_work, rows.domains,
        also="The result's own report shows the whole matrix in the layout of the paper's table.",
    ),
)  # fmt: skip
TABLES: dict[int, Experiment] = {one.table: one for one in EXPERIMENTS}
