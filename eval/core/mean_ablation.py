"""Mean ablation: what is removed is replaced by its mean over reference text, instead of by nothing.

Removing a unit's contribution also removes its mean, which the layers behind have learnt to expect. A mean ablation
puts the mean of the removed contribution back, as a constant at each site, so that only its variation over tokens is
lost. The mean is taken on the whole model: each site gets the states that it has without any removal.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from monet.eval.core.inputs import LabelledData
from monet.eval.core.intervention import Intervention
from monet.eval.core.loading import evaluating, fingerprint_of
from monet.masks.controls import ControlKind


@dataclass(frozen=True)
class MeanAblation:
    """An intervention that leaves the mean of what it removes.

    Args:
        base: what is removed.
        reference: text that means are taken over.
        batch_size: sequences a forward while they are.
    """

    base: Intervention
    reference: LabelledData
    batch_size: int = 8
    _means: dict[str, list[Tensor]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def unit(self) -> str:
        return self.base.unit

    @property
    def group(self) -> str:
        return self.base.group

    @property
    def num_units(self) -> int:
        return self.base.num_units

    @property
    def num_removed(self) -> int:
        return self.base.num_removed

    @property
    def removed_per_group(self) -> list[int]:
        return self.base.removed_per_group

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Of the removal, and which text the means are of."""
        return {"made_by": "mean_ablation", "reference": self.reference.description, "of": self.base.provenance}

    @property
    def digest(self) -> str:
        """Of the removal and of the text."""
        return hashlib.sha256(f"mean {self.base.digest} {self.reference.fingerprint}".encode()).hexdigest()

    def check_fits(self, model: nn.Module) -> None:
        """As the removal's."""
        self.base.check_fits(model)

    def control(self, kind: ControlKind, seed: int, weights: Tensor | None = None) -> MeanAblation:
        """A random removal like this one, with means of its own over the same text."""
        return MeanAblation(self.base.control(kind, seed, weights), self.reference, self.batch_size)

    def taken(self, weights: Tensor) -> float:
        """As the removal's."""
        return self.base.taken(weights)

    def sites(self, model: nn.Module) -> Sequence[nn.Module]:
        """As the removal's."""
        return self.base.sites(model)

    @contextlib.contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[Any]:
        """Remove, and add the means. They are computed at the first use with a model and kept."""
        key = fingerprint_of(model)
        if key not in self._means:
            self._means[key] = removed_means(model, self.base, self.reference, self.batch_size)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.base.applied_to(model))
            for site, mean_D in zip(self.sites(model), self._means[key], strict=True):
                hook = site.register_forward_hook(lambda _, inputs, output, mean_D=mean_D: output + mean_D)
                stack.callback(hook.remove)
            yield model


def removed_means(model: Any, base: Intervention, reference: LabelledData, batch_size: int = 8) -> list[Tensor]:
    """The mean contribution that a removal takes at each site, over the reference's tokens without pads.

    Args:
        model: the whole model.
        base: what is removed.
        reference: text.
        batch_size: sequences a forward.

    Returns:
        For each site (D,), in the dtype of its output.
    """
    sites = list(base.sites(model))
    inputs: dict[int, tuple[Tensor, ...]] = {}
    outputs: dict[int, Tensor] = {}
    sums: list[Tensor | None] = [None] * len(sites)
    tokens = 0
    counted_BT = torch.ones(0)

    def note(place: int):
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[place], outputs[place] = args, output

        return hook

    def as_without_removal(place: int):
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return inputs[place]

        return hook

    def add(place: int):
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            taken_D = ((outputs[place] - output).double() * counted_BT[..., None]).sum((0, 1))
            known = sums[place]
            sums[place] = taken_D if known is None else known + taken_D

        return hook

    with evaluating(model):
        for batch in reference.batches(batch_size):
            mask = batch.attention_mask_BT
            counted_BT = torch.ones_like(batch.input_ids_BT) if mask is None else mask
            counted_BT = counted_BT.to(model.device)
            tokens += int(counted_BT.sum())
            forward = batch.inputs(model.device)
            with contextlib.ExitStack() as stack:
                for place, site in enumerate(sites):
                    stack.callback(site.register_forward_hook(note(place)).remove)
                model(**forward)
            with contextlib.ExitStack() as stack:
                stack.enter_context(base.applied_to(model))
                for place, site in enumerate(sites):
                    stack.callback(site.register_forward_pre_hook(as_without_removal(place)).remove)
                    stack.callback(site.register_forward_hook(add(place)).remove)
                model(**forward)
    return [(one / tokens).to(outputs[place].dtype) for place, one in enumerate(sums) if one is not None]
