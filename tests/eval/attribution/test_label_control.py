"""Rules under permuted labels: they find nothing of a planted structure, and the same number without structure."""

import json
from dataclasses import replace

import pytest
import torch

from monet.cli import main
from monet.eval.ablation.measure import ablate
from monet.eval.attribution.label_control import LabelControl, label_controls, of_masks, warning
from monet.eval.attribution.rules import Argmax, MutualInformation, Pearson, Ratio, Top
from monet.eval.attribution.selection import select, select_by
from monet.eval.attribution.stats import Wanted, collect
from monet.eval.core.controls import Controls
from monet.eval.core.document import Table, Text
from monet.eval.core.inputs import LabelledSequences
from monet.eval.reporting.command import report_of
from monet.eval.suites.loss.curve import evaluate_curve
from tests.eval.conftest import LABELS, TOKENS_PER_LABEL

OFTEN = Wanted(firing=True, permutations=10)


@pytest.fixture
def many_documents(planted_data) -> LabelledSequences:
    """The planted text in 120 documents; the documents of one label have score 1."""
    generator = torch.Generator().manual_seed(4)
    label_of = [number % 3 for number in range(120)]
    sequences = [(TOKENS_PER_LABEL * one + torch.randint(4, (10,), generator=generator)).tolist() for one in label_of]
    scores = [[float(one == 1)] * 10 for one in label_of]
    return LabelledSequences(LABELS, sequences, label_of, scores=scores)


@pytest.fixture
def unstructured() -> LabelledSequences:
    """The same kind of text under three labels."""
    generator = torch.Generator().manual_seed(6)
    sequences = torch.randint(24, (90, 6), generator=generator).tolist()
    scores = torch.rand(90, generator=generator).tolist()
    return LabelledSequences(LABELS, sequences, [n % 3 for n in range(90)], scores=[[one] * 6 for one in scores])


@pytest.mark.parametrize(
    "rule", [Ratio(2.0), MutualInformation(0.05), Top(count=1), Top(count=1, by="mutual_information")], ids=repr
)
def test_planted_experts_are_not_found_under_permuted_labels(planted_model, many_documents, rule):
    statistics = collect(planted_model, many_documents, wanted=OFTEN, progress=False)
    found = label_controls(rule, statistics)
    assert [one.experts for one in found.values()] == [1, 1, 1]
    assert all(len(one.permuted) == 10 and one.mean <= 0.1 for one in found.values()), found
    assert not warning(found)


@pytest.mark.parametrize("rule", [Pearson(0.5), Top(count=1, by="pearson")], ids=repr)
def test_planted_correlations_are_not_found_under_permuted_scores(planted_model, many_documents, rule):
    statistics = collect(planted_model, many_documents, wanted=OFTEN, progress=False)
    (found,) = label_controls(rule, statistics).values()
    assert found.experts == 1 and found.permuted == [0] * 10


def all_experts(controls: dict[str, LabelControl]) -> tuple[int, list[int]]:
    permuted = [sum(numbers) for numbers in zip(*(one.permuted for one in controls.values()), strict=True)]
    return sum(one.experts for one in controls.values()), permuted


@pytest.mark.parametrize("rule", [Ratio(1.1), MutualInformation(1e-4), Pearson(0.02), Argmax()], ids=repr)
def test_without_structure_permuted_labels_give_as_many(random_model, unstructured, rule):
    statistics = collect(random_model, unstructured, wanted=replace(OFTEN, permutations=20), progress=False)
    found = label_controls(rule, statistics)
    experts, permuted = all_experts(found)
    assert experts > 2 and 0.6 < experts / (sum(permuted) / 20) < 1.7
    assert "may be there by chance" in warning(found)


