import json
import re

import matplotlib.image
import pytest

from monet.errors import ConfigError
from monet.eval import report
from monet.eval.ablate import ablate
from monet.eval.results import AblationResult
from monet.eval.selection import select
from monet.eval.stats import collect
from tests.eval.conftest import LABELS


@pytest.fixture
def result(planted_model, planted_data, tmp_path) -> AblationResult:
    masks = select(collect(planted_model, planted_data, progress=False))
    return ablate(planted_model, masks, planted_data, out=tmp_path / "ablation", random_on="target", progress=False)


def table_after(text: str, heading: str) -> list[list[str]]:
    lines = text.split(f"## {heading}\n\n")[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_files_exist_parse_and_agree(result, tmp_path):
    report.write(result, tmp_path / "report")
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    assert AblationResult.from_json(content) == result
    assert [entry["name"] for entry in content["domains"]] == LABELS
    assert {"target_delta", "others_mean_delta", "random_delta", "target_interval"} <= content["domains"][0].keys()

    text = (tmp_path / "report" / "report.md").read_text()
    matrix = table_after(text, "Loss increase by domain")
    assert matrix[0][1:] == LABELS
    for row, cells in zip(matrix[2:], content["delta"], strict=True):
        numbers = [[float(number) for number in re.findall(r"[+-]\d+\.\d+", cell)] for cell in row[1:]]
        wanted = [[round(cell[key], 3) + 0.0 for key in ("value", "low", "high")] for cell in cells]
        assert numbers == wanted
    controls = table_after(text, "Loss increase under random masks of equal size")
    assert [[bool(cell) for cell in row[1:]] for row in controls[2:]] == [[i == j for j in range(3)] for i in range(3)]
    assert "heatmap.png" in text

    height, width, _ = matplotlib.image.imread(tmp_path / "report" / "heatmap.png").shape
    assert width > 1200 and height > 500


def test_the_figure_shows_every_value(result):
    drawing = report.figure(result)
    written = {text.get_text() for axes in drawing.axes for text in axes.texts}
    assert {f"{cell.value:+.2f}".replace("-0.00", "+0.00") for row in result.delta for cell in row} <= written
    assert {label.get_text() for label in drawing.axes[0].get_xticklabels()} == set(LABELS)
    assert any("nats a token" in axes.get_xlabel() for axes in drawing.axes)


def test_terminal_shows_matrix_and_verdicts(result, capsys):
    report.print_result(result)
    shown = capsys.readouterr().out
    assert all(label in shown for label in LABELS)
    assert f"{result.delta[0][0].value:+.2f}" in shown
    assert "3 of 3 masks" in shown


def test_markup_in_a_label_is_text(result, capsys):
    labels = {"left": "[red]x", "middle": "a|b", "right": "right"}
    content = result.to_json()
    for rows in (content["domains"], content["evaluated"]):
        for row in rows:
            row["name"] = labels[row["name"]]
    renamed = AblationResult.from_json(content)
    report.print_result(renamed)
    assert "[red]x" in capsys.readouterr().out
    assert "a\\|b" in report.markdown(renamed)
    report.figure(renamed)


def test_an_earlier_report_is_replaced_and_a_file_is_not(result, tmp_path):
    report.write(result, tmp_path / "report")
    report.write(result, tmp_path / "report")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["heatmap.png", "report.json", "report.md"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        report.write(result, tmp_path / "file")
