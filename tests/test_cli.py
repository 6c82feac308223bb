"""The `monet` command: fast overview, arguments from signatures, one-line errors with the documented exit codes."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import subprocess
import sys
import types
from pathlib import Path
from typing import Literal

import pytest

from monet import cli, errors
from monet.options import Options, groups_of, types_of

CALLS: list[dict] = []


def verb(
    source: Path | list[Path], out: Path, ratio: float = 2.0, kind: Literal["mean", "sum"] = "mean", fail: str = ""
) -> None:
    """Do a thing to text.

    Args:
        source: where the text lies.
        out: folder to write.
        ratio: how many times the second, without unit.
        kind: how to add up.
        fail: the error to end with.
    """
    CALLS.append({"source": source, "out": out, "ratio": ratio, "kind": kind})
    if fail == "interrupt":
        raise KeyboardInterrupt
    if fail == "disk":
        raise PermissionError(13, "Permission denied", str(out))
    if fail:
        raise getattr(errors, fail)(f"{out}: moe_topk is 0;\nuse 1..32")


def listing(
    files: list[Path] = [],  # noqa: B006
    seeds: list[int] = [0, 1],  # noqa: B006
    names: list[str] | None = None,
    source: Path | list[Path] | None = None,
) -> None:
    """Take lists.

    Args:
        files: files.
        seeds: numbers.
        names: names.
        source: one file or several.
    """
    CALLS.append({"files": files, "seeds": seeds, "names": names, "source": source})


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--files", "a.jsonl"], {"files": [Path("a.jsonl")]}),
        (["--files=a.jsonl", "--seeds", "3"], {"files": [Path("a.jsonl")], "seeds": [3]}),
        (["--files", "[a.jsonl, b.txt]", "--seeds", "[]"], {"files": [Path("a.jsonl"), Path("b.txt")], "seeds": []}),
        (["--names", "12", "--seeds=7"], {"names": ["12"], "seeds": [7]}),
        (["--names", "null"], {"names": None}),
        (
            ["--files", "a.jsonl", "b.txt", "--seeds", "3", "4"],
            {"files": [Path("a.jsonl"), Path("b.txt")], "seeds": [3, 4]},
        ),
        (["--names", "[a,", "b]", "--source", "c", "d"], {"names": ["a", "b"], "source": [Path("c"), Path("d")]}),
        (["--source", "a.jsonl", "--names", "1", "2"], {"names": ["1", "2"], "source": Path("a.jsonl")}),
    ],
)
def test_a_list_needs_no_brackets(monkeypatch, tmp_path, words, wanted):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"prompt": "not a list of paths"}\n')
    sys.modules["planted_verbs"].listing = listing  # type: ignore[attr-defined]
    monkeypatch.setitem(cli.VERBS, "data prepare", cli.Verb("planted_verbs:listing", "planted"))
    assert cli.main(["data", "prepare", *words]) == 0
    assert CALLS[-1] == {"files": [], "seeds": [0, 1], "names": None, "source": None} | wanted


@pytest.fixture(autouse=True)
def planted(monkeypatch):
    """Replace `monet data prepare` by the function above."""
    module = types.ModuleType("planted_verbs")
    module.verb = verb  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "planted_verbs", module)
    monkeypatch.setitem(cli.VERBS, "data prepare", cli.Verb("planted_verbs:verb", "planted"))
    CALLS.clear()


@pytest.mark.parametrize(("has_gpu", "calls"), [(False, 1), (True, 0)])
def test_verbs_that_read_text_are_quick_on_a_cpu(monkeypatch, has_gpu, calls):
    import torch

    import monet.cpu

    sped_up: list[bool] = []
    monkeypatch.setattr(monet.cpu, "speed_up_cpu", lambda: sped_up.append(True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert cli.VERBS["stats"].reads_text and cli.VERBS["ablate"].reads_text
    words = ["data", "prepare", "--source", "a", "--out", "b"]
    assert cli.main(words) == 0 and not sped_up
    monkeypatch.setitem(cli.VERBS, "data prepare", cli.Verb("planted_verbs:verb", "planted", reads_text=True))
    assert cli.main([*words[:2], "--help"]) == 0 and not sped_up
    assert cli.main(words) == 0 and len(sped_up) == calls


def test_help_lists_every_verb_without_importing_torch():
    code = (
        "import sys; from monet import cli; cli.main(['--help']); cli.main(['data', '--help']);"
        "print(sorted({'torch', 'transformers', 'lightning', 'numpy', 'jsonargparse'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[-1] == "[]"
    for name, entry in cli.VERBS.items():
        summary = entry.summary if name != "data prepare" else "text"
        assert any(line.startswith(f"  {name} ") and summary in line for line in lines), name


@pytest.mark.parametrize("name", [name for verbs in cli.GROUPS.values() for name in verbs])
def test_every_verb_has_a_function_whose_arguments_are_all_explained(name):
    groups = {name: entry for verbs in cli.GROUPS.values() for name, entry in verbs.items()}
    module, _, function = groups[name].target.partition(":")
    target = getattr(importlib.import_module(module), function)
    documented = "\n".join(inspect.getdoc(one) or "" for kind in groups_of(target).values() for one in kind.__mro__)
    documented += inspect.getdoc(target) or ""
    for parameter in types_of(target):
        assert f"{parameter}:" in documented or f"{parameter}," in documented, f"{groups[name].target}: {parameter}"


@pytest.mark.parametrize("name", [name for verbs in cli.GROUPS.values() for name in verbs if name != "data prepare"])
def test_every_verb_has_a_help(name, capsys):
    assert cli.main([*name.split(), "--help"]) == 0
    assert f"usage: monet {name}" in capsys.readouterr().out


def test_arguments_come_from_words_and_from_a_file_and_words_win(tmp_path):
    config = tmp_path / "options.yaml"
    config.write_text("out: from_file\nratio: 3\nkind: sum\n")
    assert cli.main(["data", "prepare", "--config", str(config), "--source", "a", "--ratio", "4"]) == 0
    assert [{"source": Path("a"), "out": Path("from_file"), "ratio": 4.0, "kind": "sum"}] == CALLS


def test_a_verbs_help_is_its_docstring(capsys):
    assert cli.main(["data", "prepare", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Do a thing to text." in shown and "how many times the second, without unit." in shown
    assert "{mean,sum}" in shown and "--config" in shown


@pytest.mark.parametrize(
    ("error", "code"),
    [("ConfigError", 2), ("DataError", 3), ("CheckpointError", 4), ("NonFiniteError", 5), ("disk", 1)],
)
def test_errors_are_one_line_and_an_exit_code(error, code, capsys):
    words = ["data", "prepare", "--source", "a", "--out", "b", "--fail", error]
    assert cli.main(words) == code
    shown = capsys.readouterr()
    assert shown.out == "" and len(shown.err.splitlines()) == 1 and shown.err.startswith("monet: error: ")
    assert "b" in shown.err
    assert cli.main(["--debug", *words]) == code
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_ends_with_130(capsys):
    assert cli.main(["data", "prepare", "--source", "a", "--out", "b", "--fail", "interrupt"]) == 130
    assert capsys.readouterr().err == "monet: interrupted\n"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["data", "prepare"], "source, out"),
        (["data", "prepare", "--source", "a", "--out", "b", "--ratoi", "3"], "--ratoi"),
        (["data", "prepare", "--source", "a", "--out", "b", "--ratio", "many"], "many"),
        (["data", "prepare", "--source", "a", "--out", "b", "--kind", "median"], "median"),
        (["data", "prepare", "--source", "a", "--out", "b", "--config", "absent.yaml"], "absent.yaml"),
        (["data", "prepar"], "did you mean 'data prepare'"),
        (["exprot"], "did you mean 'export'"),
        (["xyzzy"], "'xyzzy'"),
    ],
)
def test_usage_errors_name_the_word_and_end_with_2(words, named, capsys):
    assert cli.main(words) == 2
    assert named in capsys.readouterr().err
    assert CALLS == []


def test_no_command_shows_the_overview_and_ends_with_2(capsys):
    assert cli.main([]) == 2
    assert "Knowledge removal:" in capsys.readouterr().out


def test_python_m_monet_is_the_command():
    done = subprocess.run([sys.executable, "-m", "monet", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("monet ")


@dataclasses.dataclass(frozen=True)
class Machine(Options):
    """Where it runs.

    Args:
        device: name of it.
        sizes: some sizes.
        quick: in a hurry.
    """

    device: str = "auto"
    sizes: list[int] | None = None
    quick: bool = False


def grouped(model: str, machine: Machine = Machine(device="cpu")) -> None:
    """Use a group.

    Args:
        model: folder.
    """
    CALLS.append({"model": model, "machine": machine})


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], Machine("cpu")),
        (["--device", "gpu", "--sizes", "3", "--quick"], Machine("gpu", [3], True)),
        (["--config", "FILE"], Machine("file", [1, 2])),
        (["--config", "FILE", "--sizes=[4]"], Machine("file", [4])),
    ],
)
def test_fields_of_a_group_are_options_without_a_prefix(words, wanted, tmp_path, monkeypatch):
    (tmp_path / "options.yaml").write_text("device: file\nsizes: [1, 2]\n")
    monkeypatch.setitem(cli.VERBS, "grouped", cli.Verb(f"{__name__}:grouped", ""))
    monkeypatch.setitem(sys.modules, __name__, types.SimpleNamespace(grouped=grouped))
    CALLS.clear()
    words = [word.replace("FILE", str(tmp_path / "options.yaml")) for word in words]
    assert cli.main(["grouped", "--model", "m", *words]) == 0
    assert CALLS.pop() == {"model": "m", "machine": wanted}


def test_a_group_has_its_title_and_defaults_in_the_help(monkeypatch, capsys):
    monkeypatch.setitem(cli.VERBS, "grouped", cli.Verb(f"{__name__}:grouped", ""))
    monkeypatch.setitem(sys.modules, __name__, types.SimpleNamespace(grouped=grouped))
    assert cli.main(["grouped", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Where it runs:" in shown and "name of it. (type: str, default: cpu)" in shown
    assert cli.main(["grouped", "--model", "m", "--machine.device", "cpu"]) == 2


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        (["--sizes", "3", "-1", "--quick", "True"], [3, -1]),
        (["--sizes", "-2"], [-2]),
        (["--sizes=5", "--quick", "--device", "cpu"], [5]),
    ],
)
def test_lists_end_at_options_and_not_at_negative_numbers(words, sizes):
    assert cli.parsed(grouped, ["--model", "m", *words], "monet")["machine"] == Machine("cpu", sizes, len(words) != 2)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--modle", "m"], "unknown option --modle; did you mean --model?"),
        (["--model", "m", "--machine.device", "cpu"], "unknown option --machine.device; did you mean --device?"),
        (["--model", "m", "--sizes", "--quick"], "expected one argument"),
    ],
)
def test_an_unknown_option_names_the_nearest(words, told, capsys):
    with pytest.raises(SystemExit):
        cli.parsed(grouped, words, "monet")
    assert told in capsys.readouterr().err
