"""The table of resources compiles without a GPU, shows spills and tensor cores, and enforces its limits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("triton")

import triton

from benchmarks import aot
from monet.errors import ConfigError
from tests.benchmarks import toy_kernels as toys

TOYS = ("tests.benchmarks.toy_kernels",)


@pytest.fixture(scope="module")
def rows():
    return [aot.measure(case, sm) for case in toys.AOT for sm in (80, 90)]


@pytest.fixture
def limits(rows):
    return aot.updated(rows, {"triton": None, "limits": {}}, "3.x")


def test_figures_are_those_of_the_machine_code(rows):
    by_key = {aot.key(row): row for row in rows}
    assert set(by_key) == {f"sm_{sm} {name}" for sm in (80, 90) for name in ("scale fp32", "product bf16")}
    scale, product = by_key["sm_90 scale fp32"], by_key["sm_90 product bf16"]
    assert scale["warps"] == 2 and product["warps"] == 4
    assert scale["shared"] == 0 and scale["tensor_cores"] == "no"
    # One operand of the product, 64 x 64 bf16, is read from shared memory.
    assert product["shared"] >= 64 * 64 * 2 and product["tensor_cores"] == "wgmma"
    assert by_key["sm_80 product bf16"]["tensor_cores"] == "mma.sync"
    for row in rows:
        assert 8 <= row["registers"] <= 255 and row["spill_stores"] == row["spill_loads"] == 0 and row["seconds"] > 0


def test_a_spill_is_seen_and_never_admitted_by_an_update(limits):
    row = aot.measure(toys.SPILLING, 80)
    assert row["spill_stores"] > 0 and row["stack"] > 0
    limits = aot.updated([row], limits, "3.x")
    assert [problem for problem in aot.problems([row], limits) if "spill_bytes" in problem]
    limits["limits"][aot.key(row)]["spill_bytes"] = 1 << 20
    assert aot.problems([row], aot.updated([row], limits, "3.x")) == []


def test_updated_limits_hold(rows, limits):
    assert aot.problems(rows, limits) == []


@pytest.mark.parametrize("field", ["registers", "shared"])
def test_a_figure_beyond_its_limit_is_a_problem(rows, limits, field):
    limits["limits"]["sm_90 product bf16"][field] = rows[3][field] - 1
    (problem,) = aot.problems(rows, limits)
    assert problem.startswith("sm_90 product bf16") and field in problem


def test_a_launch_without_a_limit_and_a_limit_without_a_launch_are_problems(rows, limits):
    limits["limits"]["sm_90 gone"] = limits["limits"].pop("sm_90 scale fp32")
    missing, gone = aot.problems(rows, limits)
    assert missing.startswith("sm_90 scale fp32: no limit") and gone.startswith("sm_90 gone")
    assert aot.problems([row for row in rows if row["sm"] == 80], limits) == []


def test_more_shared_memory_than_the_device_has_is_a_problem_whatever_the_limit(rows, limits):
    row = {**rows[0], "shared": aot.MAX_SHARED[80] + 1}
    limits["limits"][aot.key(row)]["shared"] = 1 << 30
    assert any("do not fit the device" in problem for problem in aot.problems([row], limits))


def test_command_fails_until_the_limits_are_written(tmp_path, capsys):
    folder, table = tmp_path / "limits", tmp_path / "table.json"
    path = folder / f"{triton.__version__}.json"
    run = ["--sm", "90", "--json", str(table)]
    assert aot.main(run, TOYS, folder) == 1
    printed = capsys.readouterr()
    assert "scale fp32" in printed.out and f"triton {triton.__version__} has no limits" in printed.err
    assert not folder.exists()
    assert aot.main([*run, "--update"], TOYS, folder) == 0
    assert aot.main(run, TOYS, folder) == 0
    assert [row["kernel"] for row in json.loads(table.read_text())["rows"]] == ["scale fp32", "product bf16"]
    limits = json.loads(path.read_text())
    limits["limits"]["sm_90 scale fp32"]["registers"] = 1
    path.write_text(json.dumps(limits))
    assert aot.main(run, TOYS, folder) == 1
    assert "registers is" in capsys.readouterr().err


def test_limits_of_another_release_do_not_count(monkeypatch, tmp_path, capsys):
    assert aot.main(["--sm", "90", "--update"], TOYS, tmp_path) == 0
    monkeypatch.setattr(triton, "__version__", "0.0")
    assert aot.main(["--sm", "90"], TOYS, tmp_path) == 1
    assert "triton 0.0 has no limits" in capsys.readouterr().err


def test_modules_that_give_no_launches_are_refused(monkeypatch, capsys, tmp_path):
    assert aot.main([], ("monet.kernels.nothing_here",), tmp_path) == ConfigError.exit_code
    assert "monet.kernels.nothing_here" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no attribute 'AOT'"):
        aot.load_cases(["monet.kernels.checks"])
    with pytest.raises(ConfigError, match="'scale fp32' occurs twice"):
        aot.load_cases([*TOYS, *TOYS])
    monkeypatch.setattr(toys, "AOT", [])
    with pytest.raises(ConfigError, match="empty"):
        aot.load_cases(TOYS)


def test_every_list_of_launches_is_compiled():
    root = Path(__file__).resolve().parents[2]
    listing = {
        f"monet.{'.'.join(path.relative_to(root).with_suffix('').parts)}"
        for path in (root / "kernels").rglob("*.py")
        if re.search(r"^AOT\b", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }
    assert listing == set(aot.MODULES)


def test_a_launch_that_does_not_fit_its_kernel_is_refused():
    with pytest.raises(ConfigError, match="factor"):
        aot.measure(toys.SCALE._replace(signature={"x_ptr": "*fp32", "out_ptr": "*fp32", "N": "i32"}), 90)
    with pytest.raises(ConfigError, match="no Triton kernel"):
        aot.measure(toys.SCALE._replace(kernel=len), 90)


def test_interpreted_kernels_are_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert aot.main([], TOYS, tmp_path) == ConfigError.exit_code
    assert "TRITON_INTERPRET" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", '{"triton": "3.9", "limits": {"a": {}}}'])
def test_unreadable_limits_are_refused(tmp_path, content):
    (tmp_path / "limits.json").write_text(content)
    with pytest.raises(ConfigError, match="unreadable limits"):
        aot.read_limits(tmp_path / "limits.json")
