"""Mean ablation: replace what is removed by its mean over reference text, and not by zero.

A removal of a unit's contribution also removes the mean of that contribution, which the later layers expect from
training. A mean ablation adds the mean of the removed contribution back, as a constant at each site. So only the
variation over tokens is lost. The mean is taken on the whole model: each site gets its states without any removal.
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
    """An intervention that keeps the mean of what it removes.

    Args:
        base: the removal.
        reference: text for the means.
        batch_size: sequences in each forward pass that computes the means.
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
        """Provenance of the removal, and the text for the means."""
        return {"made_by": "mean_ablation", "reference": self.reference.description, "of": self.base.provenance}

    @property
    def digest(self) -> str:
        """Digest of the removal and of the reference text."""
        return hashlib.sha256(f"mean {self.base.digest} {self.reference.fingerprint}".encode()).hexdigest()

    def check_fits(self, model: nn.Module) -> None:
        """Raise what the removal raises."""
        self.base.check_fits(model)

    def control(self, kind: ControlKind, seed: int, weights: Tensor | None = None) -> MeanAblation:
        """A random removal that is similar to this one. It computes its own means over the same text."""
        return MeanAblation(self.base.control(kind, seed, weights), self.reference, self.batch_size)

    def taken(self, weights: Tensor) -> float:
        """What the removal takes."""
        return self.base.taken(weights)

    def sites(self, model: nn.Module) -> Sequence[nn.Module]:
        """The sites of the removal."""
        return self.base.sites(model)

    @contextlib.contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[Any]:
        """Apply the removal and add the means, which are computed at the first use with a model and then kept."""
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
    """The mean contribution that a removal takes at each site, over the tokens of the reference without pads.

    Args:
        model: the whole model.
        base: the removal.
        reference: text for the means.
        batch_size: sequences in each forward pass.

    Returns:
        One tensor (D,) for each site, in the dtype of the site's output.
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
