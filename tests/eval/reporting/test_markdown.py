import re

import pytest

from monet.eval.core.document import Curve, Dots, Marks, Table
from monet.eval.reporting import common, figures, markdown, png
from monet.terminal import clean
from tests.eval.reporting import samples
from tests.eval.reporting.samples import HOSTILE, everything


def test_every_block_is_there_and_nothing_is_markup():
    report = everything()
    text = markdown.render(report)
    assert HOSTILE not in text and "<script" not in text
    assert text.count("&lt;script>alert(1)&lt;/script>") > 20
    headings = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert len(headings) == sum(bool(block.title) for block in report.blocks) + 1
    assert "**Its second paragraph.**" in text
    assert set(re.findall(r"<(\w+)", text)) == {"details", "summary", "pre"}


def test_tables_have_as_many_cells_in_every_row():
    rows = [line for line in markdown.render(everything()).splitlines() if line.startswith("|")]
    tables, last = [], 0
    for row in rows:
        cells = len(re.split(r"(?<!\\)\|", row)) - 2
        if re.fullmatch(r"\|( -+:? \|)+", row):
            assert cells == last
            tables.append(cells)
        last = cells
    assert len(tables) == 3 + 3 + 2 + 1 + 2


def test_figures_are_the_files_that_the_text_names(tmp_path):
    report = everything()
    named = re.findall(r"!\[.*\]\((figure-[^)]+)\)", markdown.render(report))
    assert named == [path.name for path in png.write(report, tmp_path)]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in named)


@pytest.mark.parametrize("plot", [samples.curve(), samples.dots()], ids=["curve", "dots"])
def test_a_figure_shows_names_as_they_are(plot):
    with figures.styled():
        drawing = figures.draw(plot)
        drawing.draw_without_rendering()
    (legend,) = drawing.legends
    names = [clean(series.name) for series in (plot.series if isinstance(plot, Curve) else plot.marks)]
    assert [text.get_text().replace(r"\$", "$") for text in legend.get_texts()] == names


def test_dots_have_a_row_each_and_a_column_a_series():
    marks = [
        Marks("first", [1.0, None], [0.5, None], [1.25, None]),
        Marks("mean", [-0.125, float("nan")], [None, None], [None, None], strong=True),
    ]
    table = common.drawn_table(Dots("Title", ["a", "b"], "nats", marks, "removed"))
    assert table.header == ["removed", "first", "mean"]
    assert table.rows == [["a", "+1.000 [+0.500, +1.250]", "-0.125"], ["b", "-", "-"]]


def test_which_columns_hold_numbers():
    rows = [["1", "+0.15 [+0.10, +0.20]", "12 (5.9%)", "+0.02 (php)", "yes", "3.4 GHz or more cores"]] * 2
    found = common.number_columns(Table("", list("abcdef"), rows))
    assert found == [False, True, True, True, False, False]
