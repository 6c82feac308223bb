"""Tests of the evidence command: its rules, its page, and a complete run on tiny models and texts."""

from __future__ import annotations

import json
import lzma
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from monet import MonetForCausalLM
from monet.data.preparation.prepare import prepare
from monet.errors import CheckpointError, ConfigError, DataError
from monet.eval.core.estimate import Draws, Estimate
from studies.evidence import __main__ as command
from studies.evidence import failures, page
from studies.evidence.results import EvidenceResult
from studies.removal import page as pages
from studies.removal import relearning, rows, tables
from studies.removal.measure import settled
from studies.removal.models import check_different
from studies.removal.plan import NATURAL, Plan
from studies.removal.results import Arm, Domain, Share, Stage, Times, Trial
from tests.eval.conftest import config
from tests.studies.recipes import recipe
from tests.tolerances import assert_close
from tools.prose.__main__ import RULES, check, read_rules

DOCS = Path(__file__).resolve().parents[2] / "docs"
DOMAINS = [*NATURAL, "java", "php"]
KEYS = {
    "name", "target_delta", "target_interval", "others_mean_delta", "others_max_delta", "family_mean_delta",
    "random_delta", "equal_mass_delta", "p", "q", "passes",
}  # fmt: skip


def share(size: float, holding: str) -> Share:
    """A share at which the domains named by letters hold."""
    return Share(size, {name: Trial(1, 1.0, 0.5 if name in holding else 2.0, "x", 0.1) for name in "abc"})


@pytest.mark.parametrize(
    ("shares", "taken"),
    [
        ([(0.01, "ab"), (0.02, "ab"), (0.03, "a")], 0.02),
        ([(0.01, "abc"), (0.02, "ab"), (0.03, "a")], 0.01),
        ([(0.01, ""), (0.02, "")], 0.02),
    ],
)
def test_the_share_is_the_largest_at_which_most_domains_hold(shares, taken):
    assert settled([share(*one) for one in shares]).share == taken


@pytest.mark.parametrize(
    ("trial", "holds"),
    [
        (Trial(3, 1.0, 0.9, "b", 0.9), True),
        (Trial(3, 1.0, 1.0, "b", 0.9), False),
        (Trial(3, 1.0, 0.9, "b", 1.0), False),
        (Trial(0, 0.0, -1.0, "b", -1.0), False),
    ],
)
def test_a_domain_holds_above_every_other_and_every_random_removal(trial, holds):
    assert trial.holds is holds


def test_times_are_any_where_the_others_lose_nothing():
    own = Draws(2.0, np.array([1.0, 2.0, 3.0, 4.0]))
    assert rows.times(own, Draws(0.5, np.array([0.5, 0.5, 0.5, 0.5])), 0.95) == Times(4.0, 2.0, 8.0)
    assert rows.times(own, Draws(0.5, np.array([0.5, 0.5, 0.5, -0.5])), 0.95) == Times(4.0, 2.0, None)
    assert rows.times(own, Draws(-0.1, np.array([-0.5, -0.5, -0.5, -0.5])), 0.95) == Times(None, None, None)
    assert rows.times(Draws(-2.0, -own.draws_Q), Draws(-0.1, -own.draws_Q), 0.95) == Times(0.0, 0.0, 0.0)


def test_what_returned_is_a_share_of_the_first_cost():
    costs = {0: Draws(0.4, np.array([0.4, 0.5])), 10: Draws(0.1, np.array([0.1, 0.25]))}
    found = relearning._returned(costs, 10)
    wanted = torch.tensor([0.75, 0.75, 0.5], dtype=torch.float64)
    assert_close("returned", torch.tensor([found.value, *found.draws_Q], dtype=torch.float64), wanted)
    nothing = relearning._returned({0: Draws(-0.1, np.array([0.1, -0.1])), 10: costs[10]}, 10)
    assert np.isnan(nothing.value) and np.isnan(nothing.draws_Q[1])


def test_the_text_goes_between_the_marks(tmp_path):
    file = tmp_path / "page.md"
    file.write_text(f"head\n{page.BEGIN}\nold\n{pages.END}\ntail\n")
    for _ in range(2):
        pages.insert(file, "\\1 new\n", page.BEGIN)
        assert file.read_text() == f"head\n{page.BEGIN}\n\\1 new\n{pages.END}\ntail\n"
    assert pages.written(file, page.BEGIN) == "\\1 new"
    file.write_text(f"head\n{page.BEGIN}\n")
    with pytest.raises(KeyError, match="must each be there once"):
        pages.insert(file, "new", page.BEGIN)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shares": [0.0]}, "shares"),
        ({"steps": [2, 1]}, "steps"),
        ({"controls": 0}, "controls 0"),
        ({"control_windows": 1}, "control_windows 1"),
    ],
)
def test_a_plan_out_of_range_is_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        Plan(Path("out"), Path("data"), **change)


