"""`monet reproduce`: listings, refusals, and runs on small models that give the same numbers as the suites."""

import importlib
import inspect
import json
import shlex
from pathlib import Path

import pytest

from monet import cli
from monet.cli import VERBS, main
from monet.errors import ConfigError
from monet.eval.attribution.control_options import ControlOptions
from monet.eval.core.estimate import Estimate
from monet.eval.paper import reproduce
from monet.eval.paper.request import LM_EVAL, Request, Step
from monet.eval.paper.result import ReproductionResult
from monet.eval.paper.tables import EXPERIMENTS, TABLES
from monet.eval.reporting import command as report
from monet.eval.scorers.scorers import ScorerSettings
from monet.eval.suites.toxicity.results import ALL
from monet.extras import install_command
from monet.options import arguments_of

ROOT = Path(__file__).resolve().parents[3]
QUICK = ["--controls.count", "1", "--progress", "false", "--device", "cpu"]


def given(folder: Path) -> Request:
    prompts = folder / "prompts.jsonl"
    prompts.write_text("{}")
    return Request(
        model="M", out=folder, data=folder, prompts=[prompts], scorer=ScorerSettings(kind="classifier", model="C"),
        allow_code_execution=True, limit=7,
    )  # fmt: skip


def run(table: int, out: Path, *words) -> ReproductionResult:
    assert main(["reproduce", "--table", str(table), "--out", str(out), *QUICK, *map(str, words)]) == 0
    result = report.load(out / f"table-{table}")
    assert isinstance(result, ReproductionResult)
    return result


def values(result: ReproductionResult) -> dict[str, float | None]:
    return {row.name: row.value for row in result.rows}


def test_without_a_table_all_are_listed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["reproduce"]) == 0
    shown = capsys.readouterr().out
    for experiment in EXPERIMENTS:
        assert experiment.title in shown
    assert "GPU hours (h100)" in shown and "are assumed" in shown


