"""TRL trains Monet: preference tuning with a separate reference model, and with LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from monet import MonetForCausalLM
from monet.data.tokens.tokenizer import train_tokenizer
from tests.compat.released import AUTO_MAP, change_config
from tests.model.tiny import tiny_model

pytest.importorskip("trl")
PROMPTS = ["Is it day?", "Is the cat home?", "Who ran?", "What fell?"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model and its tokenizer."""
    tokenizer = train_tokenizer([" ".join([*PROMPTS, "Yes, it is.", "No."])] * 20, 280)
    folder = tmp_path / "model"
    tiny_model(vocab_size=280, bos_token_id=0, eos_token_id=1, pad_token_id=2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def dpo(model: Any, folder: Path, out: Path, **options: Any) -> Any:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    rows = [{"prompt": prompt, "chosen": " Yes, it is.", "rejected": " No."} for prompt in PROMPTS]
    settings = DPOConfig(
        output_dir=str(out), max_steps=3, per_device_train_batch_size=2, learning_rate=1e-2, logging_steps=1,
        report_to=[], save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trainer = DPOTrainer(
        model=model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, **options
    )
    trainer.train()
    return trainer


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("auto_map", [None, AUTO_MAP], ids=["ours", "released"])
@pytest.mark.parametrize("given", ["model", "path"])
def test_preferences_are_learnt_without_a_reference_model_given(folder, tmp_path, given, auto_map):
    if auto_map is not None:
        change_config(folder, auto_map=auto_map)
    model = MonetForCausalLM.from_pretrained(folder)
    model.freeze_router()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = dpo(model if given == "model" else str(folder), folder, tmp_path / "out")
    first, *_, last = losses(trainer)
    assert last < first
    if given == "model":  # a learning router, as in a model that TRL loads, routes a batch by the batch's statistics
        assert first == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-4)
        after = model.state_dict()
        assert all(torch.equal(after[name], before[name]) == (".router." in name) for name in before)
    trainer.save_model(str(tmp_path / "tuned"))
    again = MonetForCausalLM.from_pretrained(tmp_path / "tuned")
    assert again.config.auto_map == {}


@pytest.mark.slow
def test_preferences_are_learnt_by_lora(folder, tmp_path):
    from peft import LoraConfig, PeftModel

    model = MonetForCausalLM.from_pretrained(folder)
    adapters = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "u1", "u2"], task_type="CAUSAL_LM")
    trainer = dpo(model, folder, tmp_path / "out", peft_config=adapters)
    first, *_, last = losses(trainer)
    assert first == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-4) and last < first
    trainer.save_model(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(MonetForCausalLM.from_pretrained(folder), tmp_path / "adapter").eval()
    ids = torch.arange(3, 20)[None]
    assert torch.equal(again(ids).logits, trainer.model.eval()(ids).logits)
