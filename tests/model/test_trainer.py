"""transformers' Trainer: evaluation, the best checkpoint, accumulation with auxiliary losses, heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments, default_data_collator
from transformers.utils.generic import find_labels

from monet import (
    MonetForCausalLM,
    MonetForQuestionAnswering,
    MonetForSequenceClassification,
    MonetForTokenClassification,
)
from monet.model.losses import RouterLoss
from tests.model.tiny import fill, states_equal, tiny_config, tiny_model, tokens
from tests.tolerances import assert_close


def rows(ids: torch.Tensor) -> Dataset:
    return Dataset.from_list([{"input_ids": row, "labels": row} for row in ids.tolist()])


def trainer(model: Any, folder: Path, data: Dataset, kind: type[Trainer] = Trainer, **options: Any) -> Trainer:
    settings = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "per_device_eval_batch_size": 4, **options}
    return kind(
        model=model,
        args=TrainingArguments(str(folder), **settings),
        train_dataset=data,
        eval_dataset=data,
        data_collator=default_data_collator,
    )


def test_the_labels_are_those_of_llama():
    assert find_labels(MonetForCausalLM) == ["labels"]
    assert find_labels(MonetForSequenceClassification) == find_labels(MonetForTokenClassification) == ["labels"]
    assert find_labels(MonetForQuestionAnswering) == ["start_positions", "end_positions"]


def test_labels_that_are_already_shifted_are_still_taken():
    model, ids = tiny_model(), tokens()
    shifted = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    assert torch.equal(model(ids, shift_labels=shifted).loss, model(ids, labels=ids).loss)


def test_evaluate_returns_the_loss(tmp_path):
    model, ids = tiny_model(), tokens(8)
    metrics = trainer(model, tmp_path, rows(ids)).evaluate()
    with torch.no_grad():
        assert_close("eval_loss", torch.tensor(metrics["eval_loss"]), model(ids, labels=ids).loss)


def test_predictions_are_the_logits(tmp_path):
    model, ids = tiny_model(), tokens(8)
    predicted = trainer(model, tmp_path, rows(ids)).predict(rows(ids))
    with torch.no_grad():
        assert_close("logits", torch.tensor(predicted.predictions), model(ids, use_cache=False).logits)
    assert torch.equal(torch.tensor(predicted.label_ids), ids)


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path):
    """The largest loss counts as the best here, so that the best checkpoint is not the last."""
    model = tiny_model()
    run = trainer(
        model, tmp_path, rows(tokens(8)), eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        max_steps=4, load_best_model_at_end=True, greater_is_better=True, learning_rate=1e-2,
    )  # fmt: skip
    run.train()
    losses = {entry["step"]: entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry}
    best = max(losses, key=lambda step: losses[step])
    assert best < 4 and run.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert states_equal(model, MonetForCausalLM.from_pretrained(tmp_path / f"checkpoint-{best}"))


class WithRouterLoss(Trainer):
    """Trains on the auxiliary losses too."""

    def compute_loss(self, model, inputs, **options):
        return super().compute_loss(model, {**inputs, "router_loss": RouterLoss(1.0, 1.0, "softmax")}, **options)


@pytest.mark.parametrize("parts", [2, 4])
def test_auxiliary_losses_count_once_in_an_accumulated_step(tmp_path, parts):
    """With micro-batches of equal rows, one row gives the same loss and the same step as four."""
    results = []
    for accumulated in (1, parts):
        model = tiny_model()
        run = trainer(
            model, tmp_path, rows(tokens(1).repeat(parts, 1)), WithRouterLoss, max_steps=1, logging_steps=1,
            per_device_train_batch_size=parts // accumulated, gradient_accumulation_steps=accumulated,
            max_grad_norm=0.0, optim="sgd", learning_rate=1e-2,
        )  # fmt: skip
        model.freeze_router()
        run.train()
        results.append((torch.tensor(run.state.log_history[0]["loss"]), model.model.layers[1].moe.u1.weight))
    (one_loss, one_weight), (many_loss, many_weight) = results
    assert_close("loss", many_loss, one_loss)
    assert_close("weight", many_weight, one_weight)


def test_auxiliary_losses_of_micro_batches_are_weighted_by_their_labels():
    """The mean is weighted by tokens: micro-batches with 8 and 3 labels have weights 8/11 and 3/11."""
    model, aux = tiny_model(), RouterLoss(1.0, 1.0)
    ids = tokens(2)
    labels = ids.clone()
    labels[1, :6] = -100
    total, wanted = torch.zeros(()), torch.zeros(())
    for row, count in ((0, 8), (1, 3)):
        batch = {"input_ids": ids[row, None], "labels": labels[row, None], "router_loss": aux}
        total += model(**batch, num_items_in_batch=torch.tensor(11)).loss
        wanted += count / 11 * model(**batch).loss
    assert_close("loss", total, wanted)


def test_a_classifier_trains_and_is_evaluated(tmp_path):
    model = MonetForSequenceClassification(tiny_config(num_labels=3))
    fill(model)
    ids = tokens(12)
    data = Dataset.from_list([{"input_ids": row, "label": row[-1] % 3} for row in ids.tolist()])
    run = trainer(model, tmp_path, data, max_steps=20, learning_rate=1e-2, per_device_train_batch_size=12)
    run.compute_metrics = lambda result: {"accuracy": float((result.predictions.argmax(-1) == result.label_ids).mean())}
    before = run.evaluate()
    run.train()
    after = run.evaluate()
    assert after["eval_loss"] < 0.5 * before["eval_loss"] and after["eval_accuracy"] > 0.9
