"""A local Hugging Face classifier: its labels, its probabilities, and refusals."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
)

from monet.errors import CheckpointError, ConfigError
from monet.eval.scorers.classifier import ClassifierScorer
from monet.eval.scorers.scorers import Failure, Score

TINY = {"vocab_size": 12, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
        "max_position_embeddings": 16}  # fmt: skip


@pytest.fixture
def make(words_tokenizer, tmp_path):
    def made(**changes):
        torch.manual_seed(0)
        words_tokenizer.pad_token = "ant"
        words_tokenizer.save_pretrained(tmp_path)
        config = BertConfig(**TINY, initializer_range=1.0, **changes)
        model = BertForSequenceClassification(config).eval()
        model.save_pretrained(tmp_path)
        return str(tmp_path), model

    return made


def test_the_named_label(make):
    folder, model = make(num_labels=3, id2label={0: "fine", 1: "toxic", 2: "odd"}, label2id={"toxic": 1})
    texts = ["cat dog", "rude", "harsh mean cat elm oak"]
    wanted = [
        model(torch.tensor([ids])).logits.softmax(-1)[0, 1].item()
        for ids in ([2, 3], [11], [9, 10, 2, 4, 6])
    ]  # fmt: skip
    for label in ("toxic", "TOXIC", 1, "1"):
        scorer = ClassifierScorer(folder, label=label, batch_size=2)
        assert [outcome.value for outcome in scorer.score(texts)] == pytest.approx(wanted, abs=1e-5)
    assert ClassifierScorer(folder, label=0).key != scorer.key
    with pytest.raises(ConfigError, match="labels 0 fine, 1 toxic, 2 odd; name the toxic one"):
        ClassifierScorer(folder)
    with pytest.raises(ConfigError, match="no label 'rude'"):
        ClassifierScorer(folder, label="rude")


def test_labels_that_stand_alone_are_probabilities_of_their_own(make):
    folder, model = make(num_labels=2, problem_type="multi_label_classification")
    wanted = model(torch.tensor([[2, 3]])).logits.sigmoid()[0, 1].item()
    (outcome,) = ClassifierScorer(folder, label=1).score(["cat dog"])
    assert outcome.value == pytest.approx(wanted, abs=1e-5)
    folder, model = make(num_labels=1)
    wanted = model(torch.tensor([[2, 3]])).logits.sigmoid()[0, 0].item()
    (outcome,) = ClassifierScorer(folder).score(["cat dog"])
    assert outcome.value == pytest.approx(wanted, abs=1e-5)


def test_what_cannot_be_scored_is_marked(make):
    folder, _ = make(num_labels=2)
    scorer = ClassifierScorer(folder, label=1)
    long, short = scorer.score(["cat " * 15, "cat " * 14])
    assert long == Failure("too long", "more than 14 tokens") and isinstance(short, Score)
    with torch.no_grad():
        scorer.model.classifier.bias[1] = float("nan")
    (outcome,) = scorer.score(["cat"])
    assert outcome == Failure("no score", "the label's is nan")


def test_only_trained_classifiers_without_pickles(make, tmp_path):
    with pytest.raises(CheckpointError, match="no classifier"):
        ClassifierScorer(str(tmp_path / "absent"))
    folder, model = make(num_labels=2)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="Pickled weights are never loaded"):
        ClassifierScorer(folder, label=1)
    BertForMaskedLM(BertConfig(**TINY)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"no weights for .*classifier\.bias"):
        ClassifierScorer(folder, label=1)


def test_a_tokenizer_without_a_token_for_padding(make):
    folder, _ = make(num_labels=2)
    texts = ["cat", "harsh mean cat elm oak", "rude dog"]
    wanted = ClassifierScorer(folder, label=1).score(texts)
    settings = Path(folder, "tokenizer_config.json")
    content = json.loads(settings.read_text())
    assert content.pop("pad_token") == "ant"
    settings.write_text(json.dumps(content))
    assert [one.value for one in ClassifierScorer(folder, label=1).score(texts)] == pytest.approx(
        [one.value for one in wanted], abs=1e-6
    )


def test_kept_scores_of_another_tokenizer_are_not_taken(make):
    folder, _ = make(num_labels=2)
    before = ClassifierScorer(folder, label=1).key
    assert ClassifierScorer(folder, label=1).key == before
    file = Path(folder, "tokenizer.json")
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["cat"], vocabulary["rude"] = vocabulary["rude"], vocabulary["cat"]
    file.write_text(json.dumps(content))
    assert ClassifierScorer(folder, label=1).key != before


def test_an_adapter_beside_the_weights_is_refused(make):
    peft = pytest.importorskip("peft")
    folder, model = make(num_labels=2)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"], init_lora_weights=False))
    adapted.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="an adapter is in the same folder"):
        ClassifierScorer(folder, label=1)
