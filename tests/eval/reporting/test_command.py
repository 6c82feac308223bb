import dataclasses
import importlib
import json
import re
from operator import attrgetter
from typing import Any

import matplotlib.image
import pytest

from monet.cli import main
from monet.errors import CheckpointError, ConfigError
from monet.eval.ablation.measure import ablate
from monet.eval.ablation.results import AblationResult
from monet.eval.attribution.selection import select
from monet.eval.attribution.stats import collect
from monet.eval.core.document import Panels, Report, Table, Text
from monet.eval.reporting import command as report
from monet.eval.reporting import figures, markdown, terminal
from monet.eval.reporting.command import report_of
from tests.eval.conftest import LABELS


@pytest.fixture
def result(planted_model, planted_data, tmp_path) -> AblationResult:
    masks = select(collect(planted_model, planted_data, progress=False))
    found = ablate(planted_model, masks, planted_data, out=tmp_path / "ablation", control_on="target", progress=False)
    assert found is not None
    return found


def table_after(text: str, heading: str) -> list[list[str]]:
    lines = text.split(f"# {heading}\n\n")[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_files_exist_parse_and_agree(result, tmp_path):
    folder = tmp_path / "report"
    files = report.write(result, folder)
    assert sorted(files) == sorted(folder.iterdir())
    assert {path.suffix for path in files} == {".html", ".md", ".png", ".json"}
    content = json.loads((folder / "report.json").read_text())
    assert AblationResult.from_json(content) == report.load(folder / "report.json") == result
    assert [entry["name"] for entry in content["domains"]] == LABELS
    assert {"target_delta", "others_mean_delta", "random_delta", "target_interval"} <= content["domains"][0].keys()

    text = (folder / "report.md").read_text()
    matrix = table_after(text, "Experts of one domain removed")
    assert matrix[0][1:] == LABELS
    for row, cells in zip(matrix[2:], content["delta"], strict=True):
        numbers = [[float(number) for number in re.findall(r"[+-]\d+\.\d+", cell)] for cell in row[1:]]
        wanted = [[round(cell[key], 3) for key in ("value", "low", "high")] for cell in cells]
        assert numbers == wanted
    controls = table_after(text, "As many random experts removed (same domain only, mean of 39 controls)")
    assert [[bool(cell) for cell in row[1:]] for row in controls[2:]] == [[i == j for j in range(3)] for i in range(3)]

    (drawn,) = folder.glob("*.png")
    assert f"({drawn.name})" in text
    height, width, _ = matplotlib.image.imread(drawn).shape
    assert width > 1200 and height > 500


def test_the_figure_shows_every_value(result):
    (block,) = [block for block in report_of(result).blocks if isinstance(block, Panels)]
    with figures.styled():
        drawing = figures.draw(block)
    written = {text.get_text() for axes in drawing.axes for text in axes.texts}
    assert {f"{cell.value:+.2f}" for row in result.delta for cell in row} <= written
    assert {label.get_text() for label in drawing.axes[0].get_xticklabels()} == set(LABELS)
    assert any("nats per token" in axes.get_xlabel() for axes in drawing.axes)


def test_terminal_shows_matrix_and_verdicts(result, capsys):
    terminal.show(report_of(result))
    shown = capsys.readouterr().out
    assert all(label in shown for label in LABELS)
    assert f"{result.delta[0][0].value:+.2f}" in shown and f"{result.domains[0].target_interval[1]:+.3f}" in shown
    assert "3 of 3 masks" in shown


def test_markup_in_a_label_is_text(result, capsys):
    labels = {"left": "[red]x", "middle": "a|b", "right": "right"}
    content = result.to_json()
    for rows in (content["domains"], content["evaluated"]):
        for row in rows:
            row["name"] = labels[row["name"]]
    told = report_of(AblationResult.from_json(content))
    terminal.show(told)
    assert "[red]x" in capsys.readouterr().out
    assert "a\\|b" in markdown.render(told)


def test_a_domain_that_does_not_pass_says_why(result):
    content = result.to_json()
    content["domains"][1] |= {"passes": False, "reason": "within the interval of random masks"}
    (verdicts,) = [
        b for b in report_of(AblationResult.from_json(content)).blocks if getattr(b, "title", "") == "Verdicts"
    ]
    assert [row[-1] for row in verdicts.rows] == ["yes", "no: within the interval of random masks", "yes"]


def test_neurons_of_a_dense_model_are_not_called_experts(result):
    dense = dataclasses.replace(result, unit="neuron", group="layer")
    text = markdown.render(report_of(dense))
    assert "neurons" in text.splitlines()[0] and "xperts" not in text.split("## Provenance")[0]


def test_an_earlier_report_is_replaced_and_a_file_is_not(result, tmp_path):
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "mine.png").write_text("")
    (folder / "figure-07-of-an-earlier-report.png").write_text("")
    report.write(result, folder)
    files = report.write(result, folder)
    assert {path.name for path in folder.iterdir()} == {"mine.png", *(path.name for path in files)}
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        report.write(result, tmp_path / "file")


