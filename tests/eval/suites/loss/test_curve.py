"""Curves: nested masks from one file, the numbers of an ablation at each threshold, and a record of held-out text."""

import json
from dataclasses import dataclass, replace

import pytest
import torch

from monet.cli import main
from monet.errors import CheckpointError, ConfigError, DataError
from monet.eval.ablation.measure import ablate
from monet.eval.ablation.results import AblationResult
from monet.eval.attribution.rules import Argmax, MutualInformation, Ratio, Rule, Top
from monet.eval.attribution.selection import select
from monet.eval.attribution.stats import Wanted, collect
from monet.eval.core.controls import Controls
from monet.eval.core.document import Curve, Table
from monet.eval.reporting import command as reports
from monet.eval.suites.loss.curve import CurveResult, check_nested, evaluate_curve
from monet.masks.expert_mask import ExpertMask
from tests.eval.conftest import LABELS
from tests.eval.test_commands import ROOT, road, words  # noqa: F401 - a fixture

WANTED = Wanted(firing=True)


def trace(model, statistics, data, out, rule=None, thresholds=(4.0, 1.2, 2.0), **options) -> CurveResult:
    found = evaluate_curve(
        model, statistics, rule or Ratio(), thresholds, data, out=out, progress=False, controls=Controls(2), **options
    )
    assert found is not None
    return found


@pytest.fixture
def statistics(random_model, random_data):
    return collect(random_model, random_data, wanted=WANTED, progress=False)


def test_each_point_is_the_ablation_at_its_threshold(random_model, random_data, statistics, tmp_path):
    result = trace(random_model, statistics, random_data, tmp_path / "curve", control_on="all")
    assert [point.threshold for point in result.points] == [4.0, 2.0, 1.2]
    for point in result.points:
        single = ablate(
            random_model, select(statistics, point.threshold), random_data, out=tmp_path / "one", controls=Controls(2),
            control_on="all", progress=False,
        )  # fmt: skip
        assert point.domains == single.domains
    shares = [[verdict.share for verdict in point.domains] for point in result.points]
    assert all(a <= b <= c for a, b, c in zip(*shares, strict=True)) and shares[0] != shares[2]
    assert result.nested and result.provenance["held_out"] is False


def test_the_report_has_a_curve_and_a_table_a_label(random_model, random_data, statistics, tmp_path):
    result = trace(random_model, statistics, random_data, tmp_path, keep=0.5)
    report = result.report()
    curves = [block for block in report.blocks if isinstance(block, Curve)]
    overview, *tables, _ = [block for block in report.blocks if isinstance(block, Table)]
    assert overview.header == ["removed", "4", "2", "1.2"]
    for label, row in enumerate(overview.rows):
        verdicts = [point.domains[label] for point in result.points]
        assert row[0] == LABELS[label]
        for verdict, cell in zip(verdicts, row[1:], strict=True):
            changes = [verdict.target_delta, verdict.others_mean_delta, verdict.random_delta]
            assert [float(text) for text in cell.split(" / ")] == pytest.approx(changes, abs=5e-4)
    assert [curve.title.split(":")[0] for curve in curves] == LABELS
    for label, (curve, table) in enumerate(zip(curves, tables, strict=True)):
        itself, others, random = curve.series
        verdicts = [point.domains[label] for point in result.points]
        assert list(itself.x) == [100 * verdict.share for verdict in verdicts]
        assert list(itself.y) == [verdict.target_delta for verdict in verdicts]
        assert list(others.y) == [verdict.others_mean_delta for verdict in verdicts]
        assert list(random.y) == [verdict.random_delta for verdict in verdicts]
        assert itself.low is not None and list(itself.low) == [verdict.target_interval[0] for verdict in verdicts]
        assert [row[0] for row in table.rows] == ["4", "2", "1.2"]
        assert all(len(row) == len(table.header) for row in table.rows)
    text = " ".join(block.text for block in report.blocks if hasattr(block, "text"))
    assert "weakened to 0.5 of their weight" in text and "so they look better than they are" in text


@pytest.mark.parametrize("rule", [MutualInformation(), Top(fraction=0.5), Top(fraction=0.1, by="mean", per="group")])
def test_other_rules_are_nested_too(random_model, random_data, statistics, tmp_path, rule):
    result = trace(random_model, statistics, random_data, tmp_path, rule, (0.02, 0.1, 0.2), control_on="target")
    assert len({point.domains[0].removed for point in result.points}) > 1


