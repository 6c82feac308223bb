"""Files of lines: readable while they grow, continued after a kill, and never mixed."""

from __future__ import annotations

import pytest

from monet.errors import CheckpointError, ConfigError
from monet.eval.explain.records import Explanation, Lines, check_name, read_lines, read_settings


def line(number: int) -> Explanation:
    return Explanation(0, 0, number, number, f"text {number}", "tokens", "", "2026-01-01T00:00:00+00:00")


def write(path, numbers, settings=None, **options) -> list[int]:
    with Lines(path, Explanation, settings or {"seed": 0}, **options) as lines:
        before = [unit for _, unit in lines.done]
        for number in numbers:
            lines.put(line(number))
    return before


def test_a_killed_file_continues_after_its_last_whole_line(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, range(3))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert [one.unit for one in read_lines(path, Explanation)] == [0, 1]
    assert write(path, [2]) == [0, 1]
    assert path.read_bytes() == whole and read_settings(path) == {"seed": 0}


def test_other_settings_are_refused_and_overwritten_only_on_request(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, range(2))
    with pytest.raises(ConfigError, match=r"other settings \(around, seed\)"):
        write(path, [], {"seed": 1, "around": 3})
    assert write(path, [7], {"seed": 1}, overwrite=True) == []
    assert [one.unit for one in read_lines(path, Explanation)] == [7]


def test_two_writers_and_damage_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    with Lines(path, Explanation, {}), pytest.raises(ConfigError, match="another process"):
        write(path, [], {})
    path.write_text('{"group": "x"}\n')
    with pytest.raises(CheckpointError, match="line 1 is damaged"):
        list(read_lines(path, Explanation))
    with pytest.raises(CheckpointError, match="unreadable"):
        list(read_lines(tmp_path / "none.jsonl", Explanation))


@pytest.mark.parametrize("name", ["", "../a", "a/b", ".hidden", "a b", "x" * 101])
def test_names_are_plain(name):
    with pytest.raises(ConfigError, match="letters"):
        check_name(name)
