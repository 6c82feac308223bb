"""Commands that install the optional parts of this package."""

from __future__ import annotations

from importlib import metadata

DISTRIBUTION = "monet-experts"  # the name that pip knows; the import name is monet


def install_command(extra: str) -> str:
    """The command that installs an extra of pyproject.toml; it also fits a checkout that is not installed."""
    try:
        metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return f"pip install -e '.[{extra}]' in Monet's folder"
    return f"pip install '{DISTRIBUTION}[{extra}]'"
