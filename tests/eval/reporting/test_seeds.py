"""`monet report` of several results: planted spreads, groups of models, and refusals."""

import dataclasses
import json
import math
from itertools import permutations
from typing import Any

import pytest
import torch

from monet import MonetForCausalLM
from monet.cli import main
from monet.errors import CheckpointError, ConfigError, DataError
from monet.eval.ablation.measure import ablate
from monet.eval.ablation.results import AblationResult, Baseline, Verdict
from monet.eval.core.controls import Controls
from monet.eval.core.estimate import Estimate
from monet.eval.reporting import command as report
from monet.eval.reporting.seeds import SeedsResult, compare
from monet.eval.suites.loss.curve import CurveResult
from monet.masks.expert_mask import ExpertMask
from tests.eval.conftest import config

WIDTH = 2 * 1.959964  # width of the 95 % interval of a normal quantity with standard deviation 1
DOMAINS = ["php", "lua"]


def result(seed: int | None, targets: list[float], sd: float = 0.1, unit: str = "expert", **changes: Any):
    """An ablation of two domains with these loss increases of the targets, each with the same SD over text."""

    def verdict(name: str, target: float) -> Verdict:
        ends = (target - sd * WIDTH / 2, target + sd * WIDTH / 2)
        passes = target > 1
        return Verdict(
            name, target, ends, 0.25, "english", 0.125, (0.0, 0.25), 0.5, (0.4, 0.6), [0.5] * 39, 39, 0.025, 0.05, 7,
            [7], 0.1, passes, "" if passes else "english lost as much or more",
        )  # fmt: skip

    training = {"seed": seed, "data_seed": 0, "step": 10, "data_fingerprint": "ab" * 32}
    origin = {"architecture": "Monet", "config_digest": "0123456789abcdef", "training": training}
    provenance = {
        "date": "2026-01-01", "versions": {}, "model_fingerprint": f"model {unit} {seed} {targets}",
        "model_origin": origin, "data_fingerprint": "text", "held_out": True,
        "controls": {"count": 39, "kind": "number", "seed": 0, "on": "target"},
        "bootstrap": {"resamples": 2000, "confidence": 0.95, "unit": "document", "seed": 0},
    }  # fmt: skip
    cell = Estimate(1.0, 0.9, 1.1)
    return AblationResult(
        unit, "routing group" if unit == "expert" else "layer",
        [verdict(name, target) for name, target in zip(DOMAINS, targets, strict=True)],
        [Baseline(name, cell, math.e, 10, 5, 5) for name in DOMAINS],
        [[cell] * 2] * 2, [[3.0] * 2] * 2, [[cell] * 2] * 2, provenance | changes,
    )  # fmt: skip


def three() -> dict[str, AblationResult]:
    """Spread over seeds: 7 ** 0.5 for php, 0.02 for lua; over text 0.1 in both."""
    targets = {"c": (2, [6.0, 0.54]), "a": (0, [1.0, 0.5]), "b": (1, [2.0, 0.52])}
    return {name: result(*found) for name, found in targets.items()}


def undated(found: SeedsResult) -> dict[str, Any]:
    content = found.to_json()
    del content["provenance"]["date"]
    return content


def table(found: SeedsResult, title: str) -> list[dict[str, str]]:
    (block,) = [block for block in report.report_of(found).blocks if title in block.title and hasattr(block, "header")]
    return [dict(zip(block.header, row, strict=True)) for row in block.rows]


def test_planted_spreads_are_found():
    found = compare(three())
    (group,) = found.groups
    assert (group.name, [run.name for run in group.runs]) == ("Monet", ["a", "b", "c"])
    php, lua = group.masks
    assert php.target.mean == 3.0 and lua.target.mean == pytest.approx(0.52)
    assert php.target.sd_seeds == pytest.approx(math.sqrt(7)) and lua.target.sd_seeds == pytest.approx(0.02)
    assert php.target.sd_text == pytest.approx(0.1) and lua.target.sd_text == pytest.approx(0.1)
    assert php.target.high - 3 == pytest.approx(4.302653 * math.sqrt(7 / 3))
    assert (php.target.larger, lua.target.larger) == ("seeds", "text")
    assert (php.passed, lua.passed) == (2, 0)
    assert php.others_mean.mean == 0.125 and php.random.sd_seeds == 0.0
    assert found.sentence == (
        "Monet, 3 seeds: 0 of 2 masks pass with every seed, 1 with at least one, the change of the target has a larger "
        "spread over seeds than over text for 1 of 2"
    )
    assert found.cautions == [
        "Monet: 3 seeds are few. The intervals of the mean are wide, and the standard deviation over seeds is "
        "uncertain. Use five or more."
    ]


