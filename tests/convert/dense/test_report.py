"""The report: trends, round trips, the page."""

from __future__ import annotations

import pytest

from monet.convert.dense.report import FIGURE, PAGE, Domain, Group, Part, Report, Trend, trend
from monet.convert.dense.report import page as page_of
from monet.errors import CheckpointError


def report(**changes) -> Report:
    curve = [{"tokens": tokens, "fvu": {"3": tokens**-0.3, "5": tokens**-0.2}} for tokens in range(1000, 9000, 500)]
    keys = {
        "model": "dense", "layers": [3, 5], "settings": {"moe_dim": 8}, "tokens": 8500, "distil_tokens": 100,
        "fvu_start": {3: 0.7, 5: 0.8}, "fvu": {3: 0.25, 5: 0.35}, "curve": curve,
        "trends": {3: Trend(0.3, 0.2), 5: Trend(None, None)},
        "groups": [Group(3, (8, 7), 4.5, 30, 2.5, 4.0, 64)],
        "domains": [Domain("code", 64, 2.0, 2.4, 2.2, 0.3, 0.1), Domain("law", 64, 3.0, 3.2, 3.0, 0.2, 0.1)],
        "parts": [Part("stage 1: stand-ins", 8500, 10.0, 9.0)], "parameters": {"all": 100, "routers and experts": 40},
    }  # fmt: skip
    return Report(**{**keys, **changes})


def test_a_report_is_read_back_as_it_was_written(tmp_path):
    written = report()
    written.save(tmp_path)
    assert Report.load(tmp_path) == written
    assert written.to_json()["mean_fvu"] == pytest.approx(0.3)
    assert written.perplexity_converted == pytest.approx(2.718281828**2.6)
    assert (tmp_path / FIGURE).stat().st_size > 1000


def test_the_page_shows_every_layer_domain_and_part(tmp_path):
    report().save(tmp_path)
    page = (tmp_path / PAGE).read_text(encoding="utf-8")
    expected = [
        "| 3 | 0.700 | 0.250 | 0.30 | 0.200 |",
        "| 5 | 0.800 | 0.350 | - | - |",
        "| code | 2.0000 | 2.4000 | 0.3000 | 2.2000 | 0.1000 |",
        "| stage 1: stand-ins | 8,500 |",
        "after stage 2",
    ]
    for words in expected:
        assert words in page
    assert "after stage 2" not in page_of(report(distil_tokens=0))


def test_a_power_law_is_recovered_and_extrapolated():
    points = [(tokens, 5 * tokens**-0.29) for tokens in range(10_000, 400_000, 10_000)]
    found = trend(points, 0.3)
    assert found.exponent == pytest.approx(0.29)
    assert found.next_million == pytest.approx(0.3 * (1_390_000 / 390_000) ** -0.29)


@pytest.mark.parametrize("points", [[], [(10, 0.5)], [(10, 0.5)] * 9, [(n, 0.5 * n) for n in range(1, 20)]])
def test_a_curve_without_a_falling_trend_promises_nothing(points):
    assert trend(points, 0.3).next_million is None


def test_another_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        Report.load(tmp_path)
    (tmp_path / "report.json").write_text('{"format": "other"}')
    with pytest.raises(CheckpointError, match="not a report"):
        Report.load(tmp_path)