def test_only_the_forms_that_are_asked_for(result, tmp_path):
    assert [path.name for path in report.write(result, tmp_path / "one", ["markdown"])] == ["report.md"]
    with pytest.raises(ConfigError, match=r"no report form 'pdf'; choose from html, markdown, png, json"):
        report.write(result, tmp_path / "two", ["pdf"])
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("name", report.FORMATS)
def test_every_format_names_a_class_that_reads_it_and_reports(name):
    found, teller = (
        attrgetter(kind)(importlib.import_module(module))
        for module, _, kind in (place.partition(":") for place in report.FORMATS[name])
    )
    assert {"from_json", "to_json"} <= set(dir(found)) and name == found.FORMAT and callable(teller)
    with pytest.raises(CheckpointError):
        found.from_json({"format": name})


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"format": "monet-ablation/0"}', "unknown format 'monet-ablation/0'; expected one of monet-ablation/2"),
        ('["monet-ablation/2"]', "unknown format None"),
        ('{"format": ["monet-ablation/2"]}', "unknown format .*expected one of"),
        ('{"format": "monet-ablation/2"}', "damaged monet-ablation/2: .*`unit`"),
        ("{", "no JSON"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, content, message, capsys):
    (tmp_path / "result.json").write_text(content)
    assert main(["report", "--result", str(tmp_path), "--out", str(tmp_path / "out")]) == 4
    error = capsys.readouterr().err
    assert re.search(message, error) and "result.json" in error
    assert not (tmp_path / "out").exists()


def test_a_report_of_any_blocks_can_be_written(tmp_path):
    blocks = [Text("Beware.", caution=True), Table("T", ["a", "b"], [["x", "1"]])]
    files = report.write(Report("Anything", "It works", blocks, {"date": "today"}, {"x": 1}), tmp_path)
    assert {path.name for path in files} == {"report.html", "report.md", "report.json"}
    assert "**Beware.**" in (tmp_path / "report.md").read_text()


def ragged(content: Any) -> Any:
    content["delta"][0].pop()


def text_as_number(content: Any) -> Any:
    content["delta"][0][0]["value"] = "much"


def huge(content: Any) -> Any:
    content["delta"][0][0]["value"] = 1e308


def half_a_pair(content: Any) -> Any:
    content["domains"][0]["name"] = "\ud800"


def deep(content: Any) -> Any:
    for _ in range(101):
        content["provenance"] = {"a": content["provenance"]}


def null_names(content: Any) -> Any:
    content["domains"][0]["name"] = None


@pytest.mark.parametrize("spoil", [ragged, text_as_number, huge, half_a_pair, deep, null_names])
def test_report_refuses_hostile_results(result, tmp_path, capsys, spoil):
    content = result.to_json()
    spoil(content)
    (tmp_path / "result.json").write_text(json.dumps(content))
    assert main(["report", "--result", str(tmp_path), "--out", str(tmp_path / "out")]) == 4
    assert "result.json" in (told := capsys.readouterr().err) or str(tmp_path) in told
    assert not (tmp_path / "out").exists()


def test_results_nested_deeply_are_refused(tmp_path, capsys):
    (tmp_path / "result.json").write_text("[" * 100_000)
    assert main(["report", "--result", str(tmp_path), "--out", str(tmp_path / "out")]) == 4
    assert "nested deeper" in capsys.readouterr().err