@pytest.mark.parametrize("table", TABLES)
def test_a_table_tells_its_needs_commands_and_published_values(table, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("PERSPECTIVE_API_KEY", raising=False)
    assert main(["reproduce", "--table", str(table)]) == 0
    shown = capsys.readouterr().out
    experiment = TABLES[table]
    for row in experiment.rows(None, experiment.paper_model):
        assert row.value is None and f"{row.published:,.{row.digits}f}" in shown
    for need in experiment.needs:
        assert need.name in shown
    assert "arXiv 2412.04139" in shown and "missing: name a folder" in shown
    for step in experiment.steps(Request(model="MODEL"), Path("OUT")):
        assert f"monet {step.verb}" in shown


@pytest.mark.parametrize("table", TABLES)
def test_commands_are_what_the_verbs_take(table, tmp_path):
    """Every option exists. The typed command parses and gives the function the same values."""

    for step in TABLES[table].steps(given(tmp_path), tmp_path / "run"):
        module, _, name = VERBS[step.verb].target.partition(":")
        function = getattr(importlib.import_module(module), name)
        wanted = arguments_of(function, step.options)
        inspect.signature(function).bind(**wanted)
        words = shlex.split(step.command)[1 + len(step.verb.split()) :]
        parsed = cli.parsed(function, words, "monet")
        for key, value in wanted.items():
            if value is not None:
                assert str(parsed[key]) == str(value), (step.verb, key)


def test_an_absent_harness_is_installed_by_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert LM_EVAL.missing(Request()) == install_command("eval")


def test_everything_that_is_missing_is_named_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("PERSPECTIVE_API_KEY", raising=False)
    assert main(["reproduce", "--table", "3", "--model", "M", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "text: name it with --data" in error and "--allow_code_execution" in error
    words = ["--table", "4", "--model", "M", "--out", str(tmp_path / "out"), "--prompts", f'["{tmp_path / "none"}"]']
    assert main(["reproduce", *words]) == 2
    error = capsys.readouterr().err
    assert "none is not a file" in error and "PERSPECTIVE_API_KEY" not in error
    assert main(["reproduce", *words, "--scorer.kind", "perspective"]) == 2
    assert "PERSPECTIVE_API_KEY is not set; set it, or score with --scorer.kind classifier" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words, code, message",
    [
        (["--table", "12"], 2, "no experiment for table 12; choose from 2, 3, 4, 5, 8, 9, 10, 11"),
        (["--gpu", "abacus"], 2, "'abacus' is not listed"),
    ],
)
def test_refusals(words, code, message, capsys):
    assert main(["reproduce", *words]) == code
    assert message in capsys.readouterr().err


def test_counts_need_no_model(tmp_path, capsys):
    result = run(8, tmp_path)
    for row in result.rows:
        assert row.value == pytest.approx(row.published, rel=0.004 if row.unit == "TFLOP" else 4e-4)
    assert not result.cautions and "6 of 6" in result.sentence
    assert {path.suffix for path in (tmp_path / "table-8").iterdir()} == {".html", ".json", ".md"}
    assert "6 of 6 published values" in capsys.readouterr().out


def test_experts_by_text_and_going_on_after_a_stop(road, tmp_path, capsys, monkeypatch):
    words = ["--model", road / "model", "--data", road / "data", "--limit", "20"]
    with monkeypatch.context() as patched:

        def stops(**_):
            raise KeyboardInterrupt

        patched.setattr("monet.eval.attribution.selection.run", stops)
        quiet = [*QUICK, "--progress", "true"]
        assert main(["reproduce", "--table", "10", "--out", str(tmp_path), *quiet, *map(str, words)]) == 130
    statistics = tmp_path / "languages" / "statistics.safetensors"
    made = statistics.stat().st_mtime_ns
    assert not (tmp_path / "table-10").exists()
    result = run(10, tmp_path, *words)
    assert statistics.stat().st_mtime_ns == made, "statistics are taken once"
    assert f"kept: {statistics}" in capsys.readouterr().out
    summary = json.loads((tmp_path / "languages" / "masks" / "summary.json").read_text())
    experts = sorted(entry["experts"] for entry in summary["labels"].values())
    assert list(values(result).values()) == [experts[0], experts[-1]]
    assert [row.published for row in result.rows] == [48_621, 175_082]
    assert "another shape" in result.cautions[0] and "At most 20 items" in result.cautions[1]
    run(10, tmp_path, *words[:-1], "10")
    assert statistics.stat().st_mtime_ns != made, "other settings are another run"


def test_removed_categories_share_one_run(model_folder, mmlu, tmp_path, capsys):
    from monet.eval.suites.questions.domains_result import DomainsResult

    words = ["--model", model_folder, "--data", mmlu, "--limit", "2"]

    def outcomes() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / "domains" / "outcomes").glob("*.jsonl")}

    eleven = run(11, tmp_path, *words)
    kept = outcomes()
    nine = run(9, tmp_path, *words)
    assert kept and kept == outcomes(), "nothing is asked twice"
    suite = report.load(tmp_path / "domains")
    assert isinstance(suite, DomainsResult)
    assert suite.provenance["identification"]["identify_on"] == "same"
    own = sorted(100 * one.target.value for one in suite.removals if one.target is not None)
    found = values(eleven)
    assert found["own category, most changed category"] == pytest.approx(own[0])
    assert found["own category, least changed category"] == pytest.approx(own[-1])
    assert values(nine)["experts of other"] == next(one.removed for one in suite.removals if one.name == "other")
    assert [row.published for row in nine.rows] == [11_045, 118_407, 2.2]