def test_the_tables_show_them():
    first, second = table(compare(three()), "over seeds, nats")
    assert first["target, mean over seeds"] == "+3.000 [-3.572, +9.572]" and first["seeds"] == "3"
    assert (first["SD over seeds"], first["SD over text"], first["larger SD"]) == ("2.646", "0.100", "seeds")
    assert first["seeds that pass"] == "2 of 3" and second["larger SD"] == "text"
    every = table(compare(three()), "Every result")
    assert [(row["removed"], row["result"], row["passes"]) for row in every[:3]] == [
        ("php", "a", "no"), ("php", "b", "yes"), ("php", "c", "yes"),
    ]  # fmt: skip
    assert every[0]["target"] == "+1.000 [+0.804, +1.196]" and every[0]["worst other"] == "+0.250 (english)"
    assert (every[0]["p"], every[0]["q"], every[0]["controls"]) == ("0.025", "0.05", "39")
    assert [row["seed of weights"] for row in table(compare(three()), "Models")] == ["0", "1", "2"]


def test_the_order_of_the_results_does_not_matter():
    whole = three()
    wanted = undated(compare(whole))
    for names in permutations(whole):
        assert undated(compare({name: whole[name] for name in names})) == wanted
        assert undated(compare({name: whole[name] for name in names}, ["Monet"] * 3)) == wanted


def test_other_models_are_other_groups():
    dense = result(0, [0.5, 0.5], unit="neuron")
    content = dense.to_json()
    content["provenance"]["model_origin"] |= {"architecture": "Llama"}
    found = compare({**three(), "dense": AblationResult.from_json(content)})
    assert [(group.name, len(group.runs)) for group in found.groups] == [("Llama", 1), ("Monet", 3)]
    assert found.groups[0].masks[0].target is None
    assert any("Llama: there is only one result" in words for words in found.cautions)
    rows = table(found, "over seeds, nats")
    assert [(row["removed"], row["model"], row["target, mean over seeds"]) for row in rows[:2]] == [
        ("php", "Llama", "+0.500"), ("php", "Monet", "+3.000 [-3.572, +9.572]"),
    ]  # fmt: skip
    longer = result(3, [1.0, 1.0])
    longer.provenance["model_origin"]["training"]["step"] = 20
    names = [group.name for group in compare({**three(), "longer": longer}).groups]
    assert names == ["Monet, step 10", "Monet, step 20"]
    joined = compare({**three(), "longer": longer}, ["all"] * 4)
    assert [(group.name, len(group.runs)) for group in joined.groups] == [("all", 4)]


def test_a_result_of_another_text_is_refused():
    for changed in ({"data_fingerprint": "other"}, {"bootstrap": {"confidence": 0.9, "unit": "document"}}):
        with pytest.raises(DataError, match="c and d were not measured on the same text in the same way"):
            compare({**three(), "d": result(3, [1.0, 1.0], **changed)})
    with pytest.raises(DataError, match=r"\(text: text and other\)"):
        compare({**three(), "d": result(3, [1.0, 1.0], data_fingerprint="other")})


def test_results_of_several_kinds_are_refused():
    curve = CurveResult({"rule": "ratio"}, True, [], {})
    with pytest.raises(ConfigError, match="c holds monet-ablation/2, curve holds monet-curve/2"):
        compare({**three(), "curve": curve})
    with pytest.raises(ConfigError, match=r"results of `monet curve` .* are not compared over seeds"):
        compare({"a": curve, "b": curve})


def test_other_refusals():
    again = {**three(), "d": three()["a"]}
    with pytest.raises(DataError, match="a and d are results of one model"):
        compare(again)
    assert len(compare(again, ["first", "first", "first", "second"]).groups) == 2
    unknown = result(None, [1.0, 1.0])
    del unknown.provenance["model_origin"]
    with pytest.raises(ConfigError, match=r"d does not record its model's configuration.*--group"):
        compare({**three(), "d": unknown})
    assert len(compare({**three(), "d": unknown}, ["all"] * 4).groups[0].runs) == 4
    with pytest.raises(ConfigError, match="2 names of groups for 3 results"):
        compare(three(), ["x", "y"])
    with pytest.raises(ConfigError, match=r"group 'all' has results about several units \(experts and neurons\)"):
        compare({**three(), "d": result(3, [1.0, 1.0], unit="neuron")}, ["all"] * 4)


def test_cautions_tell_what_flatters_or_differs():
    twin = result(0, [1.5, 0.5], held_out=None, controls={"count": 19, "kind": "mass"})
    cautions = compare({**three(), "twin": twin}).cautions
    assert "Monet: the models of a and twin were trained with the same seeds." in cautions
    assert any("in twin the masks were chosen on the text they are evaluated on" in words for words in cautions)
    assert "The results differ in their random controls: 19 of equal mass in twin; 39 of equal number in a, b, c." in (
        cautions
    )
    five = {**three(), **{name: result(3 + n, [1.0 + n, 0.5]) for n, name in enumerate("de")}}
    assert compare(five).cautions == []


def test_a_mask_that_some_results_lack():
    short = result(3, [1.0, 1.0])
    short = dataclasses.replace(short, domains=short.domains[:1])
    php, lua = compare({**three(), "short": short}).groups[0].masks
    assert (php.target.seeds, lua.target.seeds) == (4, 3)
    only = compare({"c": three()["c"], "short": short}).groups[0].masks[1]
    assert only.target is None and list(only.effects) == ["c"]


