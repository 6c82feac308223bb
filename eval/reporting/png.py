"""Renders a report's figures as PNG files."""

from __future__ import annotations

from pathlib import Path

from monet.eval.core.document import Report
from monet.eval.reporting import common, figures
from monet.files import atomic_path


def write(report: Report, folder: Path) -> list[Path]:
    """Write `figure-01-title.png` and so on; delete the figures of an earlier report in the folder."""
    drawn = common.figures_of(report)
    for old in folder.glob("figure-[0-9][0-9]-*.png"):
        if old.name not in dict(drawn):
            old.unlink()
    for name, block in drawn:
        with atomic_path(folder / name) as temporary, figures.styled():
            figures.draw(block).savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.15)
    return [folder / name for name, _ in drawn]
