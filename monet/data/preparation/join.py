"""Joins the parts of a preparation into one prepared folder: the `monet data join` verb."""

from __future__ import annotations

import errno
import os
import re
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

from monet.data.documents.division import part_folder, parts_folder
from monet.data.documents.sources import inventory
from monet.data.preparation.partial_folder import clear, differences, make, refuse_foreign
from monet.data.preparation.summary import added, summary
from monet.data.report import print_made
from monet.data.storage.shards import MANIFEST, PARTS, TOKENIZER, TokenShards, write_manifest
from monet.data.storage.writer import stem_of
from monet.errors import DataError
from monet.files import atomic_directory, fsync_path
from monet.parts import Part

_NO_LINKS = {errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP}
_SAME = ("dtype", "vocab_size", "eos_id", "tokenizer_files")


def join(out: Path, *, overwrite: bool = False) -> TokenShards:
    """Join the parts that `monet data prepare --part` made: OUT.parts becomes OUT.

    The source text is not needed. The documents, their order, splits and tokens equal those of a single preparation of
    the whole source. The settings are equal too, so `monet data prepare` with the same configuration finds OUT done.
    Shards are not merged, so there can be more of them. They are linked instead of copied if the file system allows
    it; OUT.parts may be removed afterwards.

    Args:
        out: folder to make; the parts are in OUT.parts.
        overwrite: replace finished data of other settings.
    Returns:
        the prepared data, opened.
    Raises:
        DataError: a part is missing, unfinished or damaged, or was made with other settings, another tokenizer or
            other text; names it.
        ConfigError: the data in `out` have other settings.
        MonetError: the disk is full or cannot be written.
    """
    out = Path(out)
    refuse_foreign(out)
    parts = _open(out)
    manifests = [part.manifest for part in parts]
    settings = {key: value for key, value in manifests[0]["settings"].items() if key != "part"}
    identities: dict[str, list[list[str]]] = {}
    for domain, listed in chain.from_iterable(manifest["part"]["identities"].items() for manifest in manifests):
        identities.setdefault(domain, []).extend(listed)
    settings["text"] = inventory(identities)
    counted = added([manifest["part"]["counted"] for manifest in manifests])

    def work(partial: Path) -> None:
        clear(partial)
        entries = {split: _linked(parts, split, partial) for split in parts[0].splits}
        if not entries["train"]:
            raise DataError(
                f"{parts_folder(out)}: no part holds a document, so nothing can be joined; check the source"
            )
        with atomic_directory(partial / TOKENIZER) as temporary:
            shutil.copytree(parts[0].tokenizer_dir, temporary, dirs_exist_ok=True)
        first = manifests[0]
        more = summary(counted, entries, settings)
        write_manifest(partial, entries, first["vocab_size"], first["eos_id"], **more)

    worked = make(out, settings, work, overwrite=overwrite)
    shards = TokenShards(out)
    print_made(out, shards.manifest, [], worked)
    if worked:
        print(f"{parts_folder(out)} is no longer needed")
    return shards


def _open(out: Path) -> list[TokenShards]:
    """Return all parts in order, after checking that they belong together."""
    folder = parts_folder(out)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = [re.fullmatch(r"part-\d+-of-(\d+)(\.partial)?", name) for name in names]
    counts = sorted({int(match[1]) for match in found if match})
    if len(counts) != 1:
        there = f"parts of {' and of '.join(map(str, counts))}; remove those of one division" if counts else "no parts"
        raise DataError(f"{folder} holds {there}; `monet data prepare --part 0/N --out {out}` makes the first of N")
    parts: list[TokenShards] = []
    for index in range(counts[0]):
        path = part_folder(out, Part(index, counts[0]))
        if not (path / MANIFEST).is_file():
            state = "not finished" if path.with_name(f"{path.name}.partial").exists() else "missing"
            raise DataError(
                f"{path}: this part is {state}; run `monet data prepare` for it with --part {index}/{counts[0]}"
            )
        part = TokenShards(path)
        if "part" not in part.manifest or "part" not in part.manifest["settings"]:
            raise DataError(f"{path}: the manifest names no part; prepare it again with --part {index}/{counts[0]}")
        if reason := _mismatch(parts[0] if parts else part, part, index):
            raise DataError(f"{path}: {reason}; prepare it again with --overwrite true")
        parts.append(part)
    return parts


def _mismatch(first: TokenShards, part: TokenShards, index: int) -> str | None:
    """Explain why a part does not belong to the first one; None if it does."""

    def settings(shards: TokenShards) -> dict[str, Any]:
        own = {key: value for key, value in shards.manifest["settings"].items() if key != "text"}
        return own | {"part": own["part"]["count"]}

    asked, there = part.manifest["settings"]["part"], first.manifest["settings"]["part"]
    if asked["index"] != index:
        return f"its manifest says that it is part {asked['index']}"
    if found := list(differences(settings(first), settings(part))):
        return f"its settings differ from those of {first.folder.name} ({'; '.join(found[:5])})"
    if asked["division"] != there["division"]:
        return f"names or sizes of the source's files differ from those that {first.folder.name} found"
    if any(part.manifest[key] != first.manifest[key] for key in _SAME):
        return f"its tokenizer differs from that of {first.folder.name}"
    return None


def _linked(parts: list[TokenShards], split: str, partial: Path) -> dict[str, list[dict[str, Any]]]:
    """Move the shards of one split to their new names; return their entries by domain."""
    entries: dict[str, list[dict[str, Any]]] = {domain: [] for part in parts for domain in part.domains}
    for part in parts:
        for domain in part.domains:
            folder, listed = partial / split / domain, entries[domain]
            folder.mkdir(parents=True, exist_ok=True)
            for entry in part.manifest["splits"][split][domain]["shards"]:
                stem = stem_of(len(listed))
                for suffix in PARTS:
                    _link(part.folder / split / domain / (entry["stem"] + suffix), folder / (stem + suffix))
                listed.append({**entry, "stem": stem})
    return entries


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)
        fsync_path(target)
