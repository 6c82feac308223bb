"""Division of a source into parts that are prepared separately: the files of each part, and its folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from monet.data.documents.sources import TextFile
from monet.errors import ConfigError
from monet.parts import Part


def parts_folder(out: Path) -> Path:
    """Return the folder that holds all parts of the prepared data `out`."""
    return out.with_name(f"{out.name}.parts")


def part_folder(out: Path, part: Part) -> Path:
    """Return the folder of one part."""
    return parts_folder(out) / f"part-{part.index}-of-{part.count}"


def divided(
    files: dict[str, list[TextFile]], remote: dict[str, str], part: Part
) -> tuple[dict[str, list[TextFile]], dict[str, str], str]:
    """Return the files and datasets of one part. Files are consecutive in reading order; datasets stay whole.

    All parts have about the same number of bytes. The texts of parts 0, 1, ..., concatenated, are the text of the whole
    source in its reading order.

    Args:
        files: local files by domain, in the order of reading.
        remote: datasets by domain.
        part: the part to return.
    Returns:
        the part's files by domain (every domain is a key), its datasets, and a SHA-256 over all file names and sizes.
    Raises:
        ConfigError: there are more parts than files and datasets.
    """
    listed = [file for of_domain in files.values() for file in of_domain]
    if len(listed) + len(remote) < part.count:
        raise ConfigError(
            f"part {part.index}/{part.count}: the source has {len(listed)} file(s) and {len(remote)} dataset(s), which "
            "cannot be divided further; use fewer parts, split the files, or download the files of a dataset first"
        )
    sizes = [file.path.stat().st_size for file in listed]
    chosen = set(listed[part.slice_of([size + 1 for size in sizes])])
    names = list(remote)[part.slice_of([1] * len(remote))]
    content = [[file.domain, file.name, size] for file, size in zip(listed, sizes, strict=True)]
    digest = hashlib.sha256(json.dumps([content, list(remote.items())]).encode()).hexdigest()
    own = {domain: [file for file in of_domain if file in chosen] for domain, of_domain in files.items()}
    return own, {name: remote[name] for name in names}, digest
