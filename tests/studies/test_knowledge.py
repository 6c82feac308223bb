"""Tests of the knowledge command: its rules, its page, and a complete run on tiny models and texts."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from monet import MonetForCausalLM
from monet.convert.dense.report import Domain, Report, Trend
from monet.data.preparation.prepare import prepare
from monet.errors import ConfigError, DataError
from monet.eval.core.estimate import Estimate
from monet.eval.suites.facts.read import read_facts
from studies.knowledge import __main__ as command
from studies.knowledge import asked_tables, page
from studies.knowledge.asked import Asking, targets
from studies.knowledge.conversion import check_same_layers, check_same_model, families_of
from studies.knowledge.overlap import jaccard
from studies.knowledge.results import AskedFacts, AskedQuestions, KnowledgeResult, LostFacts, LostQuestions
from studies.removal import page as pages
from studies.removal.candidates import top_neurons
from studies.removal.plan import Plan
from studies.transcoders.module import Shape
from tests.eval.conftest import config
from tests.eval.suites.questions.samples import labelled_rows, other_rows, write_jsonl
from tests.studies.recipes import recipe
from tests.studies.test_latents import trained
from tests.tolerances import assert_close

DOMAINS = ["botany", "code", "law", "german"]


def test_neurons_come_from_the_chosen_layers_only():
    means_CLF = torch.rand(2, 4, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    masks = top_neurons(means_CLF, ["a", "b"], 0.2, {}, layers=[1, 3])
    for mask in masks.values():
        counts = mask.removed_per_group
        assert counts[0] == counts[2] == 0 and sum(counts) == 4
    assert sum(top_neurons(means_CLF, ["a", "b"], 0.2, {})["a"].removed_per_group) == 8


def test_families_come_from_the_option():
    assert families_of(["programming=code"], DOMAINS) == {
        "botany": "subject", "code": "programming", "law": "subject", "german": "natural",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="no domain 'java'"):
        families_of(["programming=java"], DOMAINS)
    with pytest.raises(ConfigError, match="FAMILY=DOMAIN"):
        families_of(["code"], DOMAINS)
    with pytest.raises(ConfigError, match="has the family a already"):
        families_of(["a=law", "b=law"], DOMAINS)


def test_a_domain_may_be_alone_if_the_plan_allows_it():
    Plan(Path("out"), Path("data"), relearn=[], lone_domains=True).check_families(["english", "french", "java"])


def test_overlap_is_shared_experts_over_those_of_either():
    chosen_CN = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    wanted = torch.tensor([[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 0]], dtype=torch.float64)
    assert_close("jaccard", jaccard(chosen_CN), wanted)


def test_conversions_differ_only_in_their_seed():
    def converted(layers: list[int]) -> Any:
        return SimpleNamespace(folder="x", report=SimpleNamespace(model="m", layers=layers, tokens=1, distil_tokens=1))

    check_same_layers([converted([1]), converted([1])])
    with pytest.raises(ConfigError, match="has layers"):
        check_same_layers([converted([1]), converted([0])])


def test_transcoders_differ_only_in_their_seed_and_imitate_the_same_model():
    def one(fingerprint: str, tokens: int) -> Any:
        return SimpleNamespace(
            folder="x",
            trained_transcoders=SimpleNamespace(model_fingerprint=fingerprint, tokens=tokens, shape=Shape(4, 9, 2)),
        )

    models: Any = [SimpleNamespace(folder="m", report=SimpleNamespace(settings={"model_fingerprint": "a"}))]
    check_same_model(models, [one("a", 1), one("a", 1)])
    with pytest.raises(ConfigError, match="another dense model"):
        check_same_model(models, [one("b", 1)])
    with pytest.raises(ConfigError, match="2 tokens"):
        check_same_model(models, [one("a", 1), one("a", 2)])


def test_make_converts_each_seed_once_and_quick_only_one():
    full, quick = recipe("knowledge", "SEEDS=0 2"), recipe("knowledge", "QUICK=1")
    assert full.count("monet convert") == 2 and "--model runs/knowledge runs/knowledge-seed2 " in full
    assert quick.count("monet convert") == 1 and "--layers 22-26" in quick and quick.rstrip().endswith("--quick")
    assert "--tokens 150000 --distil_tokens 30000 --seed 0" in quick and "--seed 2" in full
    assert "--recipe facts --out data/facts-languages --domains" in quick and "--facts data/facts-languages/f" in quick
    assert "--recipe facts --out data/facts \n" in full and "--facts data/facts/facts.jsonl" in full


def line(domain: str, relation: str, number: int, answers: Sequence[str]) -> dict[str, Any]:
    """A line of a file of facts."""
    answer, *wrong = answers
    return {
        "prompt": f"{relation} {number} is", "answer": answer, "choices": wrong, "domain": domain, "relation": relation,
        "phrasing": "a", "subject": str(number),
    }  # fmt: skip


def write_facts(path: Path, relations: Sequence[tuple[str, str]]) -> Path:
    """Three facts of each relation."""
    lines = [
        line(domain, relation, number, [*["abc", "bca", "cab", "acb"][number:], "cba"])
        for domain, relation in relations
        for number in range(3)
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


def test_a_domain_is_judged_by_the_facts_with_the_name_of_its_subject(tmp_path):
    relations = [("definitions", "law"), ("definitions", "music"), ("languages", "german"), ("places", "capital")]
    facts = read_facts([write_facts(tmp_path / "facts.jsonl", relations)])
    domains = ["dictionary_law", "prose_law", "dictionary_general", "german", "cpp"]
    assert targets(domains, facts) == {
        "dictionary_law": "definitions/law", "prose_law": "definitions/law", "german": "languages/german",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="none of the removed domains cpp has the name"):
        targets(["cpp"], facts)


def test_what_cannot_be_asked_is_refused_at_once(tmp_path):
    facts = write_facts(tmp_path / "facts.jsonl", [("definitions", "law")])
    Asking([facts], questions=write_questions(tmp_path / "questions")).check(["dictionary_law"])
    with pytest.raises(ConfigError, match="none of the removed domains cpp"):
        Asking([facts]).check(["cpp"])
    with pytest.raises(ConfigError, match="limit 0"):
        Asking([facts], facts_limit=0).check(["dictionary_law"])
    (tmp_path / "questions" / "sciq" / "validation.jsonl").unlink()
    with pytest.raises(DataError, match="no data for sciq"):
        Asking(questions=tmp_path / "questions").check(["law"])


def test_what_is_not_asked_is_missing():
    assert set(Asking().missing) == {"Facts", "ARC-Easy, SciQ, PIQA, LAMBADA"}
    assert not Asking((Path("facts"),), questions=Path("questions")).missing


def removal(value: float, passes: bool) -> LostFacts:
    return LostFacts(
        "law", "definitions/law", Estimate(value, value - 1, value + 1), Estimate(-0.25, -0.5, 0.0), None,
        Estimate(-0.1, -0.2, 0.0), 9, 0.1 - value / 100, 0.2, passes, "" if passes else "why", [value, 0.5, value],
        [-0.25, 0.125, -0.25],
    )  # fmt: skip


def asked_facts(model: str, kind: str, value: float, passes: bool) -> AskedFacts:
    score = Estimate(value, None, None)
    names = ["definitions", "places", "definitions/law"]
    return AskedFacts(model, kind, names, [20, 9, 7], [score] * 3, [score] * 3, [removal(-value, passes)])


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_tables_of_facts():
    found = [
        asked_facts("a", "monet", 1.0, True),
        asked_facts("b", "monet", 3.0, False),
        asked_facts("d", "llama", 2.0, True),
    ]
    header, _, monet, llama = cells(asked_tables.lost(found))
    row = dict(zip(header, monet, strict=True))
    assert row["log-odds"] == "-2.000 (-3.000 to -1.000)" and row["passes"] == "1 of 2" and row["p"] == "0.13"
    assert dict(zip(header, llama, strict=True))["log-odds"] == "-2.000 [-3.000, -1.000]" and llama[-1] == "yes"
    assert "0 of 1 removals from Monet." in asked_tables.passing(found)
    assert "1 of 1 removals from LLaMA." in asked_tables.passing(found)
    assert cells(asked_tables.matrix(found))[0::2] == [
        ["removed", "definitions", "places"],
        ["law", "-2.000", "+0.500"],
    ]
    assert cells(asked_tables.matrix(found, True))[2] == ["law", "-25.0", "+12.5"]
    assert cells(asked_tables.facts(found))[2][:3] == ["definitions", "20", "+2.000 (+1.000 to +3.000)"]
    assert "definitions/law (7 facts)" in asked_tables.caution(found) and "places" not in asked_tables.caution(found)


def test_table_of_questions():
    def asked(kind: str, value: float) -> AskedQuestions:
        score = Estimate(value, value - 0.1, value + 0.1)
        lost = LostQuestions("law", [score.times(0.5)], score.times(0.5), None, 0, 1.0, 1.0)
        return AskedQuestions("m", kind, ["SciQ"], [40], [score], [lost])

    header, _, *rows = cells(asked_tables.questions([asked("monet", 0.5), asked("llama", 0.6)]))
    assert header == ["removed", "from", "SciQ", "mean", "random", "p"]
    assert rows[0][:3] == ["nothing (accuracy)", "Monet", "50.0 [40.0, 60.0]"]
    assert rows[3] == ["law", "LLaMA", "+30.0 [+25.0, +35.0]", "+30.0 [+25.0, +35.0]", "-", "1"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Prepared text, two tiny Monets with a conversion's report, and a LLaMA, all at random."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("knowledge")
    for number, domain in enumerate(DOMAINS):
        draw = random.Random(number)
        letters = [chr(ord("a") + (3 * number + i) % 26) for i in range(6)]
        (folder / "text" / domain).mkdir(parents=True)
        with open(folder / "text" / domain / "part.jsonl", "w") as file:
            for _ in range(128):
                text = " ".join("".join(draw.choices(letters, k=5)) for _ in range(40))
                file.write(json.dumps({"text": text}) + "\n")
    splits = {"train": 0.1, "validation": 0.3, "identify": 0.3, "evaluate": 0.3}
    data = prepare(str(folder / "text"), folder / "data", vocab_size=300, splits=splits)
    shape = config(vocab_size=300, initializer_range=0.3, max_position_embeddings=256)
    dense = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2
    )  # fmt: skip
    for seed, name in enumerate(("run", "run-seed1", "dense")):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(dense) if name == "dense" else MonetForCausalLM(shape)
        model.save_pretrained(folder / name)
        for file in data.tokenizer_dir.iterdir():
            (folder / name / file.name).write_bytes(file.read_bytes())
        if name != "dense":
            Report(
                model="tiny", layers=[1], settings={}, tokens=1000, distil_tokens=0, fvu_start={1: 0.9}, fvu={1: 0.5},
                curve=[], trends={1: Trend(None, None)}, groups=[], parts=[],
                parameters={"all": 10, "routers and experts": 5},
                domains=[Domain("law", 10, 2.0, 2.2, 2.1, 0.1, 0.1)],
            ).save(folder / name)  # fmt: skip
    trained(folder / "transcoders", [1])
    return folder


def write_questions(folder: Path) -> Path:
    """Data of ARC-Easy, SciQ, PIQA and LAMBADA in the hub's form."""
    write_jsonl(folder / "lambada_openai" / "test.jsonl", other_rows("lambada", 5))
    write_jsonl(folder / "ai2_arc" / "ARC-Easy" / "validation.jsonl", labelled_rows("arc", 5))
    write_jsonl(folder / "sciq" / "validation.jsonl", other_rows("sciq", 5))
    write_jsonl(folder / "piqa" / "validation.jsonl", other_rows("piqa", 5))
    return folder