def test_a_domain_needs_another_of_its_family():
    plan = Plan(Path("out"), Path("data"), relearn=["php"])
    plan.check_families(["english", "french", "java", "php"])
    with pytest.raises(DataError, match="'java' is the only programming language"):
        plan.check_families(["english", "french", "java"])
    with pytest.raises(ConfigError, match="relearn php"):
        plan.check_families(["english", "french", "java", "lua"])


def check_page(docs: Path) -> EvidenceResult:
    """The page has the numbers of the JSON and no others."""
    result = EvidenceResult.load(docs / "evidence.json")
    assert pages.written(docs / "evidence.md", page.BEGIN) == page.body(result).strip()
    return result


def test_the_page_tells_what_the_json_holds():
    """Both are written by one command. Numbers that an earlier command wrote stay until it runs."""
    content = json.loads((DOCS / "evidence.json").read_text())
    if content["format"] != EvidenceResult.FORMAT:
        told = pages.written(DOCS / "evidence.md", page.BEGIN)
        assert "three random masks" in told and f"{content['domains'][0]['target_delta']:+.3f}" in told
        pytest.skip(f"docs/evidence.json is {content['format']}; `make evidence` writes {EvidenceResult.FORMAT}")
    check_page(DOCS)


def test_make_trains_each_seed_in_its_own_run():
    said = recipe("evidence", "SEEDS=0 2", "DENSE_SEEDS=0")
    trained = re.findall(r"--run_dir (\S+) +--seed_everything (\d+) --data.seed (\d+)", said.replace("\\\n", " "))
    assert trained == [
        ("runs/evidence", "0", "0"), ("runs/evidence-seed2", "2", "2"), ("runs/evidence-llama", "0", "0"),
    ]  # fmt: skip
    assert "--model runs/evidence/export runs/evidence-seed2/export --dense runs/evidence-llama/export" in said


def write_text(folder: Path) -> Path:
    """Every domain uses different letters; natural languages have the four works."""
    works = list(failures.SUBJECTS.values())
    for number, domain in enumerate(DOMAINS):
        draw = random.Random(number)
        letters = [chr(ord("a") + (3 * number + i) % 26) for i in range(6)]
        (folder / domain).mkdir(parents=True)
        with lzma.open(folder / domain / "part-00.jsonl.xz", "wt", encoding="utf-8") as file:
            for document in range(128):
                words = ("".join(draw.choices(letters, k=5)) for _ in range(40))
                record = {"text": " ".join(words), "source": f"{works[document % 4]}-xy:page-{document}.html"}
                file.write(json.dumps(record) + "\n")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Text, prepared text, two Monets and a LLaMA, all at random."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("evidence")
    text = write_text(folder / "text")
    data = prepare(
        str(text),
        folder / "data",
        vocab_size=300,
        splits={"train": 0.1, "validation": 0.3, "identify": 0.3, "evaluate": 0.3},
    )
    shape = config(vocab_size=300, initializer_range=0.3, max_position_embeddings=256)
    dense = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2
    )  # fmt: skip
    for seed, name in enumerate(("monet", "monet-seed1", "llama")):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(dense) if name == "llama" else MonetForCausalLM(shape)
        model.save_pretrained(folder / name / "export")
        for file in data.tokenizer_dir.iterdir():
            (folder / name / "export" / file.name).write_bytes(file.read_bytes())
    return folder


def words(folders: Path, out: Path, models: list[str]) -> list[str]:
    """The command's arguments with the smallest possible sizes."""
    return [
        "--model", *(str(folders / name / "export") for name in models), "--dense", str(folders / "llama" / "export"),
        "--data", str(folders / "data"), "--text", str(folders / "text"), "--out", str(out / "out"),
        "--docs", str(out), "--shares", "0.05", "0.1", "--windows", "3", "--control-windows", "2", "--controls", "2",
        "--harder-controls", "1", "--settling-windows", "2", "--settling-controls", "1", "--random-removals", "1",
        "--owners", "french", "php", "--relearn", "php", "--steps", "1", "2",
    ]  # fmt: skip


def check_domains(found: list[Domain], seeds: int) -> None:
    """Rows over models follow from the rows of each model."""
    assert [row.name for row in found] == sorted(DOMAINS)
    for row in found:
        assert len(row.seeds) == seeds and row.passes == all(one.passes for one in row.seeds)
        assert (row.p, row.q) == (max(one.p for one in row.seeds), max(one.q for one in row.seeds))
        for key in ("target_delta", "family_mean_delta", "others_mean_delta", "random_delta", "equal_mass_delta"):
            mean = torch.tensor([getattr(one, key) for one in row.seeds], dtype=torch.float64).mean()
            assert_close(key, torch.tensor(getattr(row, key), dtype=torch.float64), mean)
        assert row.target_interval[0] <= row.target_delta <= row.target_interval[1]
        assert set(row.spread) == ({"target_delta", "family_mean_delta", "others_mean_delta"} if seeds > 1 else set())
        assert row.against["mass"].reached == pytest.approx(1.0, abs=1e-5)