def test_styles_of_documents_are_not_taken_for_domains(planted_model):
    """Each document activates one expert, independent of its label; four documents a label are then easily uneven.

    A shuffle of single tokens would spread them evenly and hide this.
    """
    kinds = [0, 0, 0, 1, 1, 1, 2, 2, 0, 2, 2, 1]
    sequences = [[TOKENS_PER_LABEL * kind + n % 4 for n in range(20)] for kind in kinds]
    data = LabelledSequences(LABELS, sequences, [n // 4 for n in range(12)])
    experts, permuted = all_experts(label_controls(Ratio(2.0), collect(planted_model, data, wanted=OFTEN,
                                                                       progress=False)))  # fmt: skip
    assert experts >= 1 and sum(permuted) / len(permuted) >= experts / 2


def test_a_fixed_number_is_compared_by_the_least_rank(random_model, unstructured):
    statistics = collect(random_model, unstructured, wanted=OFTEN, progress=False)
    for per in ("all", "group"):
        rule = Top(count=3, by="mean", per=per)
        owns, chosen = Top(fraction=1.0, by="mean"), rule.chosen(statistics)
        means_CREE = statistics.means()
        for number, permuted in enumerate(statistics.permuted):
            found = rule.found_in(permuted, statistics)
            owned = owns.chosen(permuted)
            for index, label in enumerate(LABELS):
                wanted = 0
                pools = [slice(group, group + 1) for group in range(2)] if per == "group" else [slice(None)]
                for pool in pools:
                    if not bool(chosen[label][pool].any()):
                        continue
                    least = means_CREE[index][pool][chosen[label][pool]].min()
                    reach = permuted.means()[index][pool] >= least
                    wanted += int((reach & owned[label][pool]).sum())
                assert found[label] == wanted == label_controls(rule, statistics)[label].permuted[number]
    nothing = label_controls(Top(count=0), statistics)
    assert all(one.experts == 0 == one.mean and one.fixed_number for one in nothing.values())


def test_an_expert_of_one_label_alone_is_reached_by_such_experts_only(planted_model, many_documents):
    """The expert's ratio is infinite; under permuted labels it fires everywhere."""
    statistics = collect(planted_model, many_documents, wanted=OFTEN, progress=False)
    assert all(one.permuted == [0] * 10 for one in label_controls(Top(count=5), statistics).values())


def test_masks_carry_it_and_reports_show_it(planted_model, many_documents, tmp_path):
    statistics = collect(planted_model, many_documents, progress=False)
    masks = select(statistics)
    assert masks["left"].provenance["label_control"]["experts"] == 1
    data = replace(many_documents, scores=None)
    result = ablate(planted_model, masks, data, out=tmp_path, controls=Controls(1), progress=False)
    assert result is not None
    table = next(one for one in report_of(result).blocks if isinstance(one, Table) and "permuted" in one.title)
    assert table.rows == [[label, "1", f"{of_masks(result.provenance['masks'])[label].permuted[0]}"]
                          for label in LABELS]  # fmt: skip
    chance = {"experts": 4, "permuted": [2, 2], "fixed_number": False}
    result.provenance["masks"]["left"]["label_control"] = chance
    (caution,) = [one.text for one in report_of(result).blocks if isinstance(one, Text) and "by chance" in one.text]
    assert "left: 4, permuted 2.0 (2, 2)" in caution and "middle" not in caution
    curve = evaluate_curve(
        planted_model, statistics, Ratio(2.0), [2.0, 4.0], data, out=tmp_path, controls=Controls(1), progress=False
    )
    assert curve is not None
    rows = next(one for one in report_of(curve).blocks if isinstance(one, Table) and "permuted" in one.title).rows
    assert [row[0] for row in rows] == [f"{label} at {ratio}" for ratio in (2, 4) for label in LABELS]


def test_select_prints_it(planted_model, random_model, many_documents, unstructured, tmp_path, capsys):
    def shown(statistics, *words: str) -> str:
        statistics.save(tmp_path / "s.safetensors")
        out = ["--statistics", str(tmp_path / "s.safetensors"), "--out", str(tmp_path / "masks")]
        assert main(["select", *out, *words]) == 0
        return " ".join(capsys.readouterr().out.split())

    found = shown(collect(planted_model, many_documents, wanted=OFTEN, progress=False))
    assert "permuted labels" in found and "by chance." in found and "warning" not in found
    summary = json.loads((tmp_path / "masks" / "summary.json").read_text())
    assert len(summary["labels"]["left"]["label_control"]["permuted"]) == 10
    found = shown(collect(random_model, unstructured, wanted=OFTEN, progress=False), "--ratio", "1.1")
    assert "warning: Under permuted labels" in found
    found = shown(collect(random_model, unstructured, progress=False), "--rule", "top", "--count", "3")
    assert "reach, under permuted labels, the lowest rank" in found
    none = collect(random_model, unstructured, wanted=Wanted(permutations=0), progress=False)
    assert "have no permuted labels" in shown(none) and label_controls(Ratio(), none) == {}
    assert "label_control" not in select_by(none, Ratio())["left"].provenance


def test_numbers_in_words():
    assert LabelControl(9, [3], False).words == "3" and not LabelControl(9, [4], False).by_chance
    assert LabelControl(9, [4, 5, 6], False).words == "5.0 (4, 5, 6)" and LabelControl(9, [4, 5], False).by_chance
    assert LabelControl(9, list(range(7)), False).words == "3.0 (0 to 6)"
    assert not LabelControl(0, [4], False).by_chance
