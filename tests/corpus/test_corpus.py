"""The corpus that ships: complete, balanced, clean, free of repetitions."""

import json
import lzma
import re
from collections import Counter
from pathlib import Path

import pytest

from monet.files import sha256_file

CORPUS = Path(__file__).parents[2] / "corpus"
MANIFEST = json.loads((CORPUS / "manifest.json").read_text(encoding="utf-8"))
CODE = ("cpp", "javascript", "lua", "php", "python")
PROSE = ("english", "french", "german", "italian", "russian")
MAX_COMPRESSED_BYTES = 5_000_000
LICENCE_PHRASES = ("Licensed under", "Copyright (c)", "GNU General Public")


def read(domain: str) -> list[dict[str, str]]:
    lines: list[dict[str, str]] = []
    for path in sorted((CORPUS / "text" / domain).glob("*.jsonl.xz")):
        with lzma.open(path, "rt", encoding="utf-8") as file:
            lines += [json.loads(line) for line in file]
    return lines


def repeated_paragraphs(texts: list[str]) -> list[str]:
    counts = Counter(" ".join(block.split()) for text in texts for block in re.split(r"\n\s*\n", text))
    return [block for block, count in counts.items() if count > 1 and len(block) >= 40]


def licence_phrases(text: str) -> list[str]:
    return [phrase for phrase in LICENCE_PHRASES if phrase.lower() in text.lower()]


def imbalance(sizes: list[int]) -> float:
    return max(sizes) / min(sizes) - 1


def manifest_faults(root: Path, files: dict[str, dict]) -> list[str]:
    on_disk = {path.relative_to(root).as_posix() for path in (root / "text").rglob("*") if path.is_file()}
    faults = [f"{name}: only on disk or only in the manifest" for name in on_disk ^ set(files)]
    for name in on_disk & set(files):
        if (root / name).stat().st_size != files[name]["bytes"] or sha256_file(root / name) != files[name]["sha256"]:
            faults.append(f"{name}: size or hash")
    return faults


def test_manifest_describes_the_files():
    assert manifest_faults(CORPUS, MANIFEST["files"]) == []
    assert sorted({name.split("/")[1] for name in MANIFEST["files"]}) == sorted(CODE + PROSE)


def test_compressed_size_is_small():
    assert 0 < sum(entry["bytes"] for entry in MANIFEST["files"].values()) < MAX_COMPRESSED_BYTES


@pytest.mark.parametrize("domain", CODE + PROSE)
def test_domain_is_whole_and_clean(domain):
    records = read(domain)
    texts = [record["text"] for record in records]
    entry = MANIFEST["files"][f"text/{domain}/part-00.jsonl.xz"]
    assert (len(records), sum(len(text.encode()) for text in texts)) == (entry["documents"], entry["text_bytes"])
    assert all(set(record) == {"text", "source"} for record in records)
    assert len({record["source"] for record in records}) == len(records) >= 150
    assert all(700 <= len(text.encode()) <= 8_000 for text in texts)
    assert repeated_paragraphs(texts) == []
    if domain in CODE:
        assert [(record["source"], found) for record in records if (found := licence_phrases(record["text"]))] == []


@pytest.mark.parametrize("domain", PROSE)
def test_prose_uses_the_letters_of_its_language(domain):
    letters = [char for record in read(domain) for char in record["text"] if char.isalpha()]
    cyrillic = sum("\u0400" <= char <= "\u04ff" for char in letters) / len(letters)
    assert cyrillic > 0.85 if domain == "russian" else cyrillic == 0


def test_domains_are_balanced():
    assert imbalance([entry["text_bytes"] for entry in MANIFEST["files"].values()]) < 0.25


def test_every_package_has_its_notice_and_its_place_in_the_readme():
    from corpus.recipe import RECIPE

    readme = (CORPUS / "README.md").read_text(encoding="utf-8")
    sources = {source.package: source for domain in RECIPE.values() for source in domain}
    assert {entry["package"] for entry in MANIFEST["packages"]} == set(sources)
    for entry in MANIFEST["packages"]:
        notice = CORPUS / "LICENSES" / f"{sources[entry['package']].notice_of or entry['package']}.txt"
        assert notice.stat().st_size > 500, notice
        assert f"| {entry['version']} | {entry['licence']} | {entry['documents']:,} |" in readme
        assert entry["licence"] == sources[entry["package"]].licence


def test_checks_have_teeth(tmp_path):
    first, second = (record["text"] for record in read("lua")[:2])
    block = max(re.split(r"\n\s*\n", first), key=len)
    assert repeated_paragraphs([first, second + "\n\n" + block.replace("\n", "\n ")]) != []
    assert licence_phrases("-- licensed UNDER the\n" + first) == ["Licensed under"]
    assert imbalance([100, 130]) > 0.25
    text = tmp_path / "text" / "lua"
    text.mkdir(parents=True)
    part = text / "part-00.jsonl.xz"
    part.write_bytes(b"abc")
    entry = {"bytes": 3, "sha256": sha256_file(part)}
    name = "text/lua/part-00.jsonl.xz"
    assert manifest_faults(tmp_path, {name: entry}) == []
    part.write_bytes(b"abd")
    assert manifest_faults(tmp_path, {name: entry}) == [f"{name}: size or hash"]
    assert len(manifest_faults(tmp_path, {})) == 1


def test_manifest_of_the_evidence_text_is_that_of_its_recipe():
    from corpus.evidence import EVIDENCE

    manifest = json.loads((CORPUS / "evidence.json").read_text(encoding="utf-8"))
    listed = [(entry["domain"], entry["package"], entry["licence"]) for entry in manifest["packages"]]
    wanted = {domain: EVIDENCE.domains[domain] for domain in sorted(EVIDENCE.domains)}
    assert listed == [(domain, each.package, each.licence) for domain, sources in wanted.items() for each in sources]
    assert all(entry["documents"] > 0 and entry["version"] for entry in manifest["packages"])
    assert manifest["bytes_per_domain"] == EVIDENCE.bytes_per_domain
    assert [name.split("/")[1] for name in manifest["files"]] == list(wanted)
    assert imbalance([entry["text_bytes"] for entry in manifest["files"].values()]) < 0.1
