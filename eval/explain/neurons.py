"""The strongest contexts of a dense model's neurons, in one pass over the windows of an index.

A neuron is a coordinate of the input of an MLP's `down_proj`, and its activity is the absolute value, as in
`monet.eval.baselines.neurons`. Dims: L layers, F neurons a layer, U chosen neurons, K contexts, W windows.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monet.errors import DataError, NonFiniteError
from monet.eval.baselines.neurons import down_projections
from monet.eval.core.loading import evaluating, own_tokenizer, vocab_size, windows_bar
from monet.eval.explain.strongest import ContextTable, WindowTable
from monet.eval.index.index import Index
from monet.eval.index.text import Window


@dataclass(frozen=True)
class Neurons:
    """What a pass found.

    Attributes:
        contexts: strongest contexts of the chosen neurons.
        mean_N: mean activity of every neuron of the model, (L*F,) float64.
    """

    contexts: ContextTable
    mean_N: NDArray[np.float64]


def neurons(
    model: Any, index: Index, windows: WindowTable, count: int, seed: int = 0, progress: bool = True
) -> Neurons:
    """Read the text of an index with a dense model.

    Args:
        model: a LLaMA-like model with the tokenizer of the index.
        index: the index; its excluded tokens do not count.
        windows: its windows.
        count: neurons to draw at random; all are taken if there are fewer.
        seed: seed of the draw.
        progress: show a bar on standard error.

    Raises:
        CheckpointError: the model is not built like a LLaMA.
        DataError: the model has another tokenizer.
        NonFiniteError: an activity is NaN or infinite.
    """
    _check_tokenizer(model, index)
    sites = down_projections(model)
    total = sum(site.in_features for site in sites)
    chosen_U = np.sort(np.random.default_rng(seed).permutation(total)[:count])
    kept = index.info.settings.top
    best_UK = torch.full((len(chosen_U), 0), 0.0)
    window_UK, position_UK = (torch.zeros((len(chosen_U), 0), dtype=torch.int64) for _ in range(2))
    sum_N, tokens = torch.zeros(total, dtype=torch.float64), 0
    seen: list[Tensor] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for site in sites:
            hook = site.register_forward_pre_hook(lambda _, given: seen.append(given[0][0].float().abs().cpu()))
            stack.callback(hook.remove)
        bar = stack.enter_context(windows_bar(len(windows.number_W), "neurons", progress))
        for number in windows.number_W:
            bar.update()
            window = index.windows[int(number)]
            counted_T = _counted(window, index)
            if not bool(counted_T.any()):
                continue
            seen.clear()
            model(**_inputs(window, model.device), use_cache=False, logits_to_keep=1)
            activity_TN = torch.cat(seen, dim=1) * counted_T[:, None]
            if not bool(activity_TN.isfinite().all()):
                raise NonFiniteError(f"activities of neurons are not finite in window {number}; check the weights")
            sum_N += activity_TN.double().sum(0)
            tokens += int(counted_T.sum())
            most_U, place_U = activity_TN[:, torch.from_numpy(chosen_U)].max(0)
            columns = [(best_UK, most_U), (window_UK, torch.full_like(place_U, int(number))), (position_UK, place_U)]
            best_UK, window_UK, position_UK = (torch.cat([old, new[:, None]], 1) for old, new in columns)
            if best_UK.shape[1] > kept:
                order_UK = best_UK.argsort(dim=1, descending=True, stable=True)[:, :kept]
                best_UK, window_UK, position_UK = (old.gather(1, order_UK) for old in (best_UK, window_UK, position_UK))
    one_UK = (best_UK > 0).double().numpy()
    return Neurons(windows.table(window_UK.numpy(), position_UK.numpy(), one_UK), (sum_N / max(tokens, 1)).numpy())


def _counted(window: Window, index: Index) -> Tensor:
    """Bool (T,): the tokens that the index counts."""
    settings = index.info.settings
    ids_T = torch.tensor(window.ids)
    place_T = torch.arange(len(ids_T)) if window.position_ids is None else torch.tensor(window.position_ids)
    return ~torch.isin(ids_T, torch.tensor(settings.exclude_ids, dtype=torch.int64)) & (
        place_T >= settings.exclude_first
    )


def _inputs(window: Window, device: torch.device) -> dict[str, Tensor]:
    given = {"input_ids": torch.tensor([window.ids], device=device)}
    if window.position_ids is not None:
        given["position_ids"] = torch.tensor([window.position_ids], device=device)
    return given


def _check_tokenizer(model: Any, index: Index) -> None:
    own, other = own_tokenizer(model), index.texts.tokenizer
    same = own is None or other is None or own.get_vocab() == other.get_vocab()
    if not same or vocab_size(model) < index.info.model.vocabulary:
        raise DataError(
            f"{model.name_or_path} has another tokenizer than the index, so it cannot read the same text; take a model "
            "that was trained on the same prepared data"
        )
