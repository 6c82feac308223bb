"""Scores texts with a Hugging Face sequence classifier, e.g. ToxiGen-RoBERTa, on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from monet.devices import choose_device
from monet.errors import CheckpointError, ConfigError
from monet.eval.core.decoding import tokenizer_digest
from monet.eval.core.loading import provenance_now, weights_digest
from monet.eval.scorers.scorers import Failure, Outcome, Score


class ClassifierScorer:
    """Probability of one label of a sequence classifier.

    A model of several exclusive labels gives a softmax over them. A model of a single label, or one whose configuration
    says `multi_label_classification`, gives a sigmoid.

    Args:
        name: folder or name on the hub. Only safetensors weights are read, because pickled weights can run any program.
        label: name or number of the label; None takes the only one.
        revision: branch, tag or commit on the hub.
        batch_size: texts per forward.
        device: a torch device; auto takes a GPU if there is one.

    Raises:
        CheckpointError: there is no classifier, or its weights are not in safetensors.
        ConfigError: there is no such label, or no label is named and there are several.
    """

    def __init__(
        self,
        name: str,
        *,
        label: str | int | None = None,
        revision: str | None = None,
        batch_size: int = 32,
        device: str = "auto",
    ) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        where = choose_device(device)
        try:
            chosen: dict[str, Any] = {} if revision is None else {"revision": revision}
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **chosen)
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                name, trust_remote_code=False, use_safetensors=True, output_loading_info=True, **chosen
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{name}: no classifier with tokenizer and safetensors weights ({str(error).splitlines()[0]}). "
                "Pickled weights are never loaded: name a revision that has safetensors, or convert the weights once "
                "if you trust the file. --scorer.kind words needs no download"
            ) from None
        if getattr(model, "_hf_peft_config_loaded", False):  # an adapter hides which weights are missing
            raise CheckpointError(f"{name}: an adapter is in the same folder and would change the weights; remove it")
        if missing := sorted(loading["missing_keys"]):
            raise CheckpointError(
                f"{name}: has no weights for {', '.join(missing[:5])}, so it is not a trained classifier; name "
                "another model"
            )
        self.name = name
        self.model: Any = model.to(where).eval()
        self.label = _label_number(label, self.model.config.id2label, name)
        self.batch_size = batch_size
        config = self.model.config
        self._sigmoid = config.num_labels == 1 or config.problem_type == "multi_label_classification"
        # RoBERTa's position table has two rows that no token uses
        table = getattr(config, "max_position_embeddings", None) or 514
        self._longest = min(int(self.tokenizer.model_max_length), table - 2)
        if self.tokenizer.pad_token is None:  # padding is masked
            self.tokenizer.pad_token = self.tokenizer.convert_ids_to_tokens(config.pad_token_id or 0)
        self._digest = weights_digest(self.model)
        self._tokenizer_digest = tokenizer_digest(self.tokenizer)

    @property
    def key(self) -> dict[str, Any]:
        return {
            "kind": "classifier",
            "name": self.name,
            "weights": self._digest,
            "tokenizer": self._tokenizer_digest,
            "label": self.label,
            "batch_size": self.batch_size,
            "device": self.model.device.type,
            "versions": provenance_now()["versions"],
        }

    @property
    def at_once(self) -> int:
        return 8 * self.batch_size

    @torch.no_grad()
    def score(self, texts: Sequence[str]) -> list[Outcome]:
        """Return one outcome per text. A text longer than the classifier's limit is a failure; it is not cut."""
        outcomes: list[Outcome] = [Failure("too long", f"more than {self._longest} tokens")] * len(texts)
        lengths = [len(ids) for ids in self.tokenizer(list(texts))["input_ids"]]
        # Texts of similar length go together, so that there is little padding.
        fitting = sorted((i for i, length in enumerate(lengths) if length <= self._longest), key=lengths.__getitem__)
        for start in range(0, len(fitting), self.batch_size):
            chosen = fitting[start : start + self.batch_size]
            inputs = self.tokenizer([texts[i] for i in chosen], padding=True, return_tensors="pt")
            logits_BL = self.model(**inputs.to(self.model.device)).logits.float()
            score_BL = logits_BL.sigmoid() if self._sigmoid else logits_BL.softmax(-1)
            for i, value in zip(chosen, score_BL[:, self.label].tolist(), strict=True):
                outcomes[i] = Score(value) if 0.0 <= value <= 1.0 else Failure("no score", f"the label's is {value}")
        return outcomes


def _label_number(label: str | int | None, names: dict[int, str], model: str) -> int:
    listed = ", ".join(f"{number} {name}" for number, name in names.items())
    if label is None:
        if len(names) == 1:
            return 0
        raise ConfigError(f"{model} has the labels {listed}; name the toxic one (--scorer.label)")
    for number, name in names.items():
        if str(label).lower() in (str(number), name.lower()):
            return int(number)
    raise ConfigError(f"{model} has no label {label!r}; choose from {listed} (--scorer.label)")
