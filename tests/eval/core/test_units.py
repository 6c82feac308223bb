"""The unit that a bootstrap draws: sources if they are known; few sources give a caution."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from monet.errors import ConfigError, DataError
from monet.eval.ablation.measure import ablate
from monet.eval.ablation.results import AblationResult
from monet.eval.ablation.verdicts import summarise
from monet.eval.attribution.rules import Ratio
from monet.eval.attribution.selection import select
from monet.eval.attribution.stats import collect
from monet.eval.core.bootstrap import Bootstrap, few
from monet.eval.core.controls import Controls
from monet.eval.core.inputs import LabelledSequences, PreparedWindows
from monet.eval.core.units import choose_unit, with_sources
from monet.eval.core.window_losses import WindowLosses
from monet.eval.reporting import markdown
from monet.eval.reporting.command import report_of
from monet.eval.suites.loss.curve import CurveResult, evaluate_curve
from monet.masks.expert_mask import ExpertMask
from monet.parts import Part
from tests.data.samples import EOS, make_shards

EFFECT = 0.1  # effect of the removal, on the mean over all sources


@pytest.fixture
def masks(planted_model, planted_data):
    return select(collect(planted_model, planted_data, progress=False))


@pytest.fixture
def sourced(planted_data) -> LabelledSequences:
    """Two sequences of a label belong to one source, so each label has five sources."""
    return replace(planted_data, sources=[f"{number % 3}/{number // 6}" for number in range(30)])


def run(model, masks, data, out, **options) -> AblationResult:
    found = ablate(model, masks, data, out=out, progress=False, controls=Controls(2), **options)
    assert found is not None
    return found


def covered(sources: int, records: int, unit, trials: int = 60) -> tuple[float, float]:
    """How often the interval of a removal's effect contains the true effect, and its mean width.

    The effect differs between sources, and hardly between records of one source. Each record is one window.
    """
    generator = np.random.default_rng(0)
    size = sources * records
    label_W, source_W = np.repeat([0, 1], size), np.repeat(np.arange(2 * sources), records)
    mask, hits, widths = ExpertMask([[[True, False], [True, True]]]), 0, 0.0
    for _ in range(trials):
        effect_W = generator.normal(EFFECT, 0.05, 2 * sources)[source_W] + generator.normal(0, 0.01, 2 * size)

        def losses(change_W):
            return WindowLosses((3 + change_W) * 256, np.full(2 * size, 256), label_W, np.arange(2 * size), source_W)

        measured = [(("a", None), losses(effect_W)), (("a", 0), losses(0 * effect_W))]
        result = summarise({"a": mask}, ["a", "b"], losses(0 * effect_W), measured, Bootstrap(1000, unit=unit), {})
        low, high = result.domains[0].target_interval
        hits, widths = hits + (low <= EFFECT <= high), widths + high - low
    return hits / trials, widths / trials


def test_records_of_one_source_do_not_count_as_independent():
    """95 % intervals over records contain the true effect half as often as they claim, over sources nearly as often."""
    by_record, by_source = covered(20, 8, "document"), covered(20, 8, None)
    assert by_source[0] > 0.85 and by_record[0] < 0.65 and by_source[1] > 1.8 * by_record[1]
    # With four sources, which give a caution, even the better interval is too narrow.
    by_record, by_source = covered(4, 8, "document"), covered(4, 8, "source")
    assert 0.65 < by_source[0] < 0.9 and by_record[0] < 0.5 and by_source[1] > 1.8 * by_record[1]


def test_sources_are_drawn_where_all_are_known(planted_model, masks, planted_data, sourced, tmp_path):
    own = run(planted_model, masks, sourced, tmp_path / "own")
    assert own.provenance["bootstrap"]["unit"] == "source"
    assert [(one.documents, one.sources) for one in own.evaluated] == [(10, 5)] * 3
    # Documents of the same size give the same draws.
    merged = run(planted_model, masks, replace(sourced, documents=sourced.sources, sources=None), tmp_path / "merged")
    assert merged.provenance["bootstrap"]["unit"] == "document" and merged.domains == own.domains
    assert [(one.documents, one.sources) for one in merged.evaluated] == [(5, None)] * 3
    by_document = run(planted_model, masks, sourced, tmp_path / "own", bootstrap=Bootstrap(unit="document"))
    assert by_document.domains == run(planted_model, masks, planted_data, tmp_path / "own").domains != own.domains
    assert by_document.evaluated[0].sources == 5
    assert AblationResult.load(tmp_path / "own") is not None


def test_a_label_of_one_source_is_drawn_by_document_unless_asked_otherwise(planted_model, masks, sourced, tmp_path):
    one = replace(sourced, sources=["same" if number % 3 == 0 else f"{number}" for number in range(30)])
    result = run(planted_model, masks, one, tmp_path)
    assert result.provenance["bootstrap"]["unit"] == "document"
    assert "left (1 source)." in markdown.render(report_of(result))
    with pytest.raises(DataError, match=r"'left' has 1 source to draw .*draw documents instead \(--unit document\)"):
        run(planted_model, masks, one, tmp_path, bootstrap=Bootstrap(unit="source"))


def test_sources_that_are_not_known_are_not_drawn(planted_model, masks, planted_data, tmp_path):
    wanted = Bootstrap(unit="source")
    message = r"unit source: .* of 'left', 'middle', 'right' is not known.*--overwrite.*--source_key.*--unit document"
    for part in (None, Part(0, 2)):
        with pytest.raises(DataError, match=message):
            ablate(planted_model, masks, planted_data, out=tmp_path, bootstrap=wanted, part=part, progress=False)
    assert not list(tmp_path.rglob("*.jsonl"))
    with pytest.raises(DataError, match="the losses name no sources"):
        WindowLosses(*np.ones((4, 3))).units_W("source")
    with pytest.raises(ConfigError, match=r"unit must be 'source', 'document', 'window' or None, got 'page'"):
        Bootstrap(unit="page")  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match="30 sequences but sources for 2"):
        replace(planted_data, sources=["a", "b"])


def test_a_source_of_two_labels_is_one_unit_where_labels_are_drawn_together(sourced):
    losses = WindowLosses(np.ones(4), np.ones(4, int), np.array([1, 0, 1, 0]), np.arange(4))
    found = with_sources(losses, ["a", "b"], {"a": ["x", "y"], "b": ["z", "x"]})
    assert found.source_W.tolist() == [0, 1, 1, 2]
    assert found.units_W(None) is found.source_W and losses.units_W(None) is losses.document_W
    assert found.units_W("window").tolist() == [0, 1, 2, 3]
    assert choose_unit(Bootstrap(), sourced)[0].unit == "source"
    assert choose_unit(Bootstrap(), sourced.only(["left"]))[0].unit == "source"


def test_reports_warn_of_few_units(planted_model, masks, planted_data, sourced, tmp_path):
    many = replace(sourced, sources=[str(number) for number in range(30)])
    few_sources = "fewer than 10 sources are unreliable"
    for data, caution in ((sourced, few_sources), (planted_data, None), (many, None)):
        statistics = collect(planted_model, data, progress=False)
        curve = evaluate_curve(
            planted_model, statistics, Ratio(), [2.0], data, out=tmp_path, controls=Controls(2), progress=False
        )
        assert curve is not None and CurveResult.from_json(curve.to_json()) == curve
        for result in (run(planted_model, masks, data, tmp_path), curve):
            shown = markdown.render(report_of(result))
            assert ("are unreliable" in shown) == (caution is not None)
            if caution is not None:
                assert caution in shown and "left (5 sources), middle (5 sources), right (5 sources)." in shown
    kept = replace(planted_data, kept=list(range(15)))
    result = run(planted_model, {"left": masks["left"]}, kept, tmp_path)
    assert "fewer than 10 documents are unreliable" in markdown.render(report_of(result))
    old = {key: value for key, value in curve.to_json().items() if key != "evaluated"}
    assert "are unreliable" not in markdown.render(report_of(CurveResult.from_json(old)))


def test_who_has_few():
    assert few({"a": 10, "b": 200}, "source") == ""
    assert "fewer than 10 sources" in few({"a": 9, "b": 200}, "source") and "a (9 sources)." in few({"a": 9}, "source")
    assert "a (1 question), b (29 questions)." in few({"a": 1, "b": 29, "c": 30}, "question", 30)


def test_windows_of_prepared_text_know_their_source(tmp_path):
    documents = [[2 + number] * 9 for number in range(6)]
    folder = make_shards(
        tmp_path, {"evaluate": {"a": documents, "b": documents}},
        sources={"a": ["x", "x", "y", "z", "z", "z"], "b": [None] * 6},
    )  # fmt: skip
    windows = PreparedWindows(folder, "evaluate", 10)
    assert windows.window_sources() == {"a": ["x", "x", "y", "z", "z"], "b": [None] * 5}
    assert windows.only(["a"]).window_sources() == {"a": ["x", "x", "y", "z", "z"]}
    parts = [windows.only(["a"]).shard(index, 2).window_sources()["a"] for index in range(2)]
    assert sorted(parts[0] + parts[1]) == ["x", "x", "y", "z", "z"] and EOS == 1
    assert choose_unit(Bootstrap(), windows.only(["a"]))[0].unit == "source"
    assert choose_unit(Bootstrap(), windows)[0].unit == "document"
    with pytest.raises(DataError, match="of 'b' is not known"):
        choose_unit(Bootstrap(unit="source"), windows)
