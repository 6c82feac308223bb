"""Rebuild the corpus from its packages: `python -m corpus.build`, from the root of the checkout.

Needs the clients that fetch the packages: apt-get and dpkg-deb (Debian 12), npm.
"""

from __future__ import annotations

import json
import lzma
import re
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from tqdm import tqdm

from corpus.assemble import Candidate, assemble
from corpus.clean_code import clean_code
from corpus.clean_text import clean_page
from corpus.fetch import fetch
from corpus.notices import write_notices, write_table
from corpus.recipe import CODE_LANGUAGES, LICENCE_TEXTS, RECIPE, Source
from monet.errors import ConfigError, DataError
from monet.files import atomic_write_bytes, atomic_write_json, sha256_file

HERE = Path(__file__).resolve().parent
MAX_LOST_SHARE_CODE = 0.12
MAX_LOST_SHARE_PROSE = 0.4
XZ_PRESET = 9 | lzma.PRESET_EXTREME


def _paths(source: Source, root: Path) -> list[Path]:
    found = {path for pattern in source.include for path in root.glob(pattern) if path.is_file()}
    return sorted(
        path
        for path in found
        if not path.is_symlink() and not re.search(source.exclude, "/" + path.relative_to(root).as_posix())
    )


def _candidates(source: Source, root: Path, domain: str) -> list[Candidate]:
    found = []
    for path in tqdm(_paths(source, root), desc=f"{domain}: {source.package}", unit="file", leave=False):
        try:
            raw = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if source.must_contain and not re.search(source.must_contain, raw):
            continue
        name = f"{source.package}:{path.relative_to(root).as_posix()}"
        if domain in CODE_LANGUAGES:
            cleaned = clean_code(raw, domain)
            if cleaned is not None:
                found.append(Candidate(name, cleaned.text, cleaned.copyright_lines))
        elif text := clean_page(raw, domain):
            found.append(Candidate(name, text))
    if not found:
        raise DataError(
            f"domain {domain}: no usable file in {source.package} for {list(source.include)}; "
            f"correct the patterns in corpus/recipe.py"
        )
    return found


def _encode(documents: list[Candidate]) -> bytes:
    lines = [json.dumps({"text": each.text, "source": each.source}, ensure_ascii=False) + "\n" for each in documents]
    return lzma.compress("".join(lines).encode(), format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, preset=XZ_PRESET)


def build(
    cache: Path,
    out: Path = HERE,
    bytes_per_domain: int = 1_150_000,
    domains: list[str] | None = None,
) -> None:
    """Fetch the packages, clean their files and write the corpus, its manifest and its notices.

    The same package versions give the same bytes. Versions come from the recipe (npm) or are what the package client
    offers (apt); manifest.json records the ones used.

    Args:
        cache: Folder for the unpacked packages, about 700 MB; a second call reuses what is there.
        out: Folder that gets text/, LICENSES/ and manifest.json.
        bytes_per_domain: UTF-8 bytes of cleaned text to collect for each domain, before compression.
        domains: Domains to build; None builds all of the recipe. Some only is for trials, in a folder of their own.

    Raises:
        ConfigError: a domain is not in the recipe, bytes_per_domain is not positive, or a partial build would leave
            a manifest in the shipped corpus that lists only some of its domains.
        DataError: a package cannot be fetched, or yields no or too little text.
    """
    wanted = sorted(domains or RECIPE)
    unknown = sorted(set(wanted) - set(RECIPE))
    if unknown:
        raise ConfigError(f"domains={unknown} are not in the recipe; it has {sorted(RECIPE)}")
    if bytes_per_domain <= 0:
        raise ConfigError(f"bytes_per_domain={bytes_per_domain} must be positive")
    if wanted != sorted(RECIPE) and out.resolve() == HERE:
        raise ConfigError(f"domains={wanted} are not all of {sorted(RECIPE)}; give a trial another folder with --out")
    files: dict[str, Any] = {}
    packages: list[dict[str, Any]] = []
    chosen: dict[str, list[Candidate]] = {}
    roots = {LICENCE_TEXTS.package: fetch(LICENCE_TEXTS, cache)[0]}
    for domain in tqdm(wanted, desc="domains", unit="domain"):
        pools, versions = {}, {}
        for source in RECIPE[domain]:
            root, versions[source.package] = fetch(source, cache)
            roots[source.package] = root
            pools[source.package] = (source.share, _candidates(source, root, domain))
        max_lost_share = MAX_LOST_SHARE_CODE if domain in CODE_LANGUAGES else MAX_LOST_SHARE_PROSE
        documents = chosen[domain] = assemble(pools, bytes_per_domain, max_lost_share)
        size = sum(len(each.text.encode()) for each in documents)
        if size < 0.9 * bytes_per_domain:
            raise DataError(
                f"domain {domain}: only {size} of {bytes_per_domain} bytes of clean text; "
                f"add a package in corpus/recipe.py or lower --bytes_per_domain"
            )
        name = f"text/{domain}/part-00.jsonl.xz"
        atomic_write_bytes(out / name, _encode(documents))
        files[name] = {
            "documents": len(documents),
            "text_bytes": size,
            "bytes": (out / name).stat().st_size,
            "sha256": sha256_file(out / name),
        }
        counts: dict[str, list[int]] = defaultdict(list)
        for each in documents:
            counts[each.source.split(":", 1)[0]].append(len(each.text.encode()))
        packages.extend(
            {
                "domain": domain,
                "package": source.package,
                "client": source.client,
                "version": versions[source.package],
                "licence": source.licence,
                "documents": len(counts[source.package]),
                "text_bytes": sum(counts[source.package]),
            }
            for source in RECIPE[domain]
        )
    shutil.rmtree(out / "LICENSES", ignore_errors=True)
    write_notices(out / "LICENSES", {domain: RECIPE[domain] for domain in wanted}, roots, chosen)
    manifest = {"format": 1, "bytes_per_domain": bytes_per_domain, "files": files, "packages": packages}
    atomic_write_json(out / "manifest.json", manifest)
    if (out / "README.md").exists():
        write_table(out / "README.md", manifest)
    total = sum(entry["bytes"] for entry in files.values())
    print(f"{len(files)} domains, {total / 1e6:.2f} MB compressed, in {out}")


if __name__ == "__main__":
    auto_cli(build, as_positional=False)