def test_a_result_is_read_back_with_every_field_checked():
    content = compare(three()).to_json()
    assert SeedsResult.from_json(content) == SeedsResult.from_json(json.loads(json.dumps(content)))
    content["groups"][0]["masks"][0]["target"]["seeds"] = "three"
    with pytest.raises(CheckpointError, match=r"target\.seeds"):
        SeedsResult.from_json(content)


@pytest.fixture
def folders(tmp_path) -> list[str]:
    for name, found in three().items():
        found.save(tmp_path / f"seed-{name}" / "ablation")
    return [str(tmp_path / f"seed-{name}" / "ablation") for name in "abc"]


def test_the_command_writes_one_report(folders, tmp_path, capsys):
    assert main(["report", "--result", *folders, "--out", str(tmp_path / "report")]) == 0
    shown = capsys.readouterr().out
    assert "+3.000 [-3.572, +9.572]" in shown and "2 of 3" in shown and "Use five or more" in shown
    files = {path.suffix for path in (tmp_path / "report").iterdir()}
    assert files == {".html", ".md", ".png", ".json"}
    found = SeedsResult.load(tmp_path / "report" / "report.json")
    assert [run.name for run in found.groups[0].runs] == ["seed-a", "seed-b", "seed-c"]
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<svg" in page and "<script" not in page and "seed-b" in page
    assert main(["report", "--result", str(tmp_path / "report" / "report.json"), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "report.html").read_text() == page


def test_the_command_takes_results_in_any_order_and_from_a_file(folders, tmp_path):
    (tmp_path / "report.yaml").write_text(json.dumps({"result": folders[::-1], "out": str(tmp_path / "one")}))
    assert main(["report", "--config", str(tmp_path / "report.yaml"), "--forms", "json"]) == 0
    files = [f"{folder}/result.json" for folder in folders]
    words = ["report", "--group", "Monet", "Monet", "Monet", "--forms", "json", "--result", *files]
    assert main([*words, "--out", str(tmp_path / "two")]) == 0
    one, two = (undated(SeedsResult.load(tmp_path / name / "report.json")) for name in ("one", "two"))
    assert one == two


def test_the_command_refuses_in_one_line(folders, tmp_path, capsys):
    out = ["--out", str(tmp_path / "report")]
    assert main(["report", "--result", folders[0], "--group", "x", *out]) == 2
    assert "--result has only one" in capsys.readouterr().err
    assert main(["report", "--result", folders[0], folders[0], *out]) == 2
    assert "twice" in capsys.readouterr().err
    result(4, [1.0, 1.0], data_fingerprint="other").save(tmp_path / "seed-d" / "ablation")
    assert main(["report", "--result", *folders, str(tmp_path / "seed-d" / "ablation"), *out]) == 3
    assert "seed-a and seed-d were not measured on the same text" in capsys.readouterr().err
    damaged = three()["a"].to_json()
    damaged["provenance"]["model_origin"] = {"architecture": 3}
    (tmp_path / "damaged.json").write_text(json.dumps(damaged))
    assert main(["report", "--result", *folders, str(tmp_path / "damaged.json"), *out]) == 4
    assert "damaged.json: damaged provenance.model_origin: Expected `str`" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("paths", "wanted"),
    [
        (["runs/a/ablation", "runs/b/ablation"], ["a", "b"]),
        (["runs/a/ablation/result.json", "other/b/ablation"], ["runs/a", "other/b"]),
        (["a", "a/b"], ["a", "b"]),
        (["x/a", "x/a/a"], ["x/a", "x/a/a"]),
        (["one.json", "two.json"], ["one.json", "two.json"]),
    ],
)
def test_results_are_named_by_what_tells_them_apart(paths, wanted, tmp_path, monkeypatch, folders):
    named: list[str] = []
    monkeypatch.setattr(report, "load", lambda path: three()["a"])
    monkeypatch.setattr("monet.eval.reporting.seeds.compare", lambda results, groups: named.extend(results))
    monkeypatch.chdir(tmp_path)
    report.load_all([report.Path(path) for path in paths])
    assert named == wanted


def test_models_of_three_seeds(tmp_path, random_data):
    """Compute the spread from random models of one shape, with nothing planted."""
    mask = ExpertMask.random(config(), [6, 6], seed=0)
    results = {}
    for seed in range(3):
        torch.manual_seed(seed)
        model = MonetForCausalLM(config(initializer_range=0.3)).eval()
        masks = {"left": mask, "right": mask}
        found = ablate(model, masks, random_data, out=tmp_path / f"{seed}", controls=Controls(3), progress=False)
        assert found is not None
        results[f"seed{seed}"] = found
    (group,) = compare(results).groups
    for place, row in enumerate(group.masks):
        values = [one.domains[place].target_delta for one in results.values()]
        assert row.target.mean == pytest.approx(sum(values) / 3)
        assert row.target.sd_seeds == pytest.approx(torch.tensor(values, dtype=torch.float64).std().item())
        assert row.target.sd_text > 0 and row.target.seeds == 3