@pytest.mark.slow
def test_the_whole_command_and_its_second_run(folders, tmp_path, monkeypatch):
    (tmp_path / "knowledge.md").write_text(f"head\n{page.BEGIN}\n{pages.END}\ntail\n")
    words = [
        "--model", str(folders / "run"), str(folders / "run-seed1"), "--dense", str(folders / "dense"),
        "--transcoders", str(folders / "transcoders"),
        "--data", str(folders / "data"), "--out", str(tmp_path / "out"), "--docs", str(tmp_path), "--quick",
        "--windows", "3", "--control_windows", "2", "--controls", "2", "--harder_controls", "1",
        "--settling_windows", "2", "--settling_controls", "1", "--random_removals", "1", "--relearn", "law",
        "--steps", "1", "2", "--shares", "0.05", "--families", "programming=code",
        "--facts", str(write_facts(tmp_path / "facts.jsonl", [("a", "law"), ("a", "german"), ("b", "places")])),
        "--questions", str(write_questions(tmp_path / "questions")), "--facts_controls", "1", "--questions_limit", "3",
    ]  # fmt: skip
    command.main(words)
    content = json.loads((tmp_path / "knowledge.json").read_text())
    keys = {"model", "layers", "tokens", "fvu", "perplexity_dense", "perplexity_converted", "domains"}
    assert keys <= content.keys() and content["fvu"] == {"1": 0.5} and content["layers"] == [1]
    for row in content["domains"]:
        assert {
            "name", "target_delta", "target_interval", "others_max_delta", "random_delta", "equal_mass_delta", "p", "q",
            "passes",
        } <= row.keys()  # fmt: skip
    assert [(row["name"], row["family_max_name"]) for row in content["domains"]][1] == ("code", None)
    assert all(row["removed_per_group"][0] == 0 for row in content["dense"])
    assert [row["name"] for row in content["transcoders"]] == [row["name"] for row in content["domains"]]
    assert all(row["removed_per_group"] == [row["removed"]] for row in content["transcoders"])
    assert content["transcoder_models"][0]["unit"] == "latent" and "transcoders" not in content["missing"]
    assert [one["kind"] for one in content["relearning"]] == ["monet", "llama", "transcoder"]
    assert len(content["overlap"]["permuted"]) >= 1 and content["by_layers"][0]["layers"] == [1]
    result = KnowledgeResult.load(tmp_path / "knowledge.json")
    assert (
        [one.model for one in result.facts] == ["run", "run-seed1", "dense"] == [one.model for one in result.questions]
    )
    for one in result.facts:
        assert one.names == ["a", "b", "a/law", "a/german", "b/places"] and one.facts == [4, 2, 2, 2, 2]
        assert [(lost.name, lost.target, lost.controls) for lost in one.removals] == [
            ("german", "a/german", 1), ("law", "a/law", 1),
        ]  # fmt: skip
        assert any(lost.log_odds.value for lost in one.removals)
    for one in result.questions:
        assert one.names == ["ARC-Easy", "SciQ", "PIQA", "LAMBADA"] and one.questions == [3] * 4
        assert [lost.name for lost in one.removals] == list(result.families)
    assert result.settings["facts_limit"] == 2 and not result.missing
    text = pages.written(tmp_path / "knowledge.md", page.BEGIN)
    assert text == page.body(result).strip() and page.failing(result) in " ".join(text.split())
    assert (tmp_path / page.FIGURE).read_bytes().startswith(b"\x89PNG")

    def forbidden(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr("monet.eval.core.window_losses.losses_of", forbidden)
    monkeypatch.setattr("studies.removal.relearning.trained_losses", forbidden)
    monkeypatch.setattr("monet.eval.suites.facts.scoring.FactScorer.score", forbidden)
    monkeypatch.setattr("monet.eval.suites.questions.scoring.Scorer.score", forbidden)
    monkeypatch.setattr("monet.eval.attribution.stats.collect", forbidden)
    monkeypatch.setattr("monet.eval.baselines.neurons.activities", forbidden)
    command.main(words)
    again = KnowledgeResult.load(tmp_path / "knowledge.json")
    assert (again.domains, again.facts, again.questions) == (result.domains, result.facts, result.questions)