@pytest.mark.slow
def test_the_whole_command(folders, tmp_path, monkeypatch):
    (tmp_path / "evidence.md").write_text(f"head\n{page.BEGIN}\n{pages.END}\ntail\n")
    for models in (["monet"], ["monet", "monet-seed1"]):
        command.main(words(folders, tmp_path, models))
        result = check_page(tmp_path)
        check_domains(result.domains, len(models))
        check_domains(result.dense, 1)
        content = json.loads((tmp_path / "evidence.json").read_text())
        for row in content["domains"]:
            assert KEYS | {"seeds"} <= row.keys() and all(one.keys() >= KEYS for one in row["seeds"])
        assert [one.name for one in result.models] == models and result.dense_models[0].name == "llama"
        assert [(one.name, one.kind, len(one.seeds)) for one in result.relearning] == [
            ("php", "monet", len(models)), ("php", "llama", 1),
        ]  # fmt: skip
        assert [stage.step for stage in result.relearning[0].arms[1].stages] == [0, 1, 2]
        assert [one.name for one in result.failures["subjects"]] == list(failures.SUBJECTS)
        assert [len(result.failures[name]) for name in ("ratio", "argmax")] == [len(DOMAINS), 2]
        told = " ".join((tmp_path / "evidence.md").read_text().split())
        assert ("in the one Monet" if len(models) == 1 else "in each of the 2 Monets") in told
        assert ("## Over training seeds" in told) == (len(models) > 1)
        assert (tmp_path / page.FIGURE).read_bytes().startswith(b"\x89PNG")
        assert check("docs/evidence.md", (tmp_path / "evidence.md").read_text(), *read_rules(RULES.read_text())) == []

    def forbidden(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr("monet.eval.core.window_losses.losses_of", forbidden)
    monkeypatch.setattr(relearning, "trained_losses", forbidden)
    monkeypatch.setattr("monet.eval.attribution.stats.collect", forbidden)
    monkeypatch.setattr("monet.eval.baselines.neurons.activities", forbidden)
    command.main(words(folders, tmp_path, ["monet", "monet-seed1"]))
    assert EvidenceResult.load(tmp_path / "evidence.json").domains == result.domains


@pytest.mark.parametrize(("name", "fingerprint"), [("a", "2"), ("b", "1")])
def test_a_model_given_twice_is_refused(name, fingerprint):
    first: Any = SimpleNamespace(name="a", fingerprint="1", folder="a/export")
    second: Any = SimpleNamespace(name=name, fingerprint=fingerprint, folder="b/export")
    check_different([first, cast(Any, SimpleNamespace(name="c", fingerprint="3", folder="c/export"))])
    with pytest.raises(ConfigError, match="a/export and b/export hold the same weights or have the same name"):
        check_different([first, second])


def domain(name: str, passed: list[bool]) -> Domain:
    """A row for tests that need only the verdict."""
    rest = {field: 0.0 for field in Domain.__dataclass_fields__}
    seeds = [Domain(**{**rest, "name": name, "passes": one, "reason": "" if one else "why"}) for one in passed]
    return Domain(**{**rest, "name": name, "passes": all(passed), "reason": "why", "seeds": seeds})


def test_the_verdict_names_what_fails():
    rows_ = [domain("a", [True, True]), domain("b", [True, False]), domain("c", [False, False])]
    assert pages.verdict(rows_, "Monet") == (
        "1 of 3 domains pass in each of the 2 Monets: a. These pass in some of them: b in 1. "
        "These fail in all of them: c."
    )
    models: Any = [SimpleNamespace(name="first"), SimpleNamespace(name="second")]
    why = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables.reasons(rows_, models).splitlines()[2:]]
    assert why == [["b", "second", "why"], ["c", "first", "why"], ["c", "second", "why"]]
    assert tables.reasons(rows_[:1], models) == ""
    assert pages.verdict([domain("a", [True])], "Monet") == "1 of 1 domains pass in the one Monet: a."


def test_an_unknown_share_is_told_in_words():
    arm = Arm("own", 3.0, [Stage(0, Estimate(0.0, -0.1, 0.1), None), Stage(5, Estimate(0.0, -0.1, 0.1), None)])
    found = relearning.Relearning("php", "monet", [arm, Arm("random", 9.0, arm.stages)], [])
    assert pages.returned([found]) == (
        "The share of a removal's cost that returned after 5 steps follows. For php in the Monet it is an unknown "
        "share, and an unknown share for random removals."
    )


def test_a_result_of_another_format_is_refused(tmp_path):
    (tmp_path / "evidence.json").write_text('{"format": "monet-evidence/1"}')
    with pytest.raises(CheckpointError, match="make evidence"):
        EvidenceResult.load(tmp_path / "evidence.json")
