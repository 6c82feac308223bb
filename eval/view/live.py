"""What needs the model: weights of a typed text, removals, continuations. One request at a time uses the model.

Dims: T tokens, R routing groups, V vocabulary, X experts, P list entries.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from monet.errors import ConfigError
from monet.eval.attribution.statistics.pairs import ExpertLister
from monet.eval.core.loading import evaluating
from monet.eval.index.index import Context
from monet.eval.index.units import Unit
from monet.eval.inspection.promoted import measured, static
from monet.eval.inspection.text import mask_effect
from monet.eval.inspection.weights import unit_weights
from monet.eval.view import limits
from monet.eval.view.store import Store, cut, short
from monet.masks.expert_mask import ExpertMask
from monet.model.cache_keyword import CACHE_KEYWORD

PROMOTED = 12
TOP = 6


class Live:
    """A model behind the page.

    Args:
        model: a MonetForCausalLM, the one that was indexed.
        store: the index.
    """

    def __init__(self, model: Any, store: Store) -> None:
        self.model, self.store = model, store
        self.index = store.index
        self._lock = threading.Lock()
        self._weights: OrderedDict[str, list[list[float]]] = OrderedDict()

    def encode(self, text: str) -> list[int]:
        """Token ids of a typed text.

        Raises:
            ConfigError: the text has no token, or too many.
            CheckpointError: the model has no tokenizer.
        """
        ids = self.index.texts.encode(text)
        most = min(limits.TEXT_TOKENS, self.model.config.max_position_embeddings)
        if not ids:
            raise ConfigError("the text is empty; type some words")
        if len(ids) > most:
            raise ConfigError(f"the text has {len(ids)} tokens; the page takes at most {most}, so shorten it")
        return ids

    def weights(self, unit: Unit) -> list[list[float]]:
        """The unit's weights at the tokens of its contexts, then of its samples, as `Store.context` cuts them.

        Each window takes a forward pass up to the unit's router.
        """
        with self._lock:
            if unit.name not in self._weights:
                self._weights[unit.name] = self._weights_now(unit)
            self._weights.move_to_end(unit.name)
            while len(self._weights) > limits.KEPT_WEIGHTS:
                self._weights.popitem(last=False)
            return self._weights[unit.name]

    def promoted(self, unit: Unit, how: str) -> dict[str, Any]:
        """The tokens that a unit promotes and suppresses.

        Raises:
            ConfigError: `how` is neither static nor measured, or is not possible for this unit.
        """
        if how not in ("static", "measured"):
            raise ConfigError(f"how {how!r}: static reads the weights, measured runs the model")
        with self._lock:
            if how == "static":
                found = static(self.model, unit)
            else:
                contexts = [(one, self.index.windows[one.window]) for one in self.index.contexts(unit)]
                found = measured(self.model, unit, contexts)
        text = self.index.texts.text
        return {
            "how": how,
            "contexts": found.contexts,
            **{
                name: [[text(token), short(effect)] for token, effect in best]
                for name, best in (("promoted", found.promoted(PROMOTED)), ("suppressed", found.suppressed(PROMOTED)))
            },
        }

    def prompt(self, text: str, group: int | None = None) -> dict[str, Any]:
        """A typed text: its tokens, what the model predicts, and the experts that are active at each token.

        Args:
            text: the text.
            group: routing group of the experts; None takes all groups.

        Raises:
            ConfigError: as for `encode`, or there is no such group.
        """
        groups = self.index.units.groups
        if group is not None and not 0 <= group < groups:
            raise ConfigError(f"group {group}: the model has routing groups 0 to {groups - 1}")
        ids = self.encode(text)
        ids_1T = torch.tensor([ids], device=self.model.device)
        with self._lock, evaluating(self.model):
            found = self.model(ids_1T, output_router_probs=True, use_cache=False)
            logits_TV = F.log_softmax(found.logits[0].float(), -1)
            loss_T = -logits_TV[:-1].gather(1, ids_1T[0, 1:, None])[:, 0]
            pairs = [pair for pair in found.router_probs if pair is not None]
            wanted = [n for n in range(groups) if group in (None, n)]
            lists = {n: self._active(*(g[0].float() for g in pairs[n])) for n in wanted}
            top = logits_TV[-1].exp().topk(min(TOP, logits_TV.shape[1]))
        return {
            "tokens": self.index.texts.texts(ids),
            "loss": [None, *map(short, loss_T.tolist())],
            "next": self._likely(top.indices, top.values),
            "experts": self._strongest(lists, len(ids)),
            "of_token": [
                [entry for n in wanted for entry in self._at_token(n, lists[n], token)] for token in range(len(ids))
            ],
        }

    def effect(self, text: str, mask: ExpertMask) -> dict[str, Any]:
        """What a mask changes in the predictions of every token of a text; errors as for `mask_effect` and `encode`."""
        ids = self.encode(text)
        with self._lock:
            found = mask_effect(self.model, ids, mask, TOP)
        return {
            "tokens": self.index.texts.texts(ids),
            "before": [None, *(short(-one) for one in found.before_T.tolist())],
            "after": [None, *(short(-one) for one in found.after_T.tolist())],
            "divergence": [short(one) for one in found.divergence_T.tolist()],
            "top": [
                [self._likely(*before), self._likely(*after)]
                for before, after in zip(
                    zip(found.top_before_TK, found.likely_before_TK, strict=True),
                    zip(found.top_after_TK, found.likely_after_TK, strict=True),
                    strict=True,
                )
            ],
        }

    def continuation(
        self, text: str, mask: ExpertMask, count: int, temperature: float, seed: int
    ) -> Iterator[dict[str, Any]]:
        """Continue a text with and without a mask, token by token, in one batch of two.

        Both sides draw with the same random number, so equal probabilities give equal tokens.

        Args:
            text: the text.
            mask: what the second side removes.
            count: largest number of new tokens.
            temperature: divides the logits; 0 takes the most likely token.
            seed: seed of the draws.

        Yields:
            `{"text": [without, with]}`: the texts of both continuations so far; null for a side that has ended.

        Raises:
            ConfigError: a number is out of range, or the text is too long.
        """
        ids = self.encode(text)
        room = self.model.config.max_position_embeddings - len(ids)
        if not 1 <= count <= limits.NEW_TOKENS or count > room:
            most = max(0, min(limits.NEW_TOKENS, room))
            raise ConfigError(f"{count} new tokens: ask for 1 to {most} after a text of {len(ids)} tokens")
        if not 0 <= temperature <= 10:
            raise ConfigError(f"temperature {temperature} must be from 0 to 10")
        mask.check_fits(self.model)
        return self._continued(ids, mask, count, temperature, seed)

    def _continued(
        self, ids: list[int], mask: ExpertMask, count: int, temperature: float, seed: int
    ) -> Iterator[dict[str, Any]]:
        generator = torch.Generator().manual_seed(seed)
        ends = self.model.generation_config.eos_token_id
        stops = set(ends if isinstance(ends, list) else [ends])
        written: list[list[int]] = [[], []]
        open_sides = [True, True]
        step_2X, cache = torch.tensor([ids, ids], device=self.model.device), None
        for _ in range(count):
            with self._lock, evaluating(self.model):
                found = self.model(step_2X, cache=cache, use_cache=True, expert_mask=[None, mask], logits_to_keep=1)
                cache = found[CACHE_KEYWORD]
                chosen_2 = _drawn(found.logits[:, -1].float().cpu(), temperature, generator)
            step_2X = chosen_2[:, None].to(self.model.device)
            for side, token in enumerate(chosen_2.tolist()):
                open_sides[side] &= token not in stops
                if open_sides[side]:
                    written[side].append(token)
            yield {"text": ["".join(self.index.texts.texts(side)) for side in written], "open": list(open_sides)}
            if not any(open_sides):
                return

    def _weights_now(self, unit: Unit) -> list[list[float]]:
        known: dict[int, list[float]] = {}

        def of(context: Context) -> list[float]:
            if context.window not in known:
                weight_T = unit_weights(self.model, self.index.windows[context.window], [unit])[:, 0]
                known[context.window] = [short(one) for one in weight_T.tolist()]
            return known[context.window][cut(context.position, limits.AROUND)]

        return [of(one) for one in [*self.index.contexts(unit), *self.index.samples(unit)]]

    def _active(self, g1_THE: Tensor, g2_THE: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        lister = ExpertLister(self.index.units.keys, g1_THE.device)
        columns = zip(*lister.lists(g1_THE, g2_THE), strict=True)
        token_P, expert_P, weight_P = (torch.cat(column).cpu().numpy() for column in columns)
        return token_P, expert_P, weight_P

    def _strongest(self, lists: dict[int, Any], length: int) -> list[dict[str, Any]]:
        """The experts with the largest weight at any token, with their weights at all tokens."""
        best: list[tuple[float, int, int]] = []
        for group, (_, expert_P, weight_P) in lists.items():
            expert_X, which_P = np.unique(expert_P, return_inverse=True)
            largest_X = np.zeros(len(expert_X))
            np.maximum.at(largest_X, which_P, weight_P)
            first_X = np.argsort(-largest_X, kind="stable")[: limits.PROMPT_EXPERTS]
            best += [(-float(largest_X[x]), group, int(expert_X[x])) for x in first_X]
        found = []
        for _, group, expert in sorted(best)[: limits.PROMPT_EXPERTS]:
            token_P, expert_P, weight_P = lists[group]
            weight_T = np.zeros(length)
            weight_T[token_P[expert_P == expert]] = weight_P[expert_P == expert]
            unit = self.index.units.unit(group, expert)
            row = self.store.row(self.store.columns.row(unit))
            found.append({**row, "weights": [short(weight) for weight in weight_T.tolist()]})
        return found

    def _at_token(self, group: int, lists: Any, token: int) -> list[list[Any]]:
        token_P, expert_P, weight_P = lists
        begin, end = np.searchsorted(token_P, [token, token + 1])
        order = np.argsort(-weight_P[begin:end], kind="stable")[: limits.TOKEN_EXPERTS] + begin
        return [[f"{group}:{expert_P[p]}", short(float(weight_P[p]))] for p in order]

    def _likely(self, tokens_K: Tensor, shares_K: Tensor) -> list[list[Any]]:
        text = self.index.texts.text
        return [[text(token), short(share)] for token, share in zip(tokens_K.tolist(), shares_K.tolist(), strict=True)]


def _drawn(logits_XV: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """One token for each row, int64 (X,); all rows use the same random numbers."""
    if temperature == 0:
        return logits_XV.argmax(-1)
    # The largest of logits plus Gumbel noise is a draw from the softmax.
    noise_V = -torch.log(torch.empty(logits_XV.shape[1]).exponential_(generator=generator))
    return (logits_XV / temperature + noise_V).argmax(-1)