def test_results_survive_json_and_are_kept(random_model, random_data, statistics, tmp_path, monkeypatch):
    result = trace(random_model, statistics, random_data, tmp_path)
    assert CurveResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert CurveResult.from_json(json.loads((tmp_path / "result.json").read_text())) == result

    def fails(*_, **__):
        raise AssertionError("kept losses are read, not computed")

    monkeypatch.setattr(random_model, "forward", fails)
    again = trace(random_model, statistics, random_data, tmp_path)
    undated = {"provenance": {**result.provenance, "date": ""}}
    assert replace(again, **undated) == replace(result, **undated)
    with pytest.raises(CheckpointError, match="format 'x'"):
        CurveResult.from_json({"format": "x"})
    with pytest.raises(CheckpointError, match=r"damaged monet-curve/2: .*`rule`"):
        CurveResult.from_json({"format": CurveResult.FORMAT})


def test_masks_that_are_not_nested_are_refused():
    keep = torch.ones(1, 3, 3, dtype=torch.bool)
    one, two = keep.clone(), keep.clone()
    one[0, 0, 0], two[0, 1] = False, False
    with pytest.raises(ConfigError, match="masks of 'a' that remove 1 and 3 experts are not nested"):
        check_nested([{"a": ExpertMask(two)}, {"a": ExpertMask(one)}])
    two[0, 0, 0] = False
    check_nested([{"a": ExpertMask(two)}, {"a": ExpertMask(one)}, {"a": ExpertMask(keep)}])


@dataclass(frozen=True)
class Fickle(Rule):
    """A rule that chooses other experts at every threshold."""

    name = "fickle"
    threshold_name = "first"
    first: int = 0

    def chosen(self, statistics):
        chosen_REE = torch.zeros(statistics.sums_CREE.shape[1:], dtype=torch.bool)
        chosen_REE[0, self.first] = True
        return {"left": chosen_REE}


def test_a_rule_whose_masks_are_not_nested_has_no_curve(random_model, random_data, statistics, tmp_path):
    with pytest.raises(ConfigError, match="masks of 'left' that remove 5 and 5 experts are not nested"):
        trace(random_model, statistics, random_data, tmp_path, Fickle(), (0, 1))


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({"rule": Argmax()}, ConfigError, "argmax has no threshold"),
        ({"thresholds": ()}, ConfigError, r"thresholds \[\]"),
        ({"thresholds": (2.0, 2.0)}, ConfigError, "none twice"),
        ({"thresholds": (2.0, 0.5)}, ConfigError, "at least 1"),
        ({"keep": -0.1}, ConfigError, r"keep -0\.1"),
    ],
)
def test_refused(random_model, random_data, statistics, tmp_path, options, kind, match):
    with pytest.raises(kind, match=match):
        trace(random_model, statistics, random_data, tmp_path, **options)
    assert not list(tmp_path.iterdir())


# -- the verbs, folder to folder --------------------------------------------------------------------------------------


def source(road) -> list[str]:  # noqa: F811
    return ["--model", str(road / "model"), "--data", str(road / "data"), "--seq_len", "16", "--progress", "false"]


def test_from_shards_to_a_report(road, tmp_path, capsys):  # noqa: F811
    files = [str(tmp_path / f"part-{n}.safetensors") for n in range(2)]
    for n, file in enumerate(files):
        assert main(["stats", *source(road), "--firing", "--shard", f"{n}/2", "--out", file]) == 0
    merged = str(tmp_path / "statistics.safetensors")
    assert main(["stats", "merge", *files, "--out", merged]) == 0
    assert "statistics, with firing" in capsys.readouterr().out
    curve = ["curve", *source(road), "--statistics", merged, "--controls.count", "2", "--out", str(tmp_path / "c")]
    assert main([*curve, "--thresholds", "[3, 1.2]"]) == 0
    result = CurveResult.from_json(json.loads((tmp_path / "c" / "result.json").read_text()))
    assert result.provenance["held_out"] is True and result.provenance["data"]["split"] == "evaluate"
    assert main(["report", "--result", str(tmp_path / "c"), "--out", str(tmp_path / "report")]) == 0
    assert "mean of the others" in (tmp_path / "report" / "report.md").read_text()
    rule = ["--rule", "mutual_information", "--thresholds", "[0.001]", "--protocol", "same"]
    assert main([*curve, *rule, "--keep", "0.3"]) == 0
    result = CurveResult.from_json(json.loads((tmp_path / "c" / "result.json").read_text()))
    assert result.provenance["held_out"] is False and result.provenance["data"]["split"] == "identify"
    assert result.provenance["keep"] == 0.3 and result.rule["rule"] == "mutual_information"
    assert main(["stats", "merge", files[0], files[0], "--out", merged]) == 4
    assert main(["stats", "merge", files[0], "--out", merged]) == 2
    assert main([*curve, "--thresholds", "[2]", "--rule", "argmax"]) == 2


