"""Licence notices of the packages, copyright lines removed from the texts, and the README's table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from corpus.assemble import Candidate
from corpus.recipe import LICENCE_TEXTS, Source
from monet.errors import DataError
from monet.files import atomic_write_text

COPYRIGHTS_NAME = "COPYRIGHT-LINES.txt"
TABLE_START, TABLE_END = "<!-- table: written by build.py -->", "<!-- end of table -->"

_COPYRIGHTS_HEAD = """\
Copyright notices that cleaning took out of the texts, by package. They belong to the files that the corpus uses; the
"source" field of each record names its file.
"""


def _stanza(notice: str, source: Source) -> str:
    """Return the stand-alone stanza of one licence in a machine-readable Debian copyright file."""
    for stanza in re.split(r"\n\n+", notice):
        if stanza.startswith(f"License: {source.notice_stanza}\n"):
            return re.sub(r"^ ?\.$", "", stanza, flags=re.MULTILINE) + "\n"
    raise DataError(
        f"{source.package}: no stanza `License: {source.notice_stanza}` in {source.notice_path}; "
        "correct corpus/recipe.py"
    )


def write_notices(
    folder: Path, recipe: dict[str, tuple[Source, ...]], roots: dict[str, Path], chosen: dict[str, list[Candidate]]
) -> None:
    """Copy each package's licence notice and write the copyright lines of the files used.

    Args:
        folder: folder for the notices, one `<package>.txt` each.
        recipe: domains and their sources.
        roots: package -> its unpacked files.
        chosen: domain -> documents of the corpus.

    Raises:
        DataError: a package lacks the notice that the recipe names.
    """
    for source in {source.package: source for sources in recipe.values() for source in sources}.values():
        if source.notice_of:
            continue
        path = roots[source.package] / source.notice_path
        if not path.is_file():
            raise DataError(f"{source.package}: no licence notice at {source.notice_path}; correct corpus/recipe.py")
        notice = path.read_text(encoding="utf-8")
        if source.notice_stanza:
            notice = _stanza(notice, source)
        atomic_write_text(folder / f"{source.package}.txt", notice)
    for pattern in LICENCE_TEXTS.include:
        text = (roots[LICENCE_TEXTS.package] / pattern).read_text(encoding="utf-8")
        atomic_write_text(folder / f"{Path(pattern).name}.txt", text)
    lines: dict[str, set[str]] = {}
    for documents in chosen.values():
        for each in documents:
            lines.setdefault(each.source.split(":", 1)[0], set()).update(
                re.sub(r"\s+", " ", line) for line in each.copyright_lines
            )
    sections = [
        f"{package}\n" + "".join(f"    {line}\n" for line in sorted(lines[package]))
        for package in sorted(lines)
        if lines[package]
    ]
    atomic_write_text(folder / COPYRIGHTS_NAME, "\n".join([_COPYRIGHTS_HEAD, *sections]))


def write_table(readme: Path, manifest: dict[str, Any]) -> None:
    """Replace the README's table of domains and packages by one from the manifest.

    Raises:
        DataError: the README lacks the two lines that enclose the table.
    """
    text = readme.read_text(encoding="utf-8")
    if TABLE_START not in text or TABLE_END not in text:
        raise DataError(f"{readme}: the lines {TABLE_START!r} and {TABLE_END!r} are missing; put them back")
    rows = ["| domain | package | version | licence | documents | bytes |", "| --- | --- | --- | --- | ---: | ---: |"]
    rows += [
        f"| {each['domain']} | {each['package']} ({each['client']}) | {each['version']} | {each['licence']} "
        f"| {each['documents']:,} | {each['text_bytes']:,} |"
        for each in manifest["packages"]
    ]
    for name, entry in manifest["files"].items():
        domain = name.split("/")[1]
        rows.append(f"| **{domain}** | **all** | | | **{entry['documents']:,}** | **{entry['text_bytes']:,}** |")
    head, tail = text.split(TABLE_START)[0], text.split(TABLE_END)[1]
    table = "\n".join(rows)
    atomic_write_text(readme, f"{head}{TABLE_START}\n{table}\n{TABLE_END}{tail}")
