"""Checks of the whole model on the CPU: recorded logits, generation with each cache, and the effect of a mask."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from monet.doctor import golden, tiny
from monet.doctor.findings import Fault
from monet.masks.expert_mask import ExpertMask
from monet.model import cache_keyword, modeling_monet
from monet.model.llama_parts import LlamaAttention
from monet.model.modeling_monet import MonetForCausalLM

# Allowed error of a logit, as a share of the largest logit. Rounding in float32 takes about 1e-6 of it.
_ALLOWED = 2e-5
_CACHES: dict[str, dict[str, Any]] = {
    "without a cache": {"use_cache": False},
    "with a dynamic cache": {"cache_implementation": "dynamic"},
    "with a static cache": {"cache_implementation": "static"},
}
_AGAIN = "install Monet again; if that does not help, report it with the output of monet doctor --json"


@torch.no_grad()
def golden_logits() -> str:
    """Check the tiny model's logits against those recorded from the formulas, in both decompositions.

    Raises:
        Fault: they differ.
    """
    errors = [
        _compare(form, _last_logits(tiny.tiny_model(form)), golden.LOGITS[form], "the recorded ones")
        for form in tiny.FORMS
    ]
    return f"largest error {max(errors):.0e} of the largest logit, allowed {_ALLOWED:.0e}"


@torch.no_grad()
def cached_generation() -> str:
    """Check that each cache gives a left-padded batch the greedy tokens of plain forwards of each prompt by itself.

    Raises:
        Fault: a token differs, or transformers' attention uses another name for the cache than Monet.
    """
    accepted = inspect.signature(LlamaAttention.forward).parameters
    for keyword in {cache_keyword.CACHE_KEYWORD, modeling_monet.CACHE_KEYWORD} - accepted.keys():
        # One release may still translate an old name. A later one ignores the cache without an error.
        raise Fault(f"Monet names the cache {keyword!r}, but attention in transformers takes {', '.join(accepted)}")
    for form in tiny.FORMS:
        model = tiny.tiny_model(form)
        wanted = [_greedy(model, [token for token in prompt if token]) for prompt in tiny.PROMPTS]
        ids = torch.tensor(tiny.PROMPTS)
        for name, options in _CACHES.items():
            whole = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
                ids, attention_mask=(ids != 0).long(), do_sample=False, max_new_tokens=tiny.NEW_TOKENS,
                min_new_tokens=tiny.NEW_TOKENS, **options,
            )  # fmt: skip
            got = whole[:, ids.shape[1] :].tolist()
            if got != wanted:
                raise Fault(f"{form} form {name}: {_first_difference(got, wanted)}")
    return f"{tiny.NEW_TOKENS} tokens of {len(tiny.PROMPTS)} left-padded prompts are the same {', '.join(_CACHES)}"


@torch.no_grad()
def mask_laws() -> str:
    """Check that masking removes exactly the masked experts' contributions, and that keeping all changes no bit.

    Raises:
        Fault: one of the two does not hold.
    """
    errors = []
    for form in tiny.FORMS:
        model = tiny.tiny_model(form)
        everything = ExpertMask.keep_all(model.config)
        if not torch.equal(_last_logits(model, everything), _last_logits(model)):
            raise Fault(f"{form} form: a mask that keeps every expert changes the logits", _AGAIN)
        mask = ExpertMask.from_removed(model.config, tiny.REMOVED)
        masked = _last_logits(model, mask)
        recorded = golden.LOGITS_WITHOUT_REMOVED[form]
        errors.append(_compare(form, masked, recorded, "those without the removed experts", _AGAIN))
        with mask.applied_to(model):
            if not torch.equal(_last_logits(model), masked):
                raise Fault(
                    f"{form} form: a mask applied by context and the same mask in the call give different logits",
                    _AGAIN,
                )
    return f"keeping all changes no bit; removing: largest error {max(errors):.0e}, allowed {_ALLOWED:.0e}"


def _last_logits(model: MonetForCausalLM, mask: ExpertMask | None = None) -> Tensor:
    """(positions, V): the logits of the last positions, for which logits were recorded."""
    logits = model(torch.tensor(tiny.TOKENS), use_cache=False, expert_mask=mask).logits
    assert logits is not None
    return logits[0, -golden.POSITIONS :]


def _compare(form: str, logits: Tensor, recorded: str, what: str, fix: str = "") -> float:
    """Largest error as a share of the largest logit."""
    wanted = torch.tensor([float(word) for word in recorded.split()], dtype=torch.float64).view_as(logits)
    error = float((logits.double() - wanted).abs().max() / wanted.abs().max())
    if not error <= _ALLOWED:  # this refuses NaN too
        words = f"{form} form: logits differ from {what} by {error:.1e} of the largest; allowed {_ALLOWED:.0e}"
        raise Fault(words, fix)
    return error


def _greedy(model: MonetForCausalLM, prompt: list[int]) -> list[int]:
    """New tokens by plain forwards, without a cache and without padding; the end token is omitted."""
    ids = torch.tensor([prompt])
    for _ in range(tiny.NEW_TOKENS):
        logits = model(ids, use_cache=False).logits
        assert logits is not None
        logits[..., tiny.CONFIG["eos_token_id"]] = -torch.inf
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], 1)
    return ids[0, len(prompt) :].tolist()


def _first_difference(got: list[list[int]], wanted: list[list[int]]) -> str:
    for row, (ours, theirs) in enumerate(zip(got, wanted, strict=True)):
        for step, (token, right) in enumerate(zip(ours, theirs, strict=True)):
            if token != right:
                return f"new token {step + 1} of prompt {row + 1} is {token}; plain forwards give {right}"
    return "the numbers of tokens differ"
