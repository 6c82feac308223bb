"""Task heads start from any Monet checkpoint, keep their labels, apply masks, and train as reward models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.modeling_layers import GenericForSequenceClassification

from monet import (
    ExpertMask,
    MonetConfig,
    MonetForCausalLM,
    MonetForQuestionAnswering,
    MonetForSequenceClassification,
    MonetForTokenClassification,
    MonetModel,
)
from monet.errors import CheckpointError
from monet.model.modeling_monet import MonetPreTrainedModel
from tests.model.tiny import FORMS, byte_tokenizer, states_equal, tiny_config, tiny_model, tokens
from tests.tolerances import assert_close

AUTO = {
    MonetForSequenceClassification: AutoModelForSequenceClassification,
    MonetForTokenClassification: AutoModelForTokenClassification,
    MonetForQuestionAnswering: AutoModelForQuestionAnswering,
}
HEADS = list(AUTO)


class UsersHead(GenericForSequenceClassification, MonetPreTrainedModel):
    """A head that a user writes for a task that this package does not have."""


def scores(model, **arguments) -> torch.Tensor:
    """The output for two sequences of any kind of head."""
    outputs = model(tokens(), **arguments)
    return outputs.start_logits if isinstance(model, MonetForQuestionAnswering) else outputs.logits


def edit(folder: Path, **changes: torch.Tensor | None) -> None:
    """Rewrite tensors of a checkpoint; None removes one."""
    state = load_file(folder / "model.safetensors") | changes
    save_file({name: t for name, t in state.items() if t is not None}, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture
def language_model(tmp_path) -> Path:
    tiny_model().save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
@pytest.mark.parametrize("source", ["causal", "base"])
def test_a_head_starts_from_a_checkpoint(tmp_path, source, head, form):
    lm = tiny_model(form)
    (lm if source == "causal" else lm.model).save_pretrained(tmp_path)
    model, info = AUTO[head].from_pretrained(tmp_path, num_labels=3, output_loading_info=True)
    assert type(model) is head and states_equal(model.model, lm.model)
    assert info["missing_keys"] == {name for name, _ in model.named_parameters() if not name.startswith("model.")}
    assert torch.isfinite(scores(model)).all()
    assert model.fingerprint() == lm.fingerprint()


def test_transformers_warns_of_the_new_head(language_model, caplog):
    import transformers

    transformers.utils.logging.enable_propagation()
    try:
        MonetForSequenceClassification.from_pretrained(language_model)
    finally:
        transformers.utils.logging.disable_propagation()
    assert "score.weight" in caplog.text and "MISSING" in caplog.text


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_a_saved_head_comes_back_whole(tmp_path, head):
    names = {0: "no", 1: "perhaps", 2: "yes"}
    model = head(tiny_config(id2label=names, label2id={name: i for i, name in names.items()})).eval()
    model.save_pretrained(tmp_path)
    for load in (head.from_pretrained, AUTO[head].from_pretrained):
        again, info = load(tmp_path, output_loading_info=True)
        assert type(again) is head and not any(info.values()) and states_equal(again, model)
        assert again.config.id2label == names and again.config.num_labels == 3
        assert torch.equal(scores(again), scores(model))


def test_labels_stand_in_the_file_only_if_a_task_has_set_them(tmp_path):
    keys = {"id2label", "label2id", "num_labels", "problem_type"}
    for changes in ({}, {"num_labels": 2}):
        assert not keys & tiny_config(**changes).to_dict().keys()
    config = tiny_config(num_labels=1, problem_type="regression")
    config.save_pretrained(tmp_path)
    again = MonetConfig.from_pretrained(tmp_path)
    assert again.num_labels == 1 and again.problem_type == "regression"
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == {"0": "LABEL_0"}


def test_the_sequence_head_reads_the_last_token_that_is_no_padding():
    model = MonetForSequenceClassification(tiny_config(num_labels=3)).eval()
    ids = tokens(3, 7)
    ids[1, 4:] = 0
    ids[2, :3] = 0
    mask = (ids != 0).long()
    labels = torch.tensor([2, 0, 1])
    outputs = model(ids, attention_mask=mask, labels=labels)
    states = model.model(ids, attention_mask=mask).last_hidden_state
    wanted = states[torch.arange(3), torch.tensor([6, 3, 6])] @ model.score.weight.T
    assert_close("logits", outputs.logits, wanted)
    assert_close("loss", outputs.loss, F.cross_entropy(wanted, labels))


def test_the_other_heads_losses():
    model = MonetForTokenClassification(tiny_config(num_labels=4)).eval()
    labels = torch.randint(0, 4, (2, 9))
    labels[0, :3] = -100
    outputs = model(tokens(), labels=labels)
    assert_close(
        "loss", outputs.loss, F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    )
    model = MonetForQuestionAnswering(tiny_config()).eval()
    start, end = torch.tensor([1, 2]), torch.tensor([4, 8])
    outputs = model(tokens(), start_positions=start, end_positions=end)
    wanted = (F.cross_entropy(outputs.start_logits, start) + F.cross_entropy(outputs.end_logits, end)) / 2
    assert_close("loss", outputs.loss, wanted)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_gradients_reach_every_parameter(head):
    model = head(tiny_config(moe_topk=4)).train()
    scores(model).square().sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_masks_in_a_head(tmp_path, head):
    model = head(tiny_config()).eval()
    mask = ExpertMask.random(model.config, 60, seed=0)
    plain, masked = scores(model), scores(model, expert_mask=mask)
    assert not torch.allclose(masked, plain)
    assert torch.equal(masked, scores(model, expert_mask=[mask, mask]))
    mixed = scores(model, expert_mask=[None, mask])
    assert_close("logits", mixed, torch.stack([plain[0], masked[1]]))
    with mask.applied_to(model):
        assert torch.equal(scores(model), masked)
    assert torch.equal(scores(model), plain)
    model.set_expert_mask(mask)
    assert torch.equal(scores(model), masked)
    model.save_pretrained(tmp_path)
    again = AUTO[head].from_pretrained(tmp_path)
    assert again.expert_mask == mask and torch.equal(scores(again), masked)


def test_a_stored_mask_goes_on_to_the_head(tmp_path):
    lm = tiny_model()
    mask = ExpertMask.random(lm.config, 60, seed=0)
    lm.set_expert_mask(mask)
    lm.save_pretrained(tmp_path)
    model = MonetForSequenceClassification.from_pretrained(tmp_path)
    assert model.expert_mask == mask
    assert torch.equal(model.model(tokens()).last_hidden_state, lm.model(tokens()).last_hidden_state)


def test_a_users_own_head(tmp_path, language_model):
    model = UsersHead.from_pretrained(language_model, num_labels=3)
    model.save_pretrained(tmp_path / "own")
    again = UsersHead.from_pretrained(tmp_path / "own")
    assert again.config.num_labels == 3 and states_equal(again, model)


def test_one_configuration_serves_several_starts(tmp_path, language_model):
    """A search over hyperparameters starts one head after another with one configuration object."""
    config = MonetConfig.from_pretrained(language_model, num_labels=3)
    for name in ("first", "second"):
        model = MonetForSequenceClassification.from_pretrained(language_model, config=config)
        model.save_pretrained(tmp_path / name)
        assert config.num_labels == model.num_labels == 3


def test_a_head_may_follow_another_head(tmp_path, language_model):
    first = MonetForSequenceClassification.from_pretrained(language_model, num_labels=3)
    first.save_pretrained(tmp_path / "first")
    second = MonetForQuestionAnswering.from_pretrained(tmp_path / "first")
    base = AutoModel.from_pretrained(tmp_path / "first")
    assert type(base) is MonetModel and states_equal(base, second.model)
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors: lm_head\.weight"):
        MonetForCausalLM.from_pretrained(tmp_path / "first")


def test_a_body_has_no_language_model_head(tmp_path):
    tiny_model().model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors: lm_head\.weight"):
        MonetForCausalLM.from_pretrained(tmp_path)


B1 = "model.layers.0.moe.b1"


@pytest.mark.parametrize("head", [*HEADS, UsersHead], ids=lambda head: head.__name__)
def test_the_body_of_a_head_is_checked(language_model, head):
    b1 = load_file(language_model / "model.safetensors")[B1]
    edit(language_model, **{B1: None})
    with pytest.raises(CheckpointError, match=rf"lacks 1 tensors: {B1}"):
        head.from_pretrained(language_model)
    edit(language_model, **{B1: b1 * torch.nan})
    with pytest.raises(CheckpointError, match=f"tensor {B1} holds values that are NaN"):
        head.from_pretrained(language_model)
    edit(language_model, **{B1: b1, "model.extra": b1.clone()})
    with pytest.raises(CheckpointError, match=r"holds unknown 1 tensors: model\.extra"):
        head.from_pretrained(language_model)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_a_saved_head_may_not_lose_its_parameters(tmp_path, head):
    model = head(tiny_config())
    model.save_pretrained(tmp_path)
    lost = next(name for name, _ in model.named_parameters() if not name.startswith("model."))
    edit(tmp_path, **{lost: None})
    with pytest.raises(CheckpointError, match=f"lacks 1 tensors: {lost}"):
        AUTO[head].from_pretrained(tmp_path)


def test_another_number_of_labels_is_refused(tmp_path):
    MonetForSequenceClassification(tiny_config(num_labels=3)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="misshapen"):
        MonetForSequenceClassification.from_pretrained(tmp_path, num_labels=5)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("adapters", [False, True])
def test_a_reward_model_by_trl(tmp_path, form, adapters):
    trl = pytest.importorskip("trl")
    peft = pytest.importorskip("peft")
    from datasets import Dataset

    tokenizer = byte_tokenizer()
    tiny_model(form, vocab_size=len(tokenizer), max_position_embeddings=128).save_pretrained(tmp_path / "lm")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "lm", num_labels=1)
    rows = [{"chosen": f"good text {number}", "rejected": f"bad words {number}"} for number in range(8)]
    data = Dataset.from_list(rows)
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules="all-linear") if adapters else None
    trainer = trl.RewardTrainer(
        model=model,
        args=trl.RewardConfig(str(tmp_path), max_steps=20, learning_rate=2e-2, report_to=[], use_cpu=True, bf16=False),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
        peft_config=config,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < 0.5 * before and after["eval_accuracy"] == 1.0
    trainer.save_model(str(tmp_path / "reward"))
    if adapters:
        base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "lm", num_labels=1)
        again = peft.PeftModel.from_pretrained(base, tmp_path / "reward")
    else:
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    batch = tokenizer(["good text 1"], return_tensors="pt")
    assert_close("reward", again.eval()(**batch).logits, trainer.model.eval()(**batch).logits)
