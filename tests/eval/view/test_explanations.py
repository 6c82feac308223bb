"""Files of explanations and scores: what is read, and what is refused."""

import json

import numpy as np
import pytest

from monet.errors import DataError
from monet.eval.index.units import Units
from monet.eval.view.explanations import Explanations

UNITS = Units(2, 4)
TEXT = {
    "group": 0,
    "i": 1,
    "j": 1,
    "unit": 5,
    "explanation": "German articles",
    "explainer": "tokens",
    "model": "",
    "time": "t",
}
SCORE = {
    "group": 0,
    "unit": 5,
    "scorer": "detection",
    "score": 0.8,
    "judge": "fake",
    "interval": [0.7, 0.9],
    "n": 16,
    "failed": 1,
    "control_permuted": 0.5,
    "control_empty": 0.5,
    "chance": 0.5,
    "explanation": "German articles",
}


def write(folder, explanations, scores):
    for name, lines in (("explanations", explanations), ("scores", scores)):
        (folder / name).mkdir()
        (folder / name / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Explanations.read(folder, UNITS)


def test_scores_belong_to_their_explanation(tmp_path):
    intruder = {**SCORE, "scorer": "intruder", "explanation": None, "score": 0.6}
    found = write(tmp_path, [TEXT, {**TEXT, "unit": 6, "explanation": "", "failed": "hangs"}], [SCORE, intruder])
    assert len(found) == 1 and found.text(5) == "German articles" and found.text(6) is None
    shown = found.of(5)
    assert [one["scorer"] for one in shown["explanations"][0]["scores"]] == ["detection"]
    assert [one["scorer"] for one in shown["scores"]] == ["intruder"]
    columns = found.columns(48)
    assert columns["detection"][5] == np.float32(0.8) and np.isnan(columns["detection"]).sum() == 47
    assert found.containing("german ART", 48).nonzero()[0].tolist() == [5]
    assert not found.containing("[", 48).any()


def test_an_unfinished_line_is_left_out(tmp_path):
    found = write(tmp_path, [TEXT], [])
    with open(tmp_path / "explanations" / "a.jsonl", "a") as file:
        file.write('{"group": 0, "un')
    assert len(Explanations.read(tmp_path, UNITS)) == len(found) == 1


@pytest.mark.parametrize("line", [{**TEXT, "unit": 99}, {**TEXT, "group": -1}, {**TEXT, "explanation": 3}, [1]])
def test_damaged_lines_are_refused(tmp_path, line):
    with pytest.raises(DataError, match=r"unit 99|unit 5|damaged"):
        write(tmp_path, [line], [])


def test_an_index_without_explanations_has_none(tmp_path):
    found = Explanations.read(tmp_path, UNITS)
    assert len(found) == 0 and found.of(3) == {"explanations": [], "scores": []} and not found.columns(48)
