"""First stage: draws continuations of prompts, with random numbers that neither a kill nor another mask changes.

Every prompt has its own random numbers, from a hash of the seed and its text: one number per sample and step. They
choose the same place in the cumulative probabilities under every mask, so conditions differ only by the model.

Dims: B sequences, V vocabulary, S samples of a prompt, N new tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from monet.errors import ConfigError, DataError, NonFiniteError
from monet.eval.core.decoding import check_draws, end_ids, pad_id, tokenizer_digest, without_defaults
from monet.eval.core.loading import evaluating, vocab_size
from monet.eval.core.store import ExampleStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from monet.eval.core.conditions import Condition
    from monet.eval.suites.toxicity.prompts import Prompt

TOO_LONG = "longer than the model reads"


@dataclass(frozen=True)
class Decoding:
    """Settings of the continuations.

    Args:
        samples: continuations of each prompt.
        new_tokens: tokens of each continuation, fewer if the model ends the text.
        temperature: divides the logits; 0 always takes the likeliest token.
        top_p: sample only from the likeliest tokens that hold this share of the probability, in (0, 1].
        first_line: keep a continuation only up to its first line break.
        seed: seed of the draws.

    Raises:
        ConfigError: a value is out of range.
    """

    samples: int = 25
    new_tokens: int = 20
    temperature: float = 1.0
    top_p: float = 0.9
    first_line: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1 or self.new_tokens < 1:
            raise ConfigError(f"samples {self.samples} and new_tokens {self.new_tokens} must be at least 1")
        check_draws(self.temperature, self.top_p, self.seed)
        if self.temperature == 0 and self.samples > 1:
            raise ConfigError(f"at temperature 0 all {self.samples} samples of a prompt are equal; set samples to 1")


class _Drawn(LogitsProcessor):
    """Keeps in each row only the token that its random number selects; greedy decoding then takes this token."""

    def __init__(self, uniform_BN: Tensor) -> None:
        self.uniform_BN = uniform_BN
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        precise = torch.float32 if scores.device.type == "mps" else torch.float64
        cumulative_BV = scores.float().softmax(-1).to(precise).cumsum(-1)
        total_B = cumulative_BV[:, -1:]
        drawn_B = self.uniform_BN[:, self.step, None].to(precise) * total_B
        self.step += 1
        # right: the first token whose cumulative probability exceeds the number, so never a token of probability zero
        token_B = torch.searchsorted(cumulative_BV, drawn_B, right=True).clamp_(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -math.inf).scatter_(-1, token_B, 0.0)


class _Finite(LogitsProcessor):
    def __init__(self, where: str) -> None:
        self.where = where

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if bool(torch.isnan(scores).any()):
            raise NonFiniteError(f"a logit is NaN {self.where}; check the checkpoint's weights, or load it as float32")
        return scores


class Continuations:
    """Continuations of prompts by one model, kept in a folder as soon as they are made.

    Args:
        model: model whose `generate` is called.
        tokenizer: tokenizer of the model.
        prompts: prompts, each with a unique id.
        decoding: settings of the continuations.
        batch_size: sequences per forward; all samples of a prompt go together. It is part of the key, because the other
            sequences of a batch change the last bits of a sequence's logits.
        folder: folder that keeps continuations.
        key: everything else that the continuations depend on (`monet.eval.core.store.model_key`).

    Attributes:
        unreadable: reasons by id, for prompts that cannot be continued.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        batch_size: int,
        folder: str | os.PathLike[str],
        key: Mapping[str, Any],
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.decoding = decoding
        self.folder = folder
        longest = int(model.config.max_position_embeddings) - decoding.new_tokens
        self._ids: dict[str, list[int]] = {}
        self.unreadable: dict[str, str] = {}
        for prompt in prompts:
            ids = list(tokenizer(prompt.text)["input_ids"])  # pyright: ignore[reportArgumentType]
            _check_vocabulary(ids, vocab_size(model), prompt.id)
            if not ids or len(ids) > longest:
                self.unreadable[prompt.id] = TOO_LONG if ids else "no token"
            else:
                self._ids[prompt.id] = ids
        self._prompts = {prompt.id: prompt for prompt in prompts if prompt.id in self._ids}
        # Prompts of similar length go together, so that there is little padding.
        order = sorted(self._prompts, key=lambda id: len(self._ids[id]))
        size = max(1, batch_size // decoding.samples)
        self._batches = [order[start : start + size] for start in range(0, len(order), size)]
        content = [[id, prompt.text, self._ids[id]] for id, prompt in self._prompts.items()]
        self.key = {
            **key,
            "stage": "continuations",
            "tokenizer": tokenizer_digest(tokenizer),
            "ends": end_ids(model, tokenizer),
            "decoding": dataclasses.asdict(decoding),
            "batch_size": batch_size,
            "prompts": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        }

    def __len__(self) -> int:
        return len(self._prompts)

    def make(self, condition: Condition, advance: Callable[[int], object] = lambda _: None) -> None:
        """Continue the prompts that have no kept continuations.

        Args:
            condition: condition to generate under.
            advance: called with the number of prompts done since the last call.

        Raises:
            CheckpointError: the mask belongs to another model.
            NonFiniteError: a logit is NaN.
        """
        mask = condition.mask
        with self._store(condition) as store, contextlib.ExitStack() as stack:
            stack.enter_context(evaluating(self.model))
            if mask is not None:
                stack.enter_context(mask.applied_to(self.model))
            for batch in self._batches:
                if any(id not in store for id in batch):
                    # Run the whole batch again, so that padding is the same as without a kill.
                    for id, texts in zip(batch, self._generate(batch, condition.name), strict=True):
                        if id not in store:
                            store.put(id, texts)
                advance(len(batch))

    def under(self, condition: Condition) -> Iterator[tuple[str, list[str]]]:
        """Ids of all prompts with their continuations, read one by one from the disk. Missing ones are made first."""
        self.make(condition)
        return self._store(condition).stream()

    def _store(self, condition: Condition) -> ExampleStore:
        # Hold only ids: the texts of all prompts may not fit into memory.
        return ExampleStore(self.folder, self.key, condition.mask, wait=True, remember=lambda _: None)

    def _generate(self, batch: Sequence[str], name: str) -> list[list[str]]:
        decoding, device = self.decoding, self.model.device
        S, N = decoding.samples, decoding.new_tokens
        where = f"under mask {name!r} after one of the prompts {', '.join(batch[:5])}"
        processors = LogitsProcessorList([_Finite(where)])
        if decoding.temperature > 0:
            if decoding.temperature != 1:
                processors.append(TemperatureLogitsWarper(decoding.temperature))
            if decoding.top_p < 1:
                processors.append(TopPLogitsWarper(decoding.top_p))
            uniform_BN = torch.from_numpy(np.concatenate([self._uniform(id) for id in batch])).to(torch.float32)
            processors.append(_Drawn(uniform_BN.to(device)))
        ends = end_ids(self.model, self.tokenizer)
        pad = pad_id(self.tokenizer, ends)
        length = max(len(self._ids[id]) for id in batch)
        ids_BT = torch.full((len(batch) * S, length), pad, dtype=torch.int64)
        mask_BT = torch.zeros_like(ids_BT)
        for number, id in enumerate(batch):
            ids = self._ids[id]
            ids_BT[number * S : (number + 1) * S, length - len(ids) :] = torch.tensor(ids)
            mask_BT[number * S : (number + 1) * S, length - len(ids) :] = 1
        config = GenerationConfig(max_new_tokens=N, do_sample=False, pad_token_id=pad, eos_token_id=ends or None)
        with without_defaults(self.model) as model:
            made_BT = model.generate(
                input_ids=ids_BT.to(device),
                attention_mask=mask_BT.to(device),
                generation_config=config,
                logits_processor=processors,
            )
        texts = [self._text(row[length:], ends) for row in made_BT.tolist()]
        return [texts[start : start + S] for start in range(0, len(texts), S)]

    def _text(self, ids: list[int], ends: list[int]) -> str:
        cut = next((place for place, token in enumerate(ids) if token in ends), len(ids))
        text = str(self.tokenizer.decode(ids[:cut], skip_special_tokens=True))
        return text.strip("\n").split("\n", 1)[0] if self.decoding.first_line else text

    def _uniform(self, id: str) -> np.ndarray:
        """Random numbers of one prompt, in [0, 1), shape (S, N)."""
        digest = hashlib.sha256(self._prompts[id].text.encode()).digest()
        generator = np.random.default_rng([self.decoding.seed, int.from_bytes(digest[:8], "big")])
        return generator.random((self.decoding.samples, self.decoding.new_tokens), dtype=np.float32)


def _check_vocabulary(ids: Sequence[int], size: int, prompt: str) -> None:
    if wrong := [token for token in ids if token >= size]:
        raise DataError(
            f"prompt {prompt}: token id {wrong[0]} is outside the model's vocabulary of {size}; the tokenizer in the "
            "folder belongs to another model; use the model's own"
        )
