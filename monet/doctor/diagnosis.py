"""The results of `monet doctor` as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from monet import __version__
from monet.doctor import machine, packages
from monet.doctor.findings import Finding


@dataclass
class Diagnosis:
    """The results of `monet doctor`.

    Attributes:
        versions: the required packages; empty if Monet is not installed as a distribution.
        devices: see `monet.doctor.machine.devices`; empty if torch cannot list them.
        compiler: see `monet.doctor.machine.compiler`.
        variables: environment variables that change which code runs.
        optional: packages and programs that only some commands need.
        checks: findings in the order in which the checks ran.
    """

    versions: list[packages.Package]
    devices: dict[str, Any]
    compiler: dict[str, str | None]
    variables: dict[str, str]
    optional: list[machine.Part]
    checks: list[Finding] = field(default_factory=list)

    @property
    def failed(self) -> list[Finding]:
        """The findings of the checks that failed."""
        return [finding for finding in self.checks if not finding.ok]

    def as_json(self) -> dict[str, Any]:
        """One JSON object; docs/troubleshooting.md lists its keys."""
        kinds = ("installed", "bounds", "tested")
        return {
            "ok": not self.failed,
            "monet": __version__,
            "versions": {one.name: {kind: getattr(one, kind) for kind in kinds} for one in self.versions},
            "devices": self.devices,
            "compiler": self.compiler,
            "variables": self.variables,
            "optional": machine.parts_as_json(self.optional),
            "checks": [finding.as_json() for finding in self.checks],
        }
