"""Samples completions of problems from a model under a mask, and keeps every sample."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from monet.errors import ConfigError
from monet.eval.core.decoding import check_draws, end_ids, pad_id, tokenizer_digest, without_defaults
from monet.eval.core.loading import check_batch_size, evaluating
from monet.eval.core.store import ExampleStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from monet.eval.core.intervention import Intervention
    from monet.eval.suites.code.problems import Problem

_LOOK_EVERY = 8
TOO_LONG = "prompt and max_new_tokens exceed the model's context"


@dataclass(frozen=True)
class Sampling:
    """Settings of the completions. Number and temperature are the paper's (section 5.2). top_p and 512 tokens come from
    BigCode's harness, where the 512 tokens include the prompt.

    Args:
        num_samples: completions per problem; 1 or more.
        temperature: divides the logits; 0 always takes the likeliest token.
        top_p: sample only from the likeliest tokens that hold this share of the probability, in (0, 1].
        max_new_tokens: length of a completion at most; a stop token of its problem or the end-of-text token ends it
            earlier.
        batch_size: completions of one problem per forward.
        seed: seed of the sampling, the same under every mask.

    Raises:
        ConfigError: a value is out of range.
    """

    num_samples: int = 200
    temperature: float = 0.8
    top_p: float = 0.95
    max_new_tokens: int = 512
    batch_size: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        for name in ("num_samples", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 1")
        check_draws(self.temperature, self.top_p, self.seed)

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `generate`."""
        if self.temperature == 0:
            return {"do_sample": False, "max_new_tokens": self.max_new_tokens}
        return {
            "do_sample": True,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0,
            "max_new_tokens": self.max_new_tokens,
        }


class Sampler:
    """Draws completions and keeps each as soon as its batch is done.

    A batch holds samples of one problem and draws from its own seed, so that samples missing after a kill are drawn
    exactly as in an uninterrupted run.

    Args:
        model: the complete model.
        tokenizer: the model's tokenizer.
        sampling: settings of the draws.
        folder: folder that keeps completions.
        key: key of the model, made by `monet.eval.core.store.model_key`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        folder: Any,
        key: Mapping[str, Any],
    ) -> None:
        self.model, self.tokenizer, self.sampling, self.folder = model, tokenizer, sampling, folder
        self.key = {
            "suite": "code-completions/2",
            "model": dict(key),
            "tokenizer": tokenizer_digest(tokenizer),
            "ends": end_ids(model, tokenizer),
            "sampling": asdict(sampling),
        }

    def fits(self, problem: Problem) -> bool:
        """Whether prompt and completion fit into the model's context."""
        limit = int(self.model.config.max_position_embeddings)
        return self._prompt(problem).shape[1] + self.sampling.max_new_tokens <= limit

    def completions(
        self, mask: Intervention | None, problems: Sequence[Problem], advance: Callable[[int], object] = lambda _: None
    ) -> dict[str, list[str]]:
        """Completions by the problem's name; problems that do not fit into the context are left out.

        Args:
            mask: mask to apply; None removes nothing.
            problems: problems of one language.
            advance: called with the number of samples done since the last call.

        Raises:
            CheckpointError: the mask belongs to another model.
        """
        found: dict[str, list[str]] = {}
        with contextlib.ExitStack() as stack:
            stack.enter_context(evaluating(self.model))
            if mask is not None:
                stack.enter_context(mask.applied_to(self.model))
            languages = sorted({problem.language for problem in problems})
            key = {**self.key, "languages": languages}
            store = stack.enter_context(ExampleStore(self.folder, key, mask, wait=True))
            for problem in problems:
                if not self.fits(problem):
                    advance(self.sampling.num_samples)
                    continue
                for names in self._batches(problem):
                    if any(name not in store for name in names):
                        for name, text in zip(names, self.draw(problem, names), strict=True):
                            if name not in store:
                                store.put(name, text)
                    found.setdefault(problem.name, []).extend(store[name] for name in names)
                    advance(len(names))
        return found

    def _batches(self, problem: Problem) -> Iterator[list[str]]:
        """Ids of samples that are drawn together."""
        total, size = self.sampling.num_samples, self.sampling.batch_size
        for start in range(0, total, size):
            numbers = range(start, min(start + size, total))
            yield [f"{problem.language}/{problem.name}/{problem.digest[:16]}/{number}" for number in numbers]

    def _prompt(self, problem: Problem) -> Tensor:
        return self.tokenizer(problem.text, return_tensors="pt", return_token_type_ids=False)["input_ids"]  # pyright: ignore[reportReturnType]

    def draw(self, problem: Problem, names: Sequence[str]) -> list[str]:
        """One completion of a problem for each name; the names seed the draws."""
        prompt_1T = self._prompt(problem).to(self.model.device)
        ids_BT = prompt_1T.repeat(len(names), 1)
        stop = _Stop(self.tokenizer, problem, prompt_1T.shape[1])
        seed = hashlib.sha256(json.dumps([self.sampling.seed, *names]).encode()).digest()
        ends = end_ids(self.model, self.tokenizer)
        config = GenerationConfig(
            pad_token_id=pad_id(self.tokenizer, ends), eos_token_id=ends or None, **self.sampling.options
        )
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices), without_defaults(self.model) as model:
            torch.manual_seed(int.from_bytes(seed[:7], "big"))
            out_BT = model.generate(
                input_ids=ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([stop]),
            )
        return [problem.completion(text)[0] for text in stop.texts(out_BT)]


class _Stop(StoppingCriteria):
    """Ends a row a few tokens after a stop token of the problem appears in its text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, problem: Problem, length: int) -> None:
        self.tokenizer, self.problem, self.length = tokenizer, problem, length
        self.done: list[bool] | None = None

    def texts(self, ids_BT: Tensor) -> list[str]:
        """Text after the prompt. Both are decoded together, because a tokenizer may drop a text's first space."""
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        prompt = str(self.tokenizer.decode(ids_BT[0, : self.length], **options))
        whole = [str(self.tokenizer.decode(row, **options)) for row in ids_BT]
        return [
            text[len(prompt) :]
            if text.startswith(prompt)
            else str(self.tokenizer.decode(row[self.length :], **options))
            for text, row in zip(whole, ids_BT, strict=True)
        ]

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        done = self.done or [False] * len(input_ids)
        if (input_ids.shape[1] - self.length) % _LOOK_EVERY == 0:
            done = [
                was or self.problem.completion(text)[1] for was, text in zip(done, self.texts(input_ids), strict=True)
            ]
            self.done = done
        return torch.tensor(done, device=input_ids.device)
