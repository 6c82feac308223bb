"""ExpertMask: the keep-weights of all experts as one object, with algebra, provenance and a file format."""

from __future__ import annotations

import hashlib
import json
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from monet.configuration_monet import MonetConfig
from monet.errors import CheckpointError, ConfigError
from monet.files import atomic_path
from monet.json_text import parse_json
from monet.masks.controls import ControlKind, control_keep, removed_mass
from monet.masks.masked_model import find_body

MASK_FILE = "expert_mask.safetensors"
_FORMAT = "monet-expert-mask-1"
MOST_KEEP = 1000.0  # a larger keep-weight is a mistake

Model = TypeVar("Model", bound=nn.Module)


class ExpertMask:
    """Keep-weights of every expert of a model: 1 keeps an expert, 0 removes it, and values between attenuate it.

    A weight above 1 amplifies an expert and steers the model towards the expert's contribution. The mask of a routing
    group applies to all layers of the group. Removing an expert removes its whole contribution, including its output
    bias; the kept weights are not renormalised. Masks are immutable.

    Attributes:
        keep_REE: (R, E, E) bool, or float32 of at least 0; R routing groups, expert (i, j) at [group, i, j].
        removed_per_group: for each routing group, the number of experts whose keep-weight is not one.
        unit, group: names of the units that the mask changes and of the groups in `removed_per_group`.
        provenance: JSON-compatible notes on how the mask was made.
        fingerprint: `model.fingerprint()` of the model that it was made for; None fits any model of its shape.
    """

    unit = "expert"
    group = "routing group"

    def __init__(self, keep_REE: Tensor, provenance: Mapping[str, Any] | None = None, fingerprint: str | None = None):
        keep_REE = torch.as_tensor(keep_REE).detach().to("cpu", copy=True)
        if keep_REE.dim() != 3 or keep_REE.shape[1] != keep_REE.shape[2] or keep_REE.numel() == 0:
            raise ConfigError(f"a mask of shape {tuple(keep_REE.shape)}; expected (routing groups, E, E)")
        if keep_REE.dtype != torch.bool:
            keep_REE = keep_REE.to(torch.float32)
            outside = ~((keep_REE >= 0) & (keep_REE <= MOST_KEEP))
            if bool(outside.any()):
                raise ConfigError(
                    f"keep-weight {keep_REE[outside][0].item()}: must be from 0, which removes an expert, over 1, "
                    f"which keeps it, to {MOST_KEEP:g}, which amplifies it"
                )
        self.keep_REE = keep_REE.contiguous()
        self.removed_per_group: list[int] = (self.keep_REE != 1).flatten(1).sum(1).tolist()
        self.provenance = dict(provenance or {})
        try:
            json.dumps(self.provenance)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"provenance cannot be written as JSON: {error}") from None
        self.fingerprint = fingerprint

    # -- building ------------------------------------------------------------------------------------------------

    @classmethod
    def keep_all(cls, config: MonetConfig) -> ExpertMask:
        """The mask that removes nothing; with it a forward is bitwise identical to the unmasked forward."""
        return cls(torch.ones(_shape(config), dtype=torch.bool), {"made_by": "keep_all"})

    @classmethod
    def from_removed(
        cls,
        config: MonetConfig,
        removed: Mapping[int, Sequence[int] | Tensor],
        provenance: Mapping[str, Any] | None = None,
        fingerprint: str | None = None,
    ) -> ExpertMask:
        """Remove experts by id.

        Args:
            config: configuration of the model.
            removed: routing group -> expert ids i*E + j.
        Raises:
            ConfigError: the model has no such group or expert.
        """
        R, E, _ = _shape(config)
        keep_REE = torch.ones(R, E * E, dtype=torch.bool)
        for group, ids in removed.items():
            if not 0 <= group < R:
                raise ConfigError(f"routing group {group}: the model has groups 0 to {R - 1}")
            ids = torch.as_tensor(ids)
            if ids.numel() and ids.dtype not in (torch.int64, torch.int32):
                raise ConfigError(f"expert ids of dtype {ids.dtype} in group {group}: must be whole numbers")
            ids = ids.long()
            outside = (ids < 0) | (ids >= E * E)
            if bool(outside.any()):
                raise ConfigError(f"expert id {ids[outside][0].item()} in group {group}: must be from 0 to {E * E - 1}")
            keep_REE[group, ids] = False
        return cls(keep_REE.view(R, E, E), provenance, fingerprint)

    @classmethod
    def from_scores(
        cls,
        scores_REE: Tensor,
        threshold: float,
        provenance: Mapping[str, Any] | None = None,
        fingerprint: str | None = None,
    ) -> ExpertMask:
        """Remove the experts whose score is greater than `threshold`; a NaN score is never greater.

        Raises:
            ConfigError: the threshold is NaN, or the scores are not (R, E, E).
        """
        if threshold != threshold:
            raise ConfigError("threshold=nan: scores cannot be compared with it; pass a number")
        notes = {"made_by": "from_scores", "threshold": threshold, **(provenance or {})}
        return cls(~(torch.as_tensor(scores_REE) > threshold), notes, fingerprint)

    @classmethod
    def random(
        cls,
        config: MonetConfig,
        num_removed: int | Sequence[int],
        seed: int,
        provenance: Mapping[str, Any] | None = None,
        fingerprint: str | None = None,
    ) -> ExpertMask:
        """Remove experts drawn uniformly without replacement.

        Args:
            config: configuration of the model.
            num_removed: number of experts to remove in all groups together, or one number for each group.
            seed: seed for the draw.
        Raises:
            ConfigError: a number exceeds the number of experts, or there are not as many numbers as groups.
        """
        R, E, _ = _shape(config)
        total = not isinstance(num_removed, Sequence)
        counts, pool = ([num_removed], R * E * E) if total else (list(num_removed), E * E)
        try:
            counts = [operator.index(count) for count in counts]
        except TypeError:
            raise ConfigError(f"num_removed={num_removed!r}: must be whole numbers of experts, not shares") from None
        if not total and len(counts) != R:
            raise ConfigError(f"num_removed has numbers for {len(counts)} groups, but the model has {R}")
        generator = torch.Generator().manual_seed(seed)
        keep = torch.ones(len(counts), pool, dtype=torch.bool)
        for row, count in zip(keep, counts, strict=True):
            if not 0 <= count <= pool:
                raise ConfigError(f"num_removed={count}: must be from 0 to {pool}")
            row[torch.randperm(pool, generator=generator)[:count]] = False
        notes = {"made_by": "random", "seed": seed, **(provenance or {})}
        return cls(keep.view(R, E, E), notes, fingerprint)

    # -- algebra: for boolean masks, the algebra of the sets of kept experts --------------------------------------

    def __and__(self, other: ExpertMask) -> ExpertMask:
        """Keep what both keep: the smaller weight, or the product if one of them is above 1."""
        return self._combine("and", other, torch.logical_and, _both)

    def __or__(self, other: ExpertMask) -> ExpertMask:
        """Keep what either mask keeps (the larger weight)."""
        return self._combine("or", other, torch.logical_or, torch.maximum)

    def __sub__(self, other: ExpertMask) -> ExpertMask:
        """Keep what the first mask keeps and the second does not."""
        return self & ~other

    def __invert__(self) -> ExpertMask:
        """Keep exactly what this mask removes.

        Raises:
            ConfigError: a keep-weight is above 1.
        """
        if self.amplifies:
            raise ConfigError("a mask with keep-weights above 1 cannot be inverted")
        keep_REE = ~self.keep_REE if self.is_hard else 1 - self.keep_REE
        return ExpertMask(keep_REE, {"made_by": "not", "of": [self.provenance]}, self.fingerprint)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ExpertMask)
            and self.keep_REE.shape == other.keep_REE.shape
            and torch.equal(self.keep_REE.float(), other.keep_REE.float())
        )

    def __hash__(self) -> int:
        return hash((tuple(self.keep_REE.shape), tuple(self.removed_per_group)))

    def _combine(self, name: str, other: ExpertMask, hard: Any, soft: Any) -> ExpertMask:
        if self.keep_REE.shape != other.keep_REE.shape:
            raise ConfigError(
                f"masks of shapes {tuple(self.keep_REE.shape)} and {tuple(other.keep_REE.shape)} cannot be combined"
            )
        fingerprints = {self.fingerprint, other.fingerprint} - {None}
        if len(fingerprints) > 1:
            raise CheckpointError(
                f"masks of different models ({' and '.join(sorted(map(str, fingerprints)))}) cannot be combined"
            )
        both_hard = self.is_hard and other.is_hard
        keep_REE = (
            hard(self.keep_REE, other.keep_REE) if both_hard else soft(self.keep_REE.float(), other.keep_REE.float())
        )
        notes = {"made_by": name, "of": [self.provenance, other.provenance]}
        return ExpertMask(keep_REE, notes, next(iter(fingerprints), None))

    @property
    def digest(self) -> str:
        """SHA-256 of the keep-weights, in hexadecimal: equal for masks with the same effect, however they were made."""
        return keep_digest(self.keep_REE)

    def named(self) -> dict[str, str]:
        """The entry for a stored mask in config.json: its file and its digest."""
        return {"file": MASK_FILE, "digest": self.digest}

    # -- counts ---------------------------------------------------------------------------------------------------

    @property
    def is_hard(self) -> bool:
        """Whether every expert is either kept or removed, by type."""
        return self.keep_REE.dtype == torch.bool

    @property
    def amplifies(self) -> bool:
        """Whether any keep-weight is above 1."""
        return not self.is_hard and bool((self.keep_REE > 1).any())

    @property
    def num_experts(self) -> int:
        """R * E * E."""
        return self.keep_REE.numel()

    num_units = num_experts  # required of every intervention

    @property
    def num_removed(self) -> int:
        """Experts whose keep-weight is not one."""
        return sum(self.removed_per_group)

    @property
    def num_kept(self) -> int:
        """Experts whose keep-weight is one."""
        return self.num_experts - self.num_removed

    def __repr__(self) -> str:
        R, E, _ = self.keep_REE.shape
        return f"ExpertMask({self.num_removed:,} of {self.num_experts:,} experts removed; {R} groups, E={E})"

    # -- use --------------------------------------------------------------------------------------------------------

    def check_fits(self, model: nn.Module) -> None:
        """Raise CheckpointError unless the mask has the model's shape and, if it has a fingerprint, the model's own."""
        body = find_body(model)
        wanted = _shape(body.config)
        if tuple(self.keep_REE.shape) != wanted:
            raise CheckpointError(
                f"a mask of shape {tuple(self.keep_REE.shape)} does not fit the model, which needs {wanted}"
            )
        if self.fingerprint is not None and self.fingerprint != (found := body.fingerprint()):
            raise CheckpointError(
                f"the mask was made for another model (fingerprint {self.fingerprint}, but this model has {found}); "
                "select experts on this model instead"
            )

    @contextmanager
    def applied_to(self, model: Model) -> Iterator[Model]:
        """Mask every forward and generate of `model` inside the block; masks nest and are undone bitwise.

        The mask is active only in this thread (or asyncio task). A thread started inside the block does not see the
        mask, unless it runs in `contextvars.copy_context()`.

        Args:
            model: a Monet model, or a module that contains one: a PEFT, compiled or parallel model.
        Raises:
            CheckpointError: the mask belongs to another model or has a different shape.
            ConfigError: `model` contains no Monet model.
        """
        self.check_fits(model)
        with find_body(model).active_masks.applying(self):
            yield model

    def control(self, kind: ControlKind, seed: int, weights: Tensor | None = None) -> ExpertMask:
        """A random mask that matches this one within each routing group.

        Args:
            kind: the property that both masks share: the number of experts removed, their mass, or their activity.
            seed: seed for the random choice; equal seeds give equal masks.
            weights: (R, E, E) mean routing weight of each expert (mass) or its share of tokens (activity), measured on
                the text that the mask is evaluated on. "number" needs no weights.

        Raises:
            ConfigError: weights are missing or have another shape.
        """
        keep_RN = control_keep(self.keep_REE.flatten(1), kind, seed, None if weights is None else weights.flatten(1))
        notes: dict[str, Any] = {"made_by": "control", "kind": kind, "seed": seed, "of": self.provenance}
        if weights is not None:
            notes |= {"mass": removed_mass(keep_RN, weights.flatten(1)), "mass_of_mask": self.taken(weights)}
        return ExpertMask(keep_RN.view_as(self.keep_REE), notes, self.fingerprint)

    def taken(self, weights: Tensor) -> float:
        """The sum of the (R, E, E) weights that the mask removes."""
        return removed_mass(self.keep_REE.flatten(1), weights.flatten(1))

    def sites(self, model: nn.Module) -> list[nn.Module]:
        """The expert layers, from the first to the last."""
        layers = [layer.moe for layer in find_body(model).layers]
        return [cast(nn.Module, experts) for experts in layers if experts is not None]

    # -- files ------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], model: nn.Module | None = None) -> None:
        """Write as safetensors; hard masks take one bit for each expert.

        Args:
            path: file to write, atomically.
            model: write this model's fingerprint into the file; None keeps the mask's own fingerprint.
        """
        if model is not None:
            self.check_fits(model)
        packed = np.packbits(self.keep_REE.numpy().reshape(-1)) if self.is_hard else None
        content = self.keep_REE if packed is None else torch.from_numpy(packed)
        metadata = {
            "format": _FORMAT,
            "shape": json.dumps(list(self.keep_REE.shape)),
            "fingerprint": (find_body(model).fingerprint() if model is not None else self.fingerprint) or "",
            "provenance": json.dumps(self.provenance),
        }
        with atomic_path(path) as temporary:
            save_file({"keep": content}, temporary, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module | None = None) -> ExpertMask:
        """Read a mask written by `save`.

        Args:
            path: the file.
            model: refuse the mask unless it fits this model.
        Raises:
            CheckpointError: the file is not a mask, is damaged, or belongs to another model.
        """
        try:
            with safe_open(Path(path), "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise CheckpointError(f"{path}: not an expert mask (format {metadata.get('format')!r})")
                content = file.get_tensor("keep")
            shape = tuple(parse_json(metadata["shape"], "shape"))
            provenance = parse_json(metadata["provenance"], "provenance")
            if content.dtype == torch.uint8:
                bits = np.unpackbits(content.numpy())
                size = int(np.prod(shape))
                if not 0 <= len(bits) - size < 8:
                    raise CheckpointError(f"{path}: damaged mask file: {len(bits)} bits for a mask of shape {shape}")
                content = torch.from_numpy(bits[:size].astype(bool))
            mask = cls(content.reshape(shape), provenance, metadata["fingerprint"] or None)
        except OSError as error:
            raise CheckpointError(f"{path}: no readable mask file ({error})") from None
        except CheckpointError:
            raise
        except (SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: damaged mask file ({error})") from None
        if model is not None:
            mask.check_fits(model)
        return mask


def keep_digest(keep: Tensor) -> str:
    """SHA-256 of keep-weights of any shape, in hexadecimal."""
    keep = keep.float()
    return hashlib.sha256(f"{tuple(keep.shape)}\n".encode() + keep.numpy().tobytes()).hexdigest()


def _both(first: Tensor, second: Tensor) -> Tensor:
    return torch.where((first > 1) | (second > 1), first * second, torch.minimum(first, second))


def _shape(config: MonetConfig) -> tuple[int, int, int]:
    return config.num_routing_groups, config.moe_experts, config.moe_experts
