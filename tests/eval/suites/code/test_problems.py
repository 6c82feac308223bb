"""MultiPL-E's files are read unchanged, and errors name the file and row."""

import gzip
import json

import pyarrow
import pytest
from pyarrow import parquet

from monet.errors import ConfigError, DataError
from monet.eval.suites.code.problems import CODES, Problem, check_languages, language_of, read_problems
from tests.eval.suites.code.conftest import DATA

FIELDS = {"name", "language", "prompt", "doctests", "original", "prompt_terminology", "tests", "stop_tokens"}


def rows(language="lua"):
    return [
        json.loads(line) for line in (DATA / "problems" / f"own-{language}-reworded.jsonl").read_text().splitlines()
    ]


def test_our_files_have_the_published_fields():
    for code in CODES.values():
        for row in rows(code):
            assert set(row) == FIELDS and row["language"] == code


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".jsonl.gz", ".parquet"])
def test_every_format_gives_the_same_problems(tmp_path, suffix):
    file = tmp_path / f"humaneval-lua-reworded{suffix}"
    lines = "".join(json.dumps(row) + "\n" for row in rows())
    if suffix == ".json":
        file.write_text(json.dumps(rows()))
    elif suffix == ".jsonl":
        file.write_text(lines)
    elif suffix == ".jsonl.gz":
        file.write_bytes(gzip.compress(lines.encode()))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows()), file)
    expected = read_problems(DATA / "problems", ["lua"]).problems["lua"]
    assert read_problems(file, ["lua"]).problems["lua"] == expected
    assert read_problems(tmp_path, ["lua"]).problems["lua"] == expected
    assert [problem.variant for problem in expected] == ["transform/reworded"] * 3
    assert expected[0].stop_tokens == ("\nlocal", "\nfunction", "\n--", "\n\n")


def test_other_languages_are_counted_and_absent_ones_named():
    found = read_problems(DATA / "problems", ["python", "php"])
    assert found.ignored == {"cpp": 3, "java": 3, "javascript": 3, "lua": 3} and not found.missing
    alone = read_problems(DATA / "problems" / "own-py-reworded.jsonl", ["python", "php"])
    assert alone.problems["php"] == [] and "no problem in" in alone.missing["php"]


def test_openai_s_humaneval_is_python(tmp_path):
    row = {
        "task_id": "HumanEval/0",
        "prompt": "\n\ndef one():\n    '''One.'''\n",
        "canonical_solution": "    return 1\n",
        "test": "\n\ndef check(candidate):\n    assert candidate() == 1\n",
        "entry_point": "one",
    }
    (tmp_path / "he.jsonl").write_text(json.dumps(row) + "\n")
    (problem,) = read_problems(tmp_path, ["py"]).problems["python"]
    exec(problem.program("\n    return 1\n"), {})
    with pytest.raises(AssertionError):
        exec(problem.program("\n    return 2\n"), {})
    assert "\ndef" in problem.stop_tokens


def test_a_completion_ends_before_its_first_stop_token():
    problem = Problem("a", "lua", "  local function f()\n", "os.exit(0)", ("\nlocal", "\n--"))
    assert problem.completion("\n return 1\nend\n-- more\nlocal x") == ("\n return 1\nend", True)
    assert problem.completion("\n return 1\nend\n") == ("\n return 1\nend\n", False)
    assert problem.program("\nend") == "local function f()\nend\nos.exit(0)"


@pytest.mark.parametrize("field", ["name", "language", "prompt", "tests", "stop_tokens"])
def test_a_row_without_a_field_is_refused_by_number(tmp_path, field):
    broken = rows()
    del broken[1][field]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in broken))
    with pytest.raises(DataError, match=rf"x\.jsonl, row 2: field '{field}' is None"):
        read_problems(tmp_path, ["lua"])


def test_repeated_and_unreadable_rows_are_refused(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([*rows(), rows()[0]]))
    with pytest.raises(DataError, match="row 4: problem 'Own_0_double_all' occurs twice in lua; give only one variant"):
        read_problems(tmp_path, ["lua"])
    (tmp_path / "a.json").write_text('{"name": 1}')
    with pytest.raises(DataError, match="does not hold a list"):
        read_problems(tmp_path, ["lua"])
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(DataError, match="row 1: int instead of an object"):
        read_problems(tmp_path, ["lua"])
    (tmp_path / "a.json").write_text("[")
    with pytest.raises(DataError, match=r"a\.json: no JSON"):
        read_problems(tmp_path, ["lua"])
    (tmp_path / "a.json").unlink()
    with pytest.raises(DataError, match="no file ends in"):
        read_problems(tmp_path, ["lua"])


def test_places_that_do_not_exist():
    with pytest.raises(ConfigError, match="no such file or folder"):
        read_problems("nowhere.jsonl", ["lua"])
    with pytest.raises(ConfigError, match="without a network, give a folder"):
        read_problems("nobody-here/no-such-data-set", ["lua"])


def test_hub_configurations_are_asked_for_by_language(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, configuration, split):
        asked.append((name, configuration, split))
        if configuration == "humaneval-py":
            raise ValueError("BuilderConfig 'humaneval-py' not found")
        if configuration is None:
            return [{"task_id": "HumanEval/0", "prompt": "def f():\n", "test": "def check(f): f()", "entry_point": "f"}]
        return rows(configuration.removeprefix("humaneval-"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = read_problems("nuprl/MultiPL-E", ["python", "cpp"])
    assert asked == [
        ("nuprl/MultiPL-E", "humaneval-py", "test"),
        ("openai/openai_humaneval", None, "test"),
        ("nuprl/MultiPL-E", "humaneval-cpp", "test"),
    ]
    assert len(found.problems["python"]) == 1 and len(found.problems["cpp"]) == 3 and not found.missing
    assert found.description["languages"]["cpp"]["problems"] == 3


def test_names_of_languages():
    assert check_languages(["py", "C++", "js"]) == ["python", "cpp", "javascript"]
    assert language_of("JavaScript") == "javascript" and language_of("english") is None
    with pytest.raises(ConfigError, match="'rust' is not among"):
        check_languages(["py", "rust"])
    for wrong in ([], ["py", "python"]):
        with pytest.raises(ConfigError, match="one or more different languages"):
            check_languages(wrong)


def test_the_first_problems_only(problems):
    assert [len(found) for found in problems.first(2).problems.values()] == [2] * 6
    assert problems.first(None).problems == problems.problems
    with pytest.raises(ConfigError, match="limit 0"):
        problems.first(0)
