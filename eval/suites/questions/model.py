"""A Monet model with an expert mask, registered as the model `monet` of lm-evaluation-harness.

lm-eval versions after 0.4.13 find it through an entry point of this package. Other versions need `monet.yaml` or
`monet lm-eval`; docs/suites.md explains both.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from lm_eval.api.registry import register_model
from lm_eval.models import huggingface

from monet.errors import CheckpointError, ConfigError, NonFiniteError
from monet.eval.attribution.control_options import ControlOptions
from monet.eval.core.loading import mask_digest
from monet.masks.controls import ControlKind
from monet.masks.expert_mask import ExpertMask
from monet.model.model_tokenizer import sentencepiece_tokenizer
from monet.model.modeling_monet import MonetForCausalLM

HFLM: Any = huggingface.HFLM  # the harness's decorator hides the class's attributes from type checkers
NAME = "monet"


class Score(NamedTuple):
    """Score of a continuation.

    Args:
        log_likelihood: sum over its tokens, nats; None if it has no score.
        cut: tokens at the beginning of the context that did not fit in.
        reason: why there is no score.
        greedy: whether each of its tokens is the likeliest after those before it.
    """

    log_likelihood: float | None
    cut: int = 0
    reason: str = ""
    greedy: bool = False


class PairLM(HFLM):
    """The harness's Hugging Face model, which also reports which continuations are too long.

    HFLM does batching, padding, reuse of logits and chat templates.
    """

    @cached_property
    def prefix_token_id(self) -> int:
        """The token before a text without a context: bos if the tokenizer adds it to texts by default, else eos.

        HFLM uses bos if the tokenizer has one. A model whose tokenizer does not add bos to texts has never seen it: in
        its training data, the eos of the previous document is in that place.
        """
        prefix = super().prefix_token_id
        eos = self.tokenizer.eos_token_id
        is_own_bos = self.custom_prefix_token_id is None and prefix == self.tokenizer.bos_token_id
        if is_own_bos and eos is not None and self.tokenizer("a")["input_ids"][0] != prefix:
            return eos
        return prefix

    def score_pairs(self, pairs: Sequence[tuple[str, str]], *, cut: bool = True) -> list[Score]:
        """Log-likelihoods of continuations, with a note on those that are too long.

        Args:
            pairs: contexts, none empty, and continuations.
            cut: drop tokens from the beginning of a context that does not fit, as the harness does; if false, such a
                continuation has no score.

        Raises:
            NonFiniteError: a log-likelihood is NaN or infinite; the message shows the continuation.
        """
        longest = self.max_length
        found: list[Score] = []
        requests, places = [], []
        for place, (context, continuation) in enumerate(pairs):
            context_ids, continuation_ids = self._encode_pair(context, continuation)
            over = len(context_ids) + len(continuation_ids) - (longest + 1)
            if not context_ids or not continuation_ids:
                found.append(Score(None, reason="an option without a token"))
            elif over > 0 and (not cut or len(continuation_ids) > longest):
                found.append(Score(None, over, "longer than the context"))
            else:
                found.append(Score(0.0, max(over, 0)))
                requests.append(((context, continuation), context_ids, continuation_ids))
                places.append(place)
        if requests:
            answers = self._loglikelihood_tokens(requests, disable_tqdm=True)
            for place, (log_likelihood, greedy), request in zip(places, answers, requests, strict=True):
                if not abs(log_likelihood) < float("inf"):
                    raise NonFiniteError(
                        f"log-likelihood {log_likelihood} of {request[0][1]!r}; check the checkpoint's weights, or "
                        "load it as float32"
                    )
                found[place] = Score(log_likelihood, found[place].cut, greedy=bool(greedy))
        return found


class MonetLM(PairLM):
    """The harness's Hugging Face model, for a Monet model with masked experts.

    Args:
        pretrained: a Monet model: a Hugging Face folder, a name on the hub, or a loaded model.
        mask: mask file (`monet select`), or a mask; None removes nothing. It is applied in addition to a mask stored in
            the model.
        keep: keep-weight, 0 to 1, of the experts that the mask removes: 0 removes them, 0.5 halves them.
        control: number of a random control, from 0, to use in place of the mask.
        control_kind: the quantity in which the control equals the mask: `number` of experts, `mass` or `activity`.
        statistics: file written by `monet stats`; needed for controls of mass and activity.
        device: as in HFLM; None takes a GPU if there is one.
        kwargs: further arguments of HFLM.

    Raises:
        CheckpointError: the model is not a Monet model, or the mask is unreadable or belongs to another model.
        ConfigError: `keep` or `control` is given without a mask, `keep` is out of range, or statistics are needed and
            missing.
    """

    def __init__(
        self,
        pretrained: str | MonetForCausalLM,
        mask: str | Path | ExpertMask | None = None,
        keep: float = 0.0,
        control: int | None = None,
        control_kind: ControlKind = "number",
        statistics: str | Path | None = None,
        device: str | None = None,
        **kwargs: Any,
    ) -> None:
        if mask is None and (keep or control is not None):
            raise ConfigError("keep and control need a mask; give mask=FILE")
        if control_kind != "number" and statistics is None:
            raise ConfigError(f"control_kind={control_kind} needs the experts' statistics; give statistics=FILE")
        if isinstance(pretrained, str):
            # The harness would load it through transformers, which reads some tokenizer.model files inexactly.
            kwargs.setdefault("tokenizer", sentencepiece_tokenizer(pretrained))
        chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
        super().__init__(pretrained=pretrained, device=chosen, **kwargs)  # type: ignore[arg-type]
        if not isinstance(self.model, MonetForCausalLM):
            raise CheckpointError(
                f"{pretrained} is a {type(self.model).__name__}, and --model monet runs only Monet models; use "
                "--model hf"
            )
        if mask is not None:
            loaded = mask if isinstance(mask, ExpertMask) else ExpertMask.load(mask, model=self.model)
            if control is not None:
                options = ControlOptions(kind=control_kind, statistics=None if statistics is None else Path(statistics))
                label = str(loaded.provenance.get("label", ""))
                loaded = cast(ExpertMask, options.open(self.model).draw(loaded, int(control), label, text=""))
            applied = attenuated(loaded, float(keep))
            stored = self.model.expert_mask
            self.model.set_expert_mask(applied if stored is None else applied & stored)

    def get_model_info(self) -> dict[str, Any]:
        """HFLM's description of the model, and which experts are masked."""
        mask = self.model.expert_mask
        return {
            **super().get_model_info(),
            "expert_mask": mask_digest(mask),
            "experts_masked": 0 if mask is None else mask.num_removed,
        }


register_model(NAME)(MonetLM)


def attenuated(mask: ExpertMask, keep: float) -> ExpertMask:
    """The mask, with every keep-weight raised to at least `keep`.

    Raises:
        ConfigError: `keep` is not a number from 0 to 1.
    """
    if not 0.0 <= keep <= 1.0:
        raise ConfigError(f"keep {keep} must be a number from 0 (removed) to 1 (untouched)")
    if keep == 0.0:
        return mask
    weights_REE = mask.keep_REE.float().clamp(min=keep)
    return ExpertMask(weights_REE, {"made_by": "attenuated", "keep": keep, "of": mask.provenance}, mask.fingerprint)
