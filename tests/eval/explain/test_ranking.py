"""The rule that chooses experts by their scores."""

from __future__ import annotations

from dataclasses import replace

from monet.cli import main
from monet.eval.explain.ranking import SAME, Ranked, best, markdown, ranked, worst
from monet.eval.explain.records import SCORES, Lines, Score
from monet.eval.index.units import Unit


def line(unit: Unit, score, permuted) -> Score:
    return Score(unit.group, unit.i, unit.j, unit.number, "detection", "tokens", score, None, 16, 0, permuted, 0.5, 0.5)


def write(index, name, lines) -> None:
    with Lines(index.folder / SCORES / f"{name}.jsonl", Score, {"name": name}) as file:
        for one in lines:
            file.put(one)


def some(number: int, merit: float, label: str = "a", count: int = 1, entropy: float = 0.0) -> Ranked:
    row = {"best_label": label, "count": count, "label_entropy": entropy, "label_share": 0.5, "token_texts": [" |`\n"]}
    return Ranked(Unit(0, number, "pair", 0, number), row, [line(Unit(0, number, "pair", 0, number), 0.9, 0.5)], merit)


def test_merit_is_the_largest_score_of_the_units_that_have_all_scores(planted, units):
    write(planted, "one", [line(units[0], 0.9, 0.5), line(units[1], 0.6, 0.5), line(units[2], 0.7, 0.5)])
    write(planted, "two", [line(units[0], 0.5, 0.5), line(units[1], 1.0, 0.4), line(units[2], None, None)])
    found = ranked(planted, ["one", "two"])
    assert [one.unit for one in found] == [units[1], units[0]]
    assert [one.merit for one in found] == [1.0, 0.9]


def test_the_best_have_several_labels_and_the_worst_a_large_entropy():
    found = [some(n, 0.9 - n / 100, "a" if n < 4 else "b", entropy=float(n)) for n in range(6)]
    assert [one.unit.number for one in best(found, 3)] == [0, 1, 4] and SAME == 2
    equal = [replace(one, merit=0.0) for one in found]
    assert [one.unit.number for one in worst(equal, 2)] == [5, 4]


def test_cells_hold_no_markup():
    *_, row = markdown([some(3, 0.4, "a\x1b[31m")], ["one"])
    assert "\x1b" not in row
    *_, row = markdown([some(3, 0.4)], ["one"])
    assert row == "| 0:3 | 0, 3 | 1 | a (50%) | `_\\|'\\n` | 0.90 v 0.50 |"


def test_the_command(planted, units, capsys):
    write(planted, "one", [line(unit, 0.9, 0.5) for unit in units])
    assert main(["score", "list", str(planted.folder), "--scores", "one", "--count", "2"]) == 0
    shown = capsys.readouterr().out
    assert "largest merit, of 3" in shown and shown.count("0.90 v 0.50") == 4
    for words, message in ((["--scores", "none"], "does not exist"), (["--scores", "one", "--count", "0"], "count 0")):
        assert main(["score", "list", str(planted.folder), *words]) == 2
        assert message in capsys.readouterr().err
