"""`monet index numbers`: planted experts are pure, their controls are not; neurons; two models on one text."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from monet.cli import main
from monet.eval.baselines.neurons import down_projections
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.explain.neurons import neurons
from monet.eval.explain.numbers import NumbersResult, drawn_units, of_index, overlap
from monet.eval.explain.strongest import WindowTable, strongest

BOOTSTRAP = Bootstrap(resamples=1000)


def found(numbers) -> dict:
    return {(one.name, one.of): one for one in numbers.measures}


def test_planted_experts_have_one_label_and_their_control_has_not(planted, units):
    numbers = of_index(planted, WindowTable(planted), "pair", units, BOOTSTRAP)
    measures = found(numbers)
    for of in ("strongest", "all"):
        assert measures["one_label", of].value.value == 1.0 and measures["one_label", of].permuted.value == 0.0
        assert measures["label_entropy", of].value.value < 1e-6 < 1 < measures["label_entropy", of].permuted.value
        assert measures["token_purity", of].value.value > measures["token_purity", of].permuted.value
    assert numbers.active == 3 / 256 and numbers.evenness == pytest.approx(3 / 256, rel=0.1)


def test_estimated_firing_tokens_have_no_purity(planted, units):
    settings = dataclasses.replace(planted.info.settings, tokens="sampled")
    planted.info = dataclasses.replace(planted.info, settings=settings)
    measures = found(of_index(planted, WindowTable(planted), "pair", units, BOOTSTRAP))
    assert ("token_purity", "all") not in measures
    assert ("token_purity", "strongest") in measures and ("one_label", "all") in measures


def test_tables_hold_the_contexts_of_the_index(planted, units):
    windows = WindowTable(planted)
    table = strongest(planted, windows, units)
    for row, unit in enumerate(units):
        contexts = planted.contexts(unit)
        filled = table.weight_UK[row] > 0
        assert table.window_UK[row][filled].tolist() == [one.window for one in contexts]
        assert table.token_UK[row][filled].tolist() == [planted.windows[c.window].ids[c.position] for c in contexts]
        assert set(table.label_UK[row][filled]) == {unit.i}
    assert windows.frequencies(planted).sum() == planted.info.num_tokens


def test_neurons_have_their_strongest_contexts(planted, llama):
    windows = WindowTable(planted)
    found = neurons(llama, planted, windows, 7, seed=1, progress=False)
    chosen = np.sort(np.random.default_rng(1).permutation(40)[:7])
    most, total = np.zeros((len(windows.ids), 7)), np.zeros(40)
    for row, ids in enumerate(windows.ids):
        seen = []
        hooks = [site.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0][0].abs()))
                 for site in down_projections(llama)]  # fmt: skip
        with torch.no_grad():
            llama(torch.tensor(ids)[None])
        for hook in hooks:
            hook.remove()
        activity = torch.cat(seen, 1).numpy()
        most[row], total = activity[:, chosen].max(0), total + activity.sum(0)
    kept = planted.info.settings.top
    for unit in range(7):
        expected = np.argsort(-most[:, unit], kind="stable")[:kept]
        assert found.contexts.window_UK[unit].tolist() == windows.number_W[expected].tolist()
    assert found.mean_N == pytest.approx(total / sum(map(len, windows.ids)), rel=1e-5)


def test_a_model_overlaps_with_itself_and_not_with_exchanged_windows(planted, units):
    windows = WindowTable(planted)
    assert drawn_units(planted, "pair", 99, 50, 0) == units and len(drawn_units(planted, "half", 2, 50, 0)) == 2
    one = overlap(planted, planted, windows, "pair", units, 50, BOOTSTRAP)
    assert one.value.value == 1.0 and one.permuted.value < 1.0


def test_the_command(planted, llama, tmp_path, capsys):
    llama.save_pretrained(tmp_path / "dense")
    shutil.copytree(planted.folder, tmp_path / "second")
    words = ["index", "numbers", str(planted.folder), "--compare", str(tmp_path / "second"), "--progress", "false"]
    assert main([*words, "--dense", str(tmp_path / "dense"), "--out", str(tmp_path / "n.json")]) == 0
    shown = capsys.readouterr().out
    assert "3 units of each kind" in shown and "evenness" in shown
    result = NumbersResult.from_json(json.loads((tmp_path / "n.json").read_text()))
    assert [kind.kind for kind in result.kinds] == ["pair", "half", "pair", "half", "neuron"]
    assert {kind.drawn for kind in result.kinds} == {3}
    assert ("overlap", "best match in second") in found(result.kinds[0])


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [(["--units", "0"], 2, "units 0"), (["--min_count", "100000"], 2, "lower --min_count"),
     (["--compare", "none"], 4, "none is no index")],
)  # fmt: skip
def test_bad_options_are_refused(planted, capsys, words, code, message):
    assert main(["index", "numbers", str(planted.folder), *words]) == code
    assert message in capsys.readouterr().err


def test_parts_of_a_text_are_not_compared_with_all_of_it(planted, tmp_path, capsys):
    shutil.copytree(planted.folder, tmp_path / "part")
    notes = json.loads((tmp_path / "part/index.json").read_text())
    (tmp_path / "part/index.json").write_text(json.dumps(notes | {"part": {"held": [0], "count": 2}}))
    words = ["index", "numbers", str(planted.folder), "--compare", str(tmp_path / "part"), "--progress", "false"]
    assert main(words) == 4
    assert "different parts" in capsys.readouterr().err
