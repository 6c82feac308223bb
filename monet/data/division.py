"""A source divided into parts that are prepared apart: which files belong to a part, and where the part is made."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from monet.data.sources import TextFile
from monet.errors import ConfigError
from monet.parts import Part


def parts_folder(out: Path) -> Path:
    """Folder of all parts of the prepared data `out`."""
    return out.with_name(f"{out.name}.parts")


def part_folder(out: Path, part: Part) -> Path:
    """Folder of one part."""
    return parts_folder(out) / f"part-{part.index}-of-{part.count}"


def divided(
    files: dict[str, list[TextFile]], remote: dict[str, str], part: Part
) -> tuple[dict[str, list[TextFile]], dict[str, str], str]:
    """What belongs to a part: files that follow each other in the order of reading, and whole datasets.

    All parts are about equally many bytes. The text of parts 0, 1, ... one after another is that of the whole in its
    own order.

    Args:
        files: local files by domain, in the order of reading.
        remote: datasets by domain.
        part: which.
    Returns:
        its files by domain (every domain is a key), its datasets, and a SHA-256 over names and sizes of all files.
    Raises:
        ConfigError: there are more parts than files and datasets.
    """
    listed = [file for of_domain in files.values() for file in of_domain]
    if len(listed) + len(remote) < part.count:
        raise ConfigError(
            f"part {part.index}/{part.count}: the source has {len(listed)} file(s) and {len(remote)} dataset(s), which "
            "are not divided further; take fewer parts, split the files, or fetch the files of a dataset first"
        )
    sizes = [file.path.stat().st_size for file in listed]
    chosen = set(listed[part.slice_of([size + 1 for size in sizes])])
    names = list(remote)[part.slice_of([1] * len(remote))]
    content = [[file.domain, file.name, size] for file, size in zip(listed, sizes, strict=True)]
    digest = hashlib.sha256(json.dumps([content, list(remote.items())]).encode()).hexdigest()
    own = {domain: [file for file in of_domain if file in chosen] for domain, of_domain in files.items()}
    return own, {name: remote[name] for name in names}, digest
