"""Compares installed packages with the bounds in this distribution's metadata and with the tested versions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import monet
from monet.doctor.findings import Caution, Check, Fault

# The extra for contributors: users do not need its tools.
_DEVELOPMENT = "dev"
_COMMAND = "monet.cli:main"


@dataclass(frozen=True)
class Package:
    """A package that Monet or one of its extras requires.

    Attributes:
        name: name of the distribution.
        installed: its installed version; None if it is missing.
        bounds: versions that the metadata allows, such as ">=5.17,<6"; empty for any.
        tested: the version in the tested set; None if that set is not available or does not name the package.
        extra: the extra that requires it; empty for packages that are always required.
    """

    name: str
    installed: str | None
    bounds: str
    tested: str | None
    extra: str = ""

    @property
    def fix(self) -> str:
        """The command that installs an allowed version; also names the tested version if another is installed."""
        words = f'pip install "{self.name}{self.bounds}"'
        return f"{words}, or the tested version: pip install {self.name}=={self.tested}" if self._is_untested else words

    @property
    def _is_untested(self) -> bool:
        return self.tested is not None and _public(self.installed) != Version(self.tested)

    def check(self) -> Check:
        """A check of the installed version."""
        return Check(f"version of {self.name}", self._judge, self.fix)

    def _judge(self) -> str:
        allowed = f"allowed: {self.bounds}" if self.bounds else "any version is allowed"
        if self.installed is None:
            raise Fault(f"{self.name} is not installed; {allowed}")
        if not SpecifierSet(self.bounds).contains(self.installed, prereleases=True):
            raise Fault(f"{self.name} {self.installed} is not supported; {allowed}")
        version = _public(self.installed)
        if self.tested is not None and version is not None and version > Version(self.tested):
            raise Caution(f"{self.name} {self.installed} is newer than {self.tested}, the newest that was tested")
        return f"{self.installed}; {allowed}"


def _public(version: str | None) -> Version | None:
    """The version without a local part such as "+cpu"."""
    return None if version is None else Version(Version(version).public)


def with_our_command() -> list[metadata.Distribution]:
    """Installed distributions whose `monet` command is ours; one with the former name `monet` comes last."""
    entries = metadata.entry_points(group="console_scripts", name="monet")
    found = [entry.dist for entry in entries if entry.value == _COMMAND and entry.dist is not None]
    return sorted(found, key=lambda dist: dist.metadata["Name"] == "monet")


def own_distribution() -> metadata.Distribution | None:
    """The installed distribution of Monet; None if Monet runs from a folder without one."""
    return next(iter(with_our_command()), None)


def required() -> list[Package]:
    """The packages that Monet requires on this machine, by name; empty if Monet is not installed."""
    own = own_distribution()
    return [] if own is None else _packages(own, "")


def of_extras() -> list[Package]:
    """The packages that extras require, without those that are always required."""
    own = own_distribution()
    if own is None:
        return []
    found: dict[str, Package] = {}
    for extra in own.metadata.get_all("Provides-Extra") or []:
        if extra != _DEVELOPMENT:
            for package in _packages(own, extra):
                found.setdefault(package.name, package)
    return list(found.values())


def _packages(own: metadata.Distribution, extra: str) -> list[Package]:
    tested = dict(tested_versions())
    bounds: dict[str, list[str]] = {}
    for text in own.requires or []:
        requirement = Requirement(text)
        always = _applies(requirement, "")
        asked = always if not extra else not always and _applies(requirement, extra)
        if asked and requirement.name != own.metadata["Name"]:  # an extra may include another of our extras
            bounds.setdefault(requirement.name, []).extend(str(requirement.specifier).split(","))
    return [
        Package(name, installed_version(name), _ordered(parts), tested.get(_normal(name)), extra)
        for name, parts in sorted(bounds.items())
    ]


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _ordered(parts: list[str]) -> str:
    """Lower bounds before upper bounds, the usual order."""
    return ",".join(sorted({part for part in parts if part}, key=lambda part: (part[0] in "<!", part)))


def installed_version(name: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def tested_versions() -> Iterator[tuple[str, str]]:
    """Names and versions of the tested set, which a checkout contains and a wheel does not."""
    root = Path(monet.__file__).resolve().parent.parent
    file = root / "constraints" / "tested.txt"
    if not (root / "pyproject.toml").is_file() or not file.is_file():
        return
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            requirement = Requirement(line.partition("#")[0].partition(" --")[0].strip())
        except InvalidRequirement:  # an empty line, a comment, an option of pip
            continue
        pins = [pin.version for pin in requirement.specifier if pin.operator == "=="]
        if len(pins) == 1 and _applies(requirement, ""):
            yield _normal(requirement.name), pins[0]


def fix_of(packages: list[Package], *names: str) -> str:
    """The command that installs allowed versions of these packages, within the bounds of the metadata."""
    known = [package for package in packages if package.name in names]
    if not known:
        return "pip install -e . in Monet's folder, which chooses supported versions"
    if len(known) == 1:
        return known[0].fix
    return "pip install " + " ".join(f'"{package.name}{package.bounds}"' for package in known)


def check_installation() -> str:
    """Check that `monet` is imported from our distribution, and that there is no other.

    Raises:
        Fault: another distribution installs a package named `monet`, or Python is too old for the metadata.
        Caution: Monet is not installed as a distribution, or two of our distributions are installed.
    """
    own = own_distribution()
    own_name = None if own is None else own.metadata["Name"]
    others = {dist.metadata["Name"] for dist in with_our_command()} - {own_name}
    strangers = sorted(set(metadata.packages_distributions().get("monet", [])) - others - {own_name})
    folder = Path(monet.__file__).resolve().parent
    if strangers:
        again = "pip install -e ." if own_name is None else f"pip install --force-reinstall --no-deps {own_name}"
        raise Fault(
            f"another distribution, {', '.join(strangers)}, also installs a package named monet; its files can hide or"
            f" overwrite those in {folder}",
            f"pip uninstall {' '.join(strangers)}, then install Monet again ({again}, -e . in a checkout)",
        )
    if own is None:
        raise Caution(
            f"Monet runs from {folder} and is not installed, so the allowed versions are not known",
            "pip install -e . in Monet's folder",
        )
    wanted, version = own.metadata["Requires-Python"] or "", ".".join(map(str, sys.version_info[:3]))
    if not SpecifierSet(wanted).contains(version, prereleases=True):
        raise Fault(
            f"Python {version} is not supported; allowed: {wanted}", f"make an environment with Python {wanted}"
        )
    if others:
        raise Caution(
            f"Monet is installed as {own_name} and also as {', '.join(others)}", f"pip uninstall {' '.join(others)}"
        )
    return f"{own_name} {own.version}, imported from {folder}; Python {version}, allowed: {wanted}"
