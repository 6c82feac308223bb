"""Right bodies pass and wrong ones fail in every language of this machine; missing languages are named."""

import pytest

from monet.eval.sandbox import jail
from monet.eval.sandbox import runtimes as module
from monet.eval.sandbox.execution import execute, kept_statuses
from monet.eval.sandbox.runtimes import find_runtimes
from monet.eval.suites.code.problems import CODES


@pytest.fixture(scope="session")
def found(sandbox, libraries):
    return find_runtimes(list(CODES), sandbox, [libraries])


def test_every_language_is_either_there_or_named_with_a_remedy(found):
    there, missing = found
    assert there.keys() | missing.keys() == CODES.keys() and not there.keys() & missing.keys()
    assert "python" in there and there["python"].version.startswith("Python 3")
    for language, reason in missing.items():
        assert "apt install" in reason or "cannot run in the sandbox" in reason, (language, reason)


@pytest.mark.parametrize("language", CODES)
def test_right_bodies_pass_and_wrong_ones_fail(language, found, problems, bodies, sandbox, tmp_path):
    there, missing = found
    if language in missing:
        pytest.skip(missing[language])
    expected = {}
    for problem in problems.problems[language]:
        for kind, body in bodies[language][problem.name].items():
            text, _ = problem.completion(body)
            expected[problem.program(text)] = "ok" if kind == "right" else "failed"
    assert len(expected) == 6
    assert run_kept(expected, there[language], sandbox, tmp_path, workers=2) == expected


@pytest.mark.parametrize("language", CODES)
def test_nonsense_is_no_sandbox_error(language, found, problems, sandbox):
    there, missing = found
    if language in missing:
        pytest.skip(missing[language])
    problem = problems.problems[language][0]
    expected = "compile error" if language in ("cpp", "java") else "failed"
    assert there[language].run(problem.program(" ((( what"), sandbox).status == expected


@pytest.mark.parametrize("language", ["cpp", "java", "javascript", "lua", "php"])
def test_a_missing_runtime_is_named(language, sandbox, monkeypatch):
    monkeypatch.setattr(module, "find_command", lambda *names: None)
    there, missing = find_runtimes([language], sandbox)
    assert not there and "on the search path (Debian: apt install" in missing[language]


def test_missing_libraries_are_named(sandbox, monkeypatch, tmp_path):
    if module.find_command("java") is None:
        pytest.skip("no java here")
    monkeypatch.setattr(module, "JAVATUPLES", ())
    there, missing = find_runtimes(["java"], sandbox, [tmp_path])
    assert not there and "no javatuples.jar" in missing["java"] and "libjavatuples-java" in missing["java"]


def test_a_runtime_that_judges_everything_right_is_not_used(sandbox, monkeypatch):
    python = module._python(sandbox.limits, [])[0]
    lenient = module.replace(python, script="exit 0")
    monkeypatch.setitem(module._FINDERS, "python", lambda *_: [lenient])
    there, missing = find_runtimes(["python"], sandbox)
    assert not there and "in the sandbox a wrong program ends with status 'ok'" in missing["python"]


def run_kept(programs, runtime, sandbox, folder, **options):
    with kept_statuses(runtime, sandbox, folder) as store:
        return execute(programs, runtime, sandbox, store, **options)


def test_outcomes_are_kept_and_a_program_runs_once(found, sandbox, tmp_path):
    python = found[0]["python"]
    programs = ["x = 1", "raise SystemExit(1)", "x = 1"]
    advanced = []
    first = run_kept(programs, python, sandbox, tmp_path, workers=2, advance=advanced.append)
    assert first == {"x = 1": "ok", "raise SystemExit(1)": "failed"} and len(advanced) == 2
    (file,) = tmp_path.glob("*.jsonl")
    kept = file.read_text()
    assert run_kept(programs, python, sandbox, tmp_path) == first
    assert file.read_text() == kept


def test_what_could_not_be_run_is_tried_again(found, sandbox, tmp_path, monkeypatch):
    python = found[0]["python"]
    broken = module.replace(sandbox)
    monkeypatch.setattr(jail, "command", lambda *_: ["no-such-program-anywhere"])
    assert run_kept(["x = 1"], python, broken, tmp_path) == {"x = 1": "sandbox error"}
    monkeypatch.undo()
    assert run_kept(["x = 1"], python, sandbox, tmp_path) == {"x = 1": "ok"}