def test_a_step_runs_again_once_what_it_reads_has_changed(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(
        "monet.eval.attribution.stats.run", lambda **options: ran.append(options) or out.write_text("x")
    )
    scores, folder, out = tmp_path / "scores.jsonl", tmp_path / "model", tmp_path / "statistics.safetensors"
    folder.mkdir()
    (folder / "weights").write_text("1")
    step = Step("stats", {"out": out}, out, resumes=False, reads=(folder, scores))
    for path, content in [(scores, "1"), (scores, "1"), (scores, "1 2"), (folder / "weights", "12")]:
        path.write_text(content) if not path.exists() or path.read_text() != content else None
        reproduce.run_step(step, tmp_path / "steps.json")
    assert len(ran) == 3
    for table in (3, 4, 5, 10):
        for step in TABLES[table].steps(given(tmp_path), tmp_path / "run"):
            given_files = {value for value in step.options.values() if isinstance(value, Path)} - {step.writes}
            assert step.resumes or (step.reads and given_files - {step.options["out"]} <= set(step.reads))


@pytest.mark.slow
def test_general_ability_beside_the_cards(model_folder, data, tmp_path):
    from monet.eval.suites.questions.general_result import GeneralResult

    result = run(2, tmp_path, "--model", model_folder, "--data", data, "--limit", "2")
    suite = report.load(tmp_path / "general")
    assert isinstance(suite, GeneralResult) and [row.shots for row in suite.rows] == [0, 5]
    assert len(result.rows) == 18 and result.paper_model == "Monet-VD 1.4B"
    found = {row.name: row for row in result.rows}
    assert found["average, 5-shot"].published == 0.510
    assert found["average, 5-shot"].value == suite.rows[1].average.value
    assert found["HellaSwag, 0-shot"].value == suite.rows[0].cells["HellaSwag"].score.value


@pytest.mark.slow
def test_a_purge_from_prompts_to_the_comparison(model_folder, data, real_prompts, tmp_path, capsys):
    from monet.eval.suites.toxicity.results import ToxicityResult

    words = ["--model", model_folder, "--data", data, "--prompts", f'["{real_prompts}"]', "--scorer.kind", "words"]
    result = run(4, tmp_path, *words, "--limit", "2", "--controls.count", "0")
    suite = report.load(tmp_path / "toxic_prompts" / "toxicity")
    assert isinstance(suite, ToxicityResult)
    found = values(result)
    whole = suite.rows[0]
    cell = whole.cells.get("toxic", whole.cells[ALL])
    assert found["expected maximum toxicity, nothing removed"] == (cell.expected_max and cell.expected_max.value)
    assert found["eight benchmarks, nothing removed"] == whole.general["0-shot"]
    shares = [found[f"experts removed, r > {threshold:g}"] for threshold in (0.2, 0.1, 0.05)]
    assert None not in shares and shares == sorted(shares) and shares[-1] > 0
    assert any("these by words, the classifier that comes with Monet" in caution for caution in result.cautions)


def test_programs_beside_the_paper(road, tmp_path, monkeypatch):
    """Other tests cover the suite itself. Here it leaves a result with known changes."""
    from monet.eval.suites.code.results import CodeResult, ConditionScores, LanguageScore, LanguageVerdict

    def verdict(language: str, own: float, others: float) -> LanguageVerdict:
        known = {"name": language, "language": language, "others_max": None, "others_max_name": "", "random": None}
        known |= {"random_per_control": [], "controls": 0, "p": 1.0, "q": 1.0, "passes": False, "reason": ""}
        return LanguageVerdict(**known, target=Estimate(own, -1, 0), others_mean=Estimate(others, -1, 0))

    whole = LanguageScore("python", 1, 1, 200, {}, {}, {"100": Estimate(0.5, None, None)}, {})

    def suite(**options):
        made = CodeResult(
            executed=True, ks=[100], judged_k=100, languages={}, unavailable={}, unit="expert", group="routing group",
            held_out=None, conditions=[ConditionScores("no mask", None, None, None, [whole])], masks=[],
            verdicts=[verdict("python", -0.4, -0.01), verdict("php", -0.1, -0.02)], perplexity=None,
            partial=["lua is missing"], provenance={"options": str(options)},
        )  # fmt: skip
        made.save(options["out"])

    monkeypatch.setattr("monet.eval.suites.code.evaluate.run", suite)
    words = ["--model", road / "model", "--data", road / "data", "--allow_code_execution", "--limit", "5"]
    result = run(3, tmp_path, *words)
    assert [round(row.value, 6) for row in result.rows] == [-10.0, -40.0, -1.0, -2.0]
    assert [row.published for row in result.rows] == [-9.1, -30.6, -0.6, -1.8]
    assert any("partial" in caution for caution in result.cautions)
    content = json.loads((tmp_path / "table-3" / "result.json").read_text())
    assert ReproductionResult.from_json(content) == result
    assert [shlex.split(command)[1] for command in content["provenance"]["commands"]] == ["stats", "select", "eval"]


def test_a_command_names_the_number_of_controls_and_what_differs():
    options = {"controls": ControlOptions(count=39, kind="mass", statistics=Path("s"))}
    command = Step("eval code", options, Path("result.json")).command
    assert command == "monet eval code --controls.count 39 --controls.kind mass --controls.statistics s"


def test_a_run_refuses_what_is_missing_in_python_too(tmp_path):
    with pytest.raises(ConfigError, match="weights: name a model"):
        reproduce.reproduce(TABLES[2], Request(out=tmp_path))
