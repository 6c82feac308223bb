"""Explanations by the Monet model itself: the paper's self-explained experts (arXiv 2412.04139, section 4.3).

The model continues `Q: What is the meaning of the word X? A: Sure! The meaning of the word X is "`, where the embedding
at X is the mean of the embeddings of tokens at which the expert is active. The paper does not say how many tokens it
takes, nor how it weights them; here they are options. It used a chat model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from monet.errors import CheckpointError
from monet.eval.core.loading import evaluating
from monet.eval.explain.excerpts import Excerpt
from monet.eval.explain.explainers import Named
from monet.eval.index.units import Unit

Weights = Literal["uniform", "firings"]
PIECES = ("Q: What is the meaning of the word ", "? A: Sure! The meaning of the word ", ' is "')


class ModelExplainer:
    """The model explains its own units.

    Args:
        model: a MonetForCausalLM, the model of the index.
        tokenizer: its tokenizer.
        tokens: number of different tokens in the mean.
        weights: uniform gives each the same weight; firings weights by the number of contexts.
        new_tokens: longest answer, in tokens; decoding is greedy.

    Raises:
        CheckpointError: there is no tokenizer.
    """

    at_once = 1

    def __init__(
        self, model: Any, tokenizer: Any, tokens: int = 8, weights: Weights = "uniform", new_tokens: int = 32
    ) -> None:
        if tokenizer is None:
            raise CheckpointError("the index has no tokenizer, so the model cannot read its prompt")
        self._model, self._tokenizer, self._tokens, self._weights = model, tokenizer, tokens, weights
        self._new_tokens = new_tokens
        self.model = str(model.name_or_path)
        self.key: dict[str, Any] = {
            "explainer": "model", "tokens": tokens, "weights": weights, "new_tokens": new_tokens,
        }  # fmt: skip

    @property
    def is_chat(self) -> bool:
        """Whether the tokenizer has a chat template, as the tokenizers of chat models do."""
        return bool(getattr(self._tokenizer, "chat_template", None))

    def explain(self, units: Sequence[tuple[Unit, list[Excerpt]]]) -> list[Named]:
        """See `Explainer.explain`: the answer until its closing quote."""
        found = []
        for _, excerpts in units:
            prompt_1TD = self.prompt(self.mean(excerpts))
            with evaluating(self._model):
                ids_1T = self._model.generate(
                    inputs_embeds=prompt_1TD, do_sample=False, max_new_tokens=self._new_tokens,
                    attention_mask=torch.ones(prompt_1TD.shape[:2], dtype=torch.long, device=prompt_1TD.device),
                )  # fmt: skip
            answer = str(self._tokenizer.decode(ids_1T[0], skip_special_tokens=True))
            text = " ".join(answer.partition('"')[0].split())
            found.append(Named(text, "" if text else "the model wrote nothing"))
        return found

    def mean(self, excerpts: Sequence[Excerpt]) -> Tensor:
        """Mean embedding of the most frequent tokens of the excerpts, (D,) in the model's dtype."""
        counts = Counter(one.ids[one.center] for one in excerpts).most_common(self._tokens)
        weight_K = torch.tensor([float(count) if self._weights == "firings" else 1.0 for _, count in counts])
        embedding = self._model.get_input_embeddings().weight
        row_KD = embedding[torch.tensor([token for token, _ in counts], device=embedding.device)].float()
        weight_K = (weight_K / weight_K.sum()).to(row_KD.device)
        return (weight_K @ row_KD).detach().to(embedding.dtype)

    def prompt(self, mean_D: Tensor) -> Tensor:
        """Embeddings of the prompt, (1, T, D), with the mean at both X."""
        embed = self._model.get_input_embeddings()
        parts = []
        for number, piece in enumerate(PIECES):
            ids = self._tokenizer(piece, add_special_tokens=number == 0)["input_ids"]
            parts += [embed(torch.tensor(ids, dtype=torch.long, device=mean_D.device)).detach(), mean_D[None]]
        return torch.cat(parts[:-1])[None]
