"""Checks the project's English against the word list words.yaml; `make lint` runs it.

    python -m tools.prose             count the findings; fail if a file has more than baseline.json allows
    python -m tools.prose PATH ...    print every finding in these files or folders
    python -m tools.prose --update    lower baseline.json to the present counts; a higher total is refused

It reads Markdown, docstrings, comments, and strings of at least four words in code outside tests/: help, messages and
errors. It does not read code spans, code blocks, addresses and text in double quotes.

A comment `prose: ignore` switches all rules off for the paragraph, comment, docstring or string that it belongs to, and
`prose: ignore beside, alone` only these rules.

Other tools cannot do this. Vale's package for pip downloads a program when it first runs, proselint takes no word list,
and the dictionary of codespell holds single words; none of them separates error messages from other code.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from tools.prose.text import IGNORE, blocks_of, sentences, without_code

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RULES = HERE / "words.yaml"
BASELINE = HERE / "baseline.json"


class Rule(NamedTuple):
    """One entry of the word list."""

    name: str
    find: re.Pattern[str]
    write: str


class Finding(NamedTuple):
    """Words that a rule matches, where, and what to write instead."""

    path: str
    line: int
    rule: str
    words: str
    write: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: [{self.rule}] {self.words!r}; write: {self.write}"


def read_rules(text: str) -> tuple[list[Rule], int]:
    """The word list, and the words that a sentence may have."""
    found = yaml.safe_load(text)
    flags = re.IGNORECASE | re.MULTILINE
    rules = [
        Rule(one["name"], re.compile(one["find"].replace(" ", r"\s"), flags), one["write"]) for one in found["rules"]
    ]
    return rules, found["longest_sentence"]


def check(path: str, source: str, rules: Sequence[Rule], longest: int) -> list[Finding]:
    """Findings in one file, by line."""
    found = []
    for block in blocks_of(path, source):
        text = "\n".join(" ".join(line.split()) for _, line in block)
        marks = [mark["names"].strip() for mark in IGNORE.finditer(text)]
        off = {name.strip() for names in marks for name in names.split(",")}
        if marks and "" in off:
            continue
        plain = without_code(text)
        for rule in rules:
            if rule.name not in off:
                for match in rule.find.finditer(plain):
                    line = block[plain[: match.start()].count("\n")][0]
                    found.append(Finding(path, line, rule.name, " ".join(match[0].split()), rule.write))
        for start, sentence in sentences(plain):
            words = re.findall(r"[^\W_][\w'’.,-]*", sentence)
            if len(words) > longest and "long sentence" not in off:
                line = block[plain[:start].count("\n")][0]
                write = f"sentences of at most {longest} words"
                found.append(
                    Finding(path, line, "long sentence", f"{' '.join(words[:6])} ... ({len(words)} words)", write)
                )
    return sorted(found, key=lambda finding: finding.line)


def files(folder: Path, settings: str) -> list[str]:
    """Files that the word list names, as paths below `folder`."""
    found = yaml.safe_load(settings)
    names = {path.relative_to(folder).as_posix() for glob in found["files"] for path in folder.glob(glob)}
    return sorted(names - set(found["skip"]))


def verdict(counts: dict[str, int], allowed: dict[str, int]) -> tuple[list[str], str]:
    """Files with more findings than baseline.json allows, and what to say of those with fewer."""
    worse = [path for path, count in counts.items() if count > allowed.get(path, 0)]
    fewer = sum(allowed.values()) - sum(counts.values())
    return worse, f"{fewer} fewer than baseline.json allows: run `python -m tools.prose --update`" if fewer > 0 else ""


def main(words: Sequence[str]) -> int:
    """Run one command line; 1 where a file has too many findings or the total grew."""
    settings = RULES.read_text(encoding="utf-8")
    rules, longest = read_rules(settings)
    asked = [Path(word).resolve() for word in words if not word.startswith("--")]
    found: list[Finding] = []
    for path in files(ROOT, settings):
        if not asked or any((ROOT / path).is_relative_to(one) for one in asked):
            found += check(path, (ROOT / path).read_text(encoding="utf-8"), rules, longest)
    if asked:
        print(*found, f"{len(found)} findings", sep="\n")
        return 0
    counts = dict(sorted(Counter(finding.path for finding in found).items()))
    allowed = json.loads(BASELINE.read_text(encoding="utf-8")) if BASELINE.exists() else counts
    by_rule = Counter(finding.rule for finding in found)
    print(*(f"{count:6} {rule}" for rule, count in by_rule.most_common()), sep="\n")
    print(f"{len(found):6} in {len(counts)} files; baseline.json allows {sum(allowed.values())}")
    if "--update" in words:
        if sum(counts.values()) > sum(allowed.values()):
            print("the total grew: correct the new sentences first; `python -m tools.prose PATH` prints them")
            return 1
        BASELINE.write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
        return 0
    worse, note = verdict(counts, allowed)
    print(*(finding for finding in found if finding.path in worse), sep="\n", end="\n" if worse else "")
    for path in worse:
        print(
            f"{path}: {counts[path]} findings; baseline.json allows {allowed.get(path, 0)}. Rewrite the new sentences."
        )
    if note:
        print(note)
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
