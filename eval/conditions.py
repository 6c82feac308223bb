"""What a suite evaluates a model under: as it is, under each mask, and under random masks of equal size.

A suite's conditions can be dealt to several processes: each computes the outcomes of its `Part`, and the same command
without a part reads them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from monet.errors import ConfigError
from monet.masks import ExpertMask
from monet.parts import Part


@dataclass(frozen=True)
class Condition:
    """One way to run the model.

    Args:
        name: for people: "no mask", "python", "random 0 like python".
        like: the label's mask; None runs the model as it is.
        label: whose experts are removed; None for the model as it is.
        seed: of a random mask; None for the label's own.
    """

    name: str
    like: ExpertMask | None = None
    label: str | None = None
    seed: int | None = None

    @property
    def mask(self) -> ExpertMask | None:
        """The mask to apply. A random one is made at each call, so that many conditions need little memory."""
        return self.like if self.like is None or self.seed is None else random_like(self.like, self.seed)

    @property
    def experts(self) -> int:
        """Experts removed."""
        return 0 if self.like is None else self.like.num_removed


PART_DONE = "this part is done and kept; when all parts are done, run the same command without --part"

# What a suite runs under one condition: the condition, or one with its text.
Pass = TypeVar("Pass")


def dealt(passes: Sequence[tuple[Condition, Pass]], part: Part | None) -> list[tuple[Condition, Pass]]:
    """The passes that belong to a part; all of them without one.

    Passes of equal cost are dealt in turn: first the model as it is and the masks, which are measured on everything,
    then the random masks, which may be measured on their target only.

    Args:
        passes: the same ones in the same order in every process.
        part: None takes all, in their order.
    """
    if part is None:
        return list(passes)
    by_cost = sorted(passes, key=lambda one: one[0].seed is not None)
    return by_cost[part.index :: part.count]


def random_like(mask: ExpertMask, seed: int) -> ExpertMask:
    """The mask's keep-weights at random places within each routing group: as many experts removed, as far removed."""
    generator = torch.Generator().manual_seed(seed)
    keep_RN = mask.keep_REE.flatten(1)
    shuffled_RN = torch.stack([row[torch.randperm(len(row), generator=generator)] for row in keep_RN])
    notes = {"made_by": "random_like", "seed": seed, "of": mask.provenance}
    return ExpertMask(shuffled_RN.view_as(mask.keep_REE), notes, mask.fingerprint)


def check_seeds(random_seeds: Sequence[int]) -> None:
    """Refuse seeds that repeat.

    Raises:
        ConfigError: names them.
    """
    if len(set(random_seeds)) != len(random_seeds):
        raise ConfigError(f"random_seeds must name none twice, got {list(random_seeds)}")


def conditions(masks: Mapping[str, ExpertMask], random_seeds: Sequence[int] = ()) -> list[Condition]:
    """The model as it is, then every mask followed by its random controls.

    Masks that remove nothing are left out: they are the model as it is.

    Args:
        masks: per label the mask that removes its experts.
        random_seeds: one random mask a label and seed.

    Raises:
        ConfigError: repeated seeds.
    """
    check_seeds(random_seeds)
    found = [Condition("no mask")]
    for label, mask in masks.items():
        if mask.num_removed:
            found.append(Condition(label, mask, label))
            found += [Condition(f"random {seed} like {label}", mask, label, seed) for seed in random_seeds]
    return found
