"""Faults that all suites have in common, and the table of all faults (docs/evaluation-faults.md)."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from monet.errors import ConfigError
from monet.eval.ablation.measure import ablate
from monet.eval.ablation.results import AblationResult
from monet.eval.attribution.selection import select
from monet.eval.attribution.stats import collect
from monet.eval.core.conditions import conditions
from monet.eval.core.controls import Controls
from monet.eval.core.store import ExampleStore
from monet.eval.core.window_losses import window_losses
from monet.eval.reporting import command as report
from monet.masks.expert_mask import ExpertMask

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "evaluation-faults.md"


@pytest.fixture
def masks(planted_model, planted_data):
    return select(collect(planted_model, planted_data, progress=False))


def run(model, masks, data, out) -> AblationResult:
    found = ablate(model, masks, data, out=out, controls=Controls(1), control_on="target", progress=False)
    assert found is not None
    return found


def test_a_result_is_replaced_whole_or_not_at_all(planted_model, masks, planted_data, tmp_path, monkeypatch):
    """E1: if anything stops the last write, the folder has the earlier result or none."""
    first = run(planted_model, masks, planted_data, tmp_path)
    content = (tmp_path / "result.json").read_bytes()

    def stops(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", stops)
        with pytest.raises(KeyboardInterrupt):
            run(planted_model, {"left": masks["left"]}, planted_data, tmp_path)
        with pytest.raises(KeyboardInterrupt):
            report.write(first, tmp_path / "report")
    assert (tmp_path / "result.json").read_bytes() == content
    assert not list((tmp_path / "report").iterdir())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".result")] == []
    assert list(run(planted_model, {"left": masks["left"]}, planted_data, tmp_path).domains[0].random_per_control)


def test_two_processes_do_not_keep_outcomes_in_one_file(tmp_path):
    """E1: a second process would write lines between those of the first."""
    with ExampleStore(tmp_path, {"data": "a"}) as first:
        first.put("1", 0.5)
        with pytest.raises(ConfigError, match="open in another process"), ExampleStore(tmp_path, {"data": "a"}):
            pass
        first.put("2", 0.25)
    with ExampleStore(tmp_path, {"data": "a"}) as again:
        assert len(again) == 2


@pytest.mark.parametrize("calls", [1, 2])
def test_a_pass_that_dies_takes_its_mask_off(random_model, random_data, monkeypatch, calls):
    """E6: the model is bitwise unchanged, for each batch in which the pass can die."""
    mask = ExpertMask.random(random_model.config, 8, seed=0)
    before = window_losses(random_model, None, random_data, batch_size=4).loss_sum_W
    forward, count = random_model.forward, iter(range(100))

    def dies(*args, **options):
        found = forward(*args, **options)
        if next(count) == calls:
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patched:
        patched.setattr(random_model, "forward", dies)
        with pytest.raises(KeyboardInterrupt):
            window_losses(random_model, mask, random_data, batch_size=4)
    assert not random_model.training
    after = window_losses(random_model, None, random_data, batch_size=4).loss_sum_W
    masked = window_losses(random_model, mask, random_data, batch_size=4).loss_sum_W
    assert (before == after).all() and (before != masked).any()


def test_two_masks_in_a_batch_are_those_of_two_passes(random_model, random_data):
    """E6: if the rows of a batch have separate masks, each row gets the result of a pass under only its mask."""
    masks = [ExpertMask.random(random_model.config, 8, seed=seed) for seed in (0, 1)]
    (batch,) = replace(random_data, sequences=random_data.sequences[:2], label_of=[0, 1]).batches(2)
    inputs = {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_mask_BT}
    with torch.no_grad():
        together = random_model(**inputs, expert_mask=masks).logits
        alone = [random_model(**inputs, expert_mask=mask).logits[row] for row, mask in enumerate(masks)]
        plain = random_model(**inputs).logits
    real = batch.attention_mask_BT.bool() if batch.attention_mask_BT is not None else torch.ones(plain.shape[:2]).bool()
    for row, wanted in enumerate(alone):
        torch.testing.assert_close(together[row][real[row]], wanted[real[row]], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(together[row][real[row]], plain[row][real[row]], rtol=1e-5, atol=1e-6)


def test_every_mask_has_controls_of_its_size_and_the_model_itself_none(random_model):
    """E7: the conditions of every suite; a mask that removes nothing equals the unmasked model."""
    masks = {
        "some": ExpertMask.random(random_model.config, [3, 5], seed=0),
        "nothing": ExpertMask.keep_all(random_model.config),
    }
    found = conditions(masks, Controls(2), "")
    assert [(one.label, one.control) for one in found] == [(None, None), ("some", None), ("some", 0), ("some", 1)]
    assert found[0].mask is None
    assert {tuple(one.mask.removed_per_group) for one in found[1:]} == {(3, 5)}
    assert len({one.mask.keep_REE.numpy().tobytes() for one in found[1:]}) == 3


def rows() -> dict[str, str]:
    """Lines of the table by the fault's number."""
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    return {match[1]: line for line in lines if (match := re.match(r"\| (E\d+\w?) ", line))}


def test_the_table_has_every_fault():
    assert {name[:2] for name in rows()} == {f"E{number}" for number in range(1, 10)}


def test_the_table_names_tests_that_exist():
    named = [pair for line in rows().values() for pair in re.findall(r"`([\w/]+\.py)::(\w+)`", line)]
    assert len(named) >= 20
    for file, function in named:
        path = ROOT / "tests" / file
        assert path.is_file(), f"{TABLE.name} names {file}, which does not exist"
        assert re.search(rf"^def {function}\(", path.read_text(encoding="utf-8"), flags=re.MULTILINE), (
            f"{file}: {function}"
        )


def test_every_line_of_the_table_is_shown_by_a_test():
    assert all("::" in line for line in rows().values())
