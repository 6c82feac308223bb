"""The batch files of SAEDashboard 0.8: `batch-N.json`, with the keys that its importers read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monet.eval.index.index import Index
from monet.eval.index.tables import BINS, INTERVALS
from monet.eval.inspection.cards import Card, Example
from monet.eval.inspection.promoted import Promotion

SET_NAME = "monet-experts"
_BATCH = 128
_TOKENS = 10


def write(folder: Path, index: Index, name: str, cards: Sequence[Card], effects: Sequence[Promotion]) -> None:
    """Write `LAYER-monet-experts/batch-N.json` for each routing group; LAYER is the first layer of the group.

    Args:
        folder: an empty folder.
        index: the index.
        name: name of the model.
        cards: the experts.
        effects: static effects of the experts on the logits, in the same order.
    """
    for group, chosen in by_group(cards, effects).items():
        layer = index.info.model.layers[group]
        place = folder / f"{layer}-{SET_NAME}"
        place.mkdir()
        for number, start in enumerate(range(0, len(chosen), _BATCH)):
            batch = {
                "model_id": name,
                "layer": layer,
                "sae_set": SET_NAME,
                "sae_id_suffix": None,
                "features": [_feature(index, *one) for one in chosen[start : start + _BATCH]],
            }
            (place / f"batch-{number}.json").write_text(json.dumps(batch, ensure_ascii=False) + "\n", encoding="utf-8")


def by_group(cards: Sequence[Card], effects: Sequence[Promotion]) -> dict[int, list[tuple[Card, Promotion]]]:
    """Experts with their effects, by routing group."""
    found: dict[int, list[tuple[Card, Promotion]]] = {}
    for card, effect in zip(cards, effects, strict=True):
        found.setdefault(card.unit.group, []).append((card, effect))
    return found


def arrays(index: Index, card: Card, effect: Promotion) -> dict[str, Any]:
    """Numbers of an expert under the names that SAEDashboard and Neuronpedia share."""
    edges = index.edges
    promoted, suppressed = effect.promoted(_TOKENS), effect.suppressed(_TOKENS)
    logits = effect.effect_V.histc(bins=50)
    low, high = float(effect.effect_V.min()), float(effect.effect_V.max())
    return {
        "neuron_alignment_indices": [],
        "neuron_alignment_values": [],
        "neuron_alignment_l1": [],
        "correlated_neurons_indices": [],
        "correlated_neurons_pearson": [],
        "correlated_neurons_l1": [],
        "correlated_features_indices": [],
        "correlated_features_pearson": [],
        "correlated_features_l1": [],
        "neg_str": [index.texts.text(token) for token, _ in suppressed],
        "neg_values": [value for _, value in suppressed],
        "pos_str": [index.texts.text(token) for token, _ in promoted],
        "pos_values": [value for _, value in promoted],
        "frac_nonzero": card.row["rate"],
        "freq_hist_data_bar_heights": card.firings,
        "freq_hist_data_bar_values": [(edges[n] + edges[n + 1]) / 2 for n in range(BINS)],
        "logits_hist_data_bar_heights": logits.tolist(),
        "logits_hist_data_bar_values": [low + (n + 0.5) * (high - low) / 50 for n in range(50)],
        "decoder_weights_dist": [],
    }


def activation_groups(index: Index, card: Card) -> list[tuple[float, float, float, list[Example]]]:
    """The strongest contexts, then the samples of each interval, strongest interval first.

    Returns:
        lower edge, upper edge, share of firings and windows of each; the strongest contexts have edge and share -1.
    """
    edges = index.interval_edges
    total = max(1, sum(card.firings))
    found = [(-1.0, float(card.row["max"]), -1.0, card.top)]
    for interval in sorted(card.samples, reverse=True):
        width = BINS // INTERVALS
        share = sum(card.firings[interval * width : (interval + 1) * width]) / total
        found.append((edges[interval], edges[interval + 1], share, card.samples[interval]))
    return found


def _feature(index: Index, card: Card, effect: Promotion) -> dict[str, Any]:
    windows, tokens = sum(index.info.windows), index.info.num_tokens
    activations = [
        {
            "bin_min": low,
            "bin_max": high,
            "bin_contains": share,
            "tokens": example.tokens,
            "values": example.weights,
            "qualifying_token_index": example.position,
        }
        for low, high, share, examples in activation_groups(index, card)
        for example in examples
    ]
    return {
        "feature_index": card.unit.number,
        **arrays(index, card, effect),
        "n_prompts_total": windows,
        "n_tokens_in_prompt": round(tokens / max(windows, 1)),
        "dataset": index.info.data.folder,
        "activations": activations,
        "vector": [],
    }
