"""What a suite evaluates a model under: as it is, under each mask, and under random masks of equal size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from monet.errors import ConfigError
from monet.masks import ExpertMask


@dataclass(frozen=True)
class Condition:
    """One way to run the model.

    Args:
        name: for people: "no mask", "python", "random 0 like python".
        mask: None runs the model as it is.
        label: whose experts are removed; None for the model as it is.
        seed: of a random mask; None for the label's own.
    """

    name: str
    mask: ExpertMask | None = None
    label: str | None = None
    seed: int | None = None


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
            found += [
                Condition(f"random {seed} like {label}", random_like(mask, seed), label, seed) for seed in random_seeds
            ]
    return found
