"""Which experts a forward keeps: the stored mask, masks applied by context, and the call's own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import and_
from typing import TYPE_CHECKING, Any

import torch

from monet.errors import ConfigError
from monet.kernels.masked import Keep
from monet.masks import ExpertMask

if TYPE_CHECKING:
    from monet.modeling_monet import MonetPreTrainedModel

MaskArgument = ExpertMask | Sequence[ExpertMask | None] | None


class ActiveMasks:
    """A model's stored and applied masks, and their resolution to keep-weights for a batch.

    Masks in force together keep an expert only as far as each of them does.
    """

    def __init__(self) -> None:
        self.stored: ExpertMask | None = None
        self.applied: list[ExpertMask] = []
        # A check hashes the model's weights; a mask that was found to fit is not checked at every forward.
        self._checked: list[ExpertMask] = []
        self._last: tuple[list[Any], list[Keep | None]] | None = None

    def resolve(
        self, model: MonetPreTrainedModel, call: MaskArgument, B: int, T: int, device: torch.device
    ) -> list[Keep | None]:
        """Keep-weights of each routing group for B sequences of T tokens; None where nothing is removed.

        Raises:
            ConfigError: a sequence of masks, but not one for each sequence of the batch.
            CheckpointError: a mask of the call has another shape or belongs to another model.
        """
        common = [mask for mask in (self.stored, *self.applied) if mask is not None]
        if not common and call is None:
            return [None] * model.config.num_routing_groups
        calls = list(call) if isinstance(call, Sequence) else [call]
        key = [*common, None, *calls, B, T, device]
        if self._last is not None and _same(self._last[0], key):
            return self._last[1]
        for mask in calls:
            if not isinstance(mask, ExpertMask | None):
                raise ConfigError(
                    f"expert_mask holds a {type(mask).__name__}; give an ExpertMask, or a sequence with one (or None) "
                    "for each sequence of the batch"
                )
        if isinstance(call, Sequence) and len(calls) != B:
            raise ConfigError(f"{len(calls)} masks for a batch of {B} sequences; give one mask, or one a sequence")
        distinct = list({id(mask): mask for mask in calls}.values())
        for mask in distinct:
            if mask is not None and not any(mask is known for known in self._checked):
                mask.check_fits(model)
                self._checked = [*self._checked[-63:], mask]
        combined = [_combine([*common, mask] if mask is not None else common) for mask in distinct]
        numbers = {id(mask): number for number, mask in enumerate(distinct)}
        mask_of_token = [numbers[id(mask)] for mask in calls for _ in range(T)]
        groups = range(model.config.num_routing_groups)
        resolved = [_keep_of_group(combined, mask_of_token, group, device) for group in groups]
        self._last = (key, resolved)
        return resolved


def _same(first: list[Any], second: list[Any]) -> bool:
    """Equal lists, where masks are equal only to themselves."""
    return len(first) == len(second) and all(
        a is b or (not isinstance(a, ExpertMask) and a == b) for a, b in zip(first, second, strict=True)
    )


def _combine(masks: list[ExpertMask]) -> ExpertMask | None:
    return reduce(and_, masks) if masks else None


def _keep_of_group(
    masks: list[ExpertMask | None], mask_of_token: list[int], group: int, device: torch.device
) -> Keep | None:
    """Stack the masks that remove something in this group; tokens of the other masks are exempt (index -1)."""
    rows = [None if mask is None or mask.removed_per_group[group] == 0 else mask.keep_REE[group] for mask in masks]
    removing = [row for row in rows if row is not None]
    if not removing:
        return None
    dtype = torch.bool if all(row.dtype == torch.bool for row in removing) else torch.float32
    weights_SEE = torch.stack([row.to(device, dtype) for row in removing])
    if len(masks) == 1:
        return Keep(weights_SEE)
    numbers = iter(range(len(removing)))
    stacked_at = torch.tensor([-1 if row is None else next(numbers) for row in rows], device=device)
    return Keep(weights_SEE, stacked_at[torch.tensor(mask_of_token, device=device)])