def test_a_scored_file_to_masks_by_correlation(road, tmp_path, capsys):  # noqa: F811
    lines = (road / "corpus").rglob("*.jsonl")
    texts = [(json.loads(line)["text"], file.parent.name) for file in lines for line in file.read_text().splitlines()]
    records = [{"text": text[:80], "score": float(name == "python"), "label": name} for text, name in texts[::3]]
    scores = tmp_path / "scores.jsonl"
    scores.write_text("\n".join(map(json.dumps, [*records, {"text": "no answer", "score": None}])))
    file = str(tmp_path / "s.safetensors")
    model = ["--model", str(road / "model"), "--progress", "false"]
    assert main(["stats", *model, "--scores", str(scores), "--seq_len", "16", "--maxima", "--out", file]) == 0
    shown = capsys.readouterr().out
    assert f"of {len(records) + 1} records left out: 1 unscored" in shown and "with scores, maxima" in shown
    select_by = ["select", "--statistics", file, "--rule", "pearson", "--out", str(tmp_path / "masks")]
    assert main([*select_by, "--threshold", "[0.05, 0.3]", "--label", "python"]) == 0
    summary = json.loads((tmp_path / "masks" / "summary.json").read_text())
    assert list(summary["labels"]) == ["python 0.05", "python 0.3"] and summary["threshold"] == [0.05, 0.3]
    assert summary["labels"]["python 0.05"]["experts"] > summary["labels"]["python 0.3"]["experts"]
    assert main([*select_by, "--threshold", "0.05", "--label", "python", "--keep", "0.5"]) == 0
    options = ["--masks", str(tmp_path / "masks"), "--controls.count", "1", "--out", str(tmp_path / "ablation")]
    assert main(["ablate", *source(road), *options]) == 0
    verdict = AblationResult.load(tmp_path / "ablation").domains[0]
    assert verdict.name == "python" and verdict.removed == summary["labels"]["python 0.05"]["experts"]
    assert main([*select_by, "--threshold", "[0.1]", "--count", "3"]) == 2
    assert main(["stats", *model, "--scores", str(scores), "--data", str(road / "data"), "--out", file]) == 2
    assert main(["stats", *model, "--scores", str(scores), "--domains", "[x]", "--out", file]) == 2
    assert main(["stats", *model, "--out", file]) == 2


def test_generation_takes_a_soft_mask(road, tmp_path, capsys):  # noqa: F811
    for verb in ("stats", "select"):
        assert main([*words(verb, road, tmp_path), *(["--keep", "0.3"] if verb == "select" else [])]) == 0
    mask = next((tmp_path / "masks").glob("*.safetensors"))
    assert not ExpertMask.load(mask).is_hard
    prompt = ["--prompt", "the river", "--max_new_tokens", "3", "--mask", str(mask)]
    assert main(["generate", "--model", str(road / "model"), *prompt]) == 0, capsys.readouterr()


def test_ablation_on_the_split_of_the_masks(road, tmp_path, capsys):  # noqa: F811
    for verb in ("stats", "select"):
        assert main(words(verb, road, tmp_path)) == 0
    options = [*words("ablate", road, tmp_path), "--controls.count", "1", "--control_on", "target"]
    assert main([*options, "--protocol", "same"]) == 0
    result = AblationResult.load(tmp_path / "ablation")
    assert result.provenance["held_out"] is False and result.provenance["data"]["split"] == "identify"
    assert main([*options, "--protocol", "same", "--split", "evaluate"]) == 2
    assert "leave out split 'evaluate'" in capsys.readouterr().err


def test_the_strongest_experts_are_chosen_in_a_pass_before(road, tmp_path):  # noqa: F811
    from monet.eval.attribution.stats import ExpertStatistics

    file = tmp_path / "s.safetensors"
    command = ["stats", *source(road), "--max_windows", "4", "--out", str(file)]
    assert main([*command, "--coactivation", "3"]) == 0
    found = ExpertStatistics.load(file)
    assert found.coactivation is not None and torch.equal(found.coactivation.experts_RN, found.strongest(3))
    assert main([*command, "--coactivation", "{0: [7, 2], 1: [3]}"]) == 0
    found = ExpertStatistics.load(file)
    assert found.coactivation is not None and found.coactivation.experts_RN.tolist() == [[7, 2], [3, -1]]
    assert main([*command, "--coactivation", "3", "--shard", "0/2"]) == 2
    assert main([*command, "--coactivation", "{0: [99]}"]) == 2
    assert main([*command, "--shard", "2"]) == 2


def test_a_curve_of_another_folder_is_not_the_same_text(road, tmp_path, random_model, random_data):  # noqa: F811
    with pytest.raises(DataError, match="were chosen on other text than split 'identify'"):
        from monet.eval.core.held_out import check_protocol
        from monet.eval.core.inputs import PreparedWindows

        check_protocol("same", [{"content": "x", "split": "identify"}], PreparedWindows(road / "data", "identify", 16))


def test_reports_know_the_format():
    assert reports.FORMATS[CurveResult.FORMAT][0] == "monet.eval.suites.loss.curve:CurveResult"
