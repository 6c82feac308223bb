"""How a user installs the optional parts of this package."""

from __future__ import annotations

DISTRIBUTION = "monet-experts"  # the name that pip knows; the import name is monet


def install_command(extra: str) -> str:
    """The command that installs an extra of pyproject.toml."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"
