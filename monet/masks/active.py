"""Determines the experts that a forward keeps, from the stored mask, masks applied by context, and the call's mask."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import reduce
from operator import and_
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from monet.errors import CheckpointError, ConfigError
from monet.kernels.masked import Keep
from monet.masks.expert_mask import ExpertMask

if TYPE_CHECKING:
    from monet.configuration_monet import MonetConfig
    from monet.masks.masked_model import MaskedModel

MaskArgument = ExpertMask | Sequence[ExpertMask | None] | None


class _Applied:
    """A mask that a block applies, until it ends, to the model that has `masks`."""

    def __init__(self, masks: ActiveMasks, mask: ExpertMask) -> None:
        self.masks, self.mask, self.holds = masks, mask, True


# The masks that this thread or task has applied, to any model.
_APPLIED: ContextVar[tuple[_Applied, ...]] = ContextVar("monet_applied_masks", default=())


class ActiveMasks:
    """A model's stored and applied masks, and the keep-weights that they give for a batch.

    If several masks are active, an expert is kept only as far as each of them keeps it. An applied mask is active in
    the thread or asyncio task that applied it. Code compiled by torch.compile cannot distinguish threads: there, a mask
    that any thread applies is active. Copies of a model (deepcopy or pickle) take the stored mask but no applied mask.
    """

    def __init__(self, stored: ExpertMask | None = None) -> None:
        self.stored = stored
        # A check hashes the model's weights, so a mask that fits is not checked again at every forward.
        self._checked: list[ExpertMask] = []
        # The last masks and batch with their keep-weights; None forgets them.
        self.remembered: tuple[list[Any], list[Keep | None]] | None = None
        self._applied_by_all_threads: tuple[_Applied, ...] = ()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return ActiveMasks, (self.stored,)

    @property
    def applied(self) -> tuple[ExpertMask, ...]:
        """The masks applied by context, in the order of application."""
        if torch.compiler.is_compiling():  # compiled code cannot read a ContextVar
            return tuple(entry.mask for entry in self._applied_by_all_threads)
        return tuple(entry.mask for entry in _APPLIED.get() if entry.masks is self and entry.holds)

    @contextmanager
    def applying(self, mask: ExpertMask) -> Iterator[None]:
        """Apply a mask inside the block. Blocks may end in any order, and one mask may be applied twice."""
        entry = _Applied(self, mask)
        _APPLIED.set((*_APPLIED.get(), entry))
        with self._lock:
            self._applied_by_all_threads = (*self._applied_by_all_threads, entry)
        try:
            yield
        finally:
            # A generator's block may end in another thread, whose variable does not hold the entry.
            entry.holds = False
            _APPLIED.set(tuple(one for one in _APPLIED.get() if one is not entry))
            with self._lock:
                self._applied_by_all_threads = tuple(one for one in self._applied_by_all_threads if one is not entry)

    def for_another_thread(self) -> ActiveMasks:
        """Masks for a copy that works for this thread in another one: applied masks become stored masks there."""
        masks = [mask for mask in (self.stored, *self.applied) if mask is not None]
        return ActiveMasks(reduce(and_, masks) if masks else None)

    def check(self, model: MaskedModel, mask: ExpertMask) -> None:
        """Call `mask.check_fits(cast(nn.Module, model))`, once for each mask.

        Raises:
            CheckpointError: the mask has a different shape or belongs to another model.
        """
        if not any(mask is known for known in self._checked):
            if (misfit := _misfit(model, mask)) is not None:
                raise CheckpointError(misfit)
            self._checked = [*self._checked[-63:], mask]

    def refuse_named_but_absent(self, config: MonetConfig) -> None:
        """Raise CheckpointError if the configuration names a stored mask but none was loaded."""
        if self.stored is None and config.expert_mask is not None:
            raise CheckpointError(
                "the configuration names an expert mask, but this model was loaded or built without it; load with "
                "from_pretrained, store the mask with model.set_expert_mask(mask), or call model.set_expert_mask(None) "
                "for the unmasked model. If this model is part of another one, call set_expert_mask of this part"
            )

    def resolve(
        self, model: MaskedModel, call: MaskArgument, B: int, T: int, device: torch.device
    ) -> list[Keep | None]:
        """Keep-weights of each routing group for B sequences of T tokens; None if nothing is removed.

        Raises:
            ConfigError: the number of masks is not the number of sequences in the batch.
            CheckpointError: a mask of the call has a different shape or belongs to another model, or the mask that the
                configuration names was not loaded.
        """
        self.refuse_named_but_absent(model.config)
        common = [mask for mask in (self.stored, *self.applied) if mask is not None]
        if not common and call is None:
            return [None] * model.config.num_routing_groups
        calls = list(call) if isinstance(call, Sequence) else [call]
        num_groups = model.config.num_routing_groups
        key = [*common, None, *calls, B, T, device, num_groups]
        last = self.remembered  # read once: another thread may replace it
        if last is not None and _makes_plain_tensors() and _same(last[0], key):
            return last[1]
        for mask in calls:
            if not isinstance(mask, ExpertMask | None):
                raise ConfigError(
                    f"expert_mask holds a {type(mask).__name__}; pass an ExpertMask, or a sequence with one (or None) "
                    "for each sequence of the batch"
                )
        if isinstance(call, Sequence) and len(calls) != B:
            raise ConfigError(
                f"{len(calls)} masks for a batch of {B} sequences; pass one mask, or one for each sequence"
            )
        distinct = list({id(mask): mask for mask in calls}.values())
        for mask in distinct:
            if mask is not None:
                self.check(model, mask)
        together = [[*common, mask] if mask is not None else common for mask in distinct]
        numbers = {id(mask): number for number, mask in enumerate(distinct)}
        mask_of_sequence = [numbers[id(mask)] for mask in calls]
        with _outside_inference_mode():
            resolved = [_keep_of_group(together, mask_of_sequence, T, group, device) for group in range(num_groups)]
        if _makes_plain_tensors():
            self.remembered = (key, resolved)
        return resolved


@torch.compiler.assume_constant_result  # torch.compile cannot trace a hash of the weights
def _misfit(model: MaskedModel, mask: ExpertMask) -> str | None:
    """Why a mask does not fit a model; None if it fits."""
    try:
        mask.check_fits(cast(nn.Module, model))
    except CheckpointError as error:
        return str(error)
    return None


def _outside_inference_mode() -> AbstractContextManager[Any]:
    """Context outside inference mode: tensors made in inference mode could not be part of a later training step."""
    # torch.compile cannot trace this call.
    inside = not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
    return torch.inference_mode(False) if inside else nullcontext()


def _makes_plain_tensors() -> bool:
    """False in torch.export and under FakeTensorMode, whose tensors have no values and must not be kept."""
    return not torch.compiler.is_exporting() and type(torch.empty(0)) is Tensor


def _same(first: list[Any], second: list[Any]) -> bool:
    """Whether two lists are equal; masks are equal only to themselves."""
    return len(first) == len(second) and all(
        a is b or (not isinstance(a, ExpertMask) and a == b) for a, b in zip(first, second, strict=True)
    )


def _keep_of_group(
    together: list[list[ExpertMask]], mask_of_sequence: list[int], T: int, group: int, device: torch.device
) -> Keep | None:
    """Keep-weights of one routing group for all tokens; None if nothing is removed.

    Args:
        together: lists of masks; the masks of one list are active together.
        mask_of_sequence: for each sequence, the number of its list. Tokens are exempt (index -1) if their list removes
            nothing.
    """
    rows = [_keep_of_all(masks, group) for masks in together]
    removing = [row for row in rows if row is not None]
    if not removing:
        return None
    dtype = torch.bool if all(row.dtype == torch.bool for row in removing) else torch.float32
    weights_SEE = torch.stack([row.to(device, dtype) for row in removing])
    if len(together) == 1:
        return Keep(weights_SEE)
    numbers = iter(range(len(removing)))
    stacked_at = torch.tensor([-1 if row is None else next(numbers) for row in rows], device=device)
    index_B = stacked_at[torch.tensor(mask_of_sequence, device=device)]
    return Keep(weights_SEE, index_B.unsqueeze(1).expand(-1, T).flatten())


def _keep_of_all(masks: list[ExpertMask], group: int) -> Tensor | None:
    """The combination (`&`) of all masks in a routing group, (E, E); None if they remove nothing."""
    rows = [mask.keep_REE[group] for mask in masks if mask.removed_per_group[group]]
    if not rows:
        return None
    # Only tensors, no new mask: torch.compile traces this code.
    if all(row.dtype == torch.bool for row in rows):
        return reduce(torch.logical_and, rows)
    return reduce(torch.minimum, [row.float() for row in rows])
