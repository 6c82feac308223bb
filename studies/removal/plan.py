"""Settings that all measurements of a study share: text, windows, controls, families of domains.

Dims as in docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monet.errors import ConfigError, DataError
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.chance import DEFAULT_CONTROLS
from monet.eval.core.controls import Controls
from monet.eval.core.inputs import PreparedWindows
from monet.eval.core.units import choose_unit

NATURAL = ("english", "french", "german", "italian", "russian", "spanish")
# The controls that settle a share and those that judge a removal come from different seeds.
SETTLING_SEED, JUDGING_SEED = 1, 2


@dataclass(frozen=True)
class Plan:
    """Sizes and text of all measurements.

    Units are chosen on the split `identify`, the share of units is settled on `validation`, and removals are judged on
    `evaluate`.

    Args:
        out: folder of all kept measurements, so that a killed command continues.
        data: prepared text.
        shares: shares of all units that each domain may lose; one of them is settled on.
        windows: windows of `evaluate` for each domain; every removal is measured on them in every domain.
        control_windows: windows of `evaluate` for each domain, to compare a removal with its controls. The test is
            exact with any number of windows, so few do.
        controls: random removals of equal number for each removal; the verdict depends on them.
        harder_controls: random removals of equal mass, and as many of equal activity.
        settling_windows, settling_controls: windows of `validation` and random controls for settling a share.
        relearn: domains that are trained again.
        steps: numbers of optimiser steps after which the loss is measured.
        random_removals: number of random removals that are trained again like each domain's own removal.
        batch_size: windows in a forward pass.
        seq_len: tokens of a window.
        identify_windows: windows of `identify` for each domain; None means the whole split.
        families: the family of each domain. A domain without one is a natural language if NATURAL has its name, else
            a programming language.
        lone_domains: a domain may be the only one of its family.

    Raises:
        ConfigError: a number out of range.
    """

    out: Path
    data: Path
    shares: Sequence[float] = (0.005, 0.01, 0.03)
    windows: int = 32
    control_windows: int = 6
    controls: int = DEFAULT_CONTROLS
    harder_controls: int = 19
    settling_windows: int = 4
    settling_controls: int = 9
    relearn: Sequence[str] = ("french", "php")
    steps: Sequence[int] = (10, 20)
    random_removals: int = 2
    batch_size: int = 8
    seq_len: int = 256
    identify_windows: int | None = None
    families: Mapping[str, str] = field(default_factory=dict)
    lone_domains: bool = False
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def __post_init__(self) -> None:
        for name in ("windows", "control_windows", "settling_windows"):
            if getattr(self, name) < 2:
                raise ConfigError(f"{name} {getattr(self, name)}: an interval needs at least 2 windows a domain")
        for name in ("controls", "harder_controls", "settling_controls", "random_removals"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 1")
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise ConfigError(f"shares {list(self.shares)} must be between 0 and 1, and at least one is needed")
        if not self.steps or sorted(set(self.steps)) != list(self.steps) or self.steps[0] < 1:
            raise ConfigError(f"steps {list(self.steps)} must be at least 1 and increase")

    def family_of(self, domain: str) -> str:
        """The family that a domain is compared within."""
        return self.families.get(domain, "natural" if domain in NATURAL else "programming")

    @property
    def identify(self) -> PreparedWindows:
        """Text that units are chosen on."""
        return PreparedWindows(self.data, "identify", self.seq_len, self.identify_windows)

    @property
    def validation(self) -> PreparedWindows:
        """Text that shares are settled on."""
        return PreparedWindows(self.data, "validation", self.seq_len, self.settling_windows)

    @property
    def evaluate(self) -> PreparedWindows:
        """Text that removals are measured on."""
        return PreparedWindows(self.data, "evaluate", self.seq_len, self.windows)

    @property
    def compared(self) -> PreparedWindows:
        """Text that removals are compared with their controls on."""
        return PreparedWindows(self.data, "evaluate", self.seq_len, self.control_windows)

    @property
    def settling(self) -> Controls:
        """Controls of a share."""
        return Controls(self.settling_controls, seed=SETTLING_SEED)

    @property
    def judging(self) -> Controls:
        """Controls of a verdict."""
        return Controls(self.controls, seed=JUDGING_SEED)

    @property
    def described(self) -> dict[str, Any]:
        """The sizes, as a result records them."""
        return {
            "windows": self.windows, "control_windows": self.control_windows, "seq_len": self.seq_len,
            "controls": self.controls, "harder_controls": self.harder_controls,
            "settling_windows": self.settling_windows, "settling_controls": self.settling_controls,
            "unit": choose_unit(self.bootstrap, self.evaluate)[0].unit,
            "confidence": self.bootstrap.confidence, "resamples": self.bootstrap.resamples,
        }  # fmt: skip

    def check_families(self, domains: Sequence[str]) -> None:
        """Refuse text in which a domain is the only one of its family, unless `lone_domains` allows it.

        Raises:
            DataError: a domain cannot be compared within its family; the message names it.
        """
        for domain in domains:
            family = self.family_of(domain)
            if not self.lone_domains and not any(
                other != domain and self.family_of(other) == family for other in domains
            ):
                raise DataError(
                    f"domain {domain!r} is the only {family} language of {self.data}; prepare text of another one"
                )
        if missing := [domain for domain in self.relearn if domain not in domains]:
            raise ConfigError(f"relearn {', '.join(missing)}: the text has {', '.join(domains)}")

    def forwards(self, domains: int, identify: int) -> dict[str, int]:
        """Windows that one model reads in each part of its analysis; a step of training counts as three forwards.

        Args:
            domains: number of domains in the text.
        identify: windows of the split `identify`.
        """
        of_controls = self.controls + 2 * self.harder_controls
        trained = 3 * self.batch_size // 2 * self.steps[-1] + self.windows // 2 * (1 + len(self.steps))
        return {
            "choosing units": identify + domains * self.windows,
            "settling the share": domains
            * self.settling_windows
            * (1 + len(self.shares) * (domains + self.settling_controls)),
            "removals": domains * self.windows * (1 + domains),
            "random controls": domains * self.control_windows * (2 + of_controls),
            "relearning": len(self.relearn) * (2 + self.random_removals) * trained,
        }
