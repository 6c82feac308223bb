"""Small benchmark data in the real schemas, folders and file formats."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from monet.eval.suites.questions.categories import SUBJECTS

WORDS = ["river", "bridge", "stone", "cloud", "engine", "number", "market", "doctor", "planet", "letter", "music"]
LETTERS = "ABCDE"


def _phrase(generator: random.Random, words: int, about: str = "") -> str:
    return " ".join([*([about.replace("_", " ")] if about else []), *generator.choices(WORDS, k=words)])


def mmlu_rows(subject: str, split: str, count: int) -> list[dict[str, Any]]:
    generator = random.Random(f"{subject} {split}")
    return [
        {
            "question": _phrase(generator, 4, subject) + "?",
            "subject": subject,
            "choices": [_phrase(generator, generator.randint(1, 3)) for _ in range(4)],
            "answer": generator.randrange(4),
        }
        for _ in range(count)
    ]


def labelled_rows(name: str, count: int, options: int = 4, question: str = "question") -> list[dict[str, Any]]:
    """ARC, OpenBookQA, CommonsenseQA."""
    generator = random.Random(name)
    return [
        {
            "id": f"{name}-{number}",
            question: _phrase(generator, 4),
            "choices": {
                "text": [_phrase(generator, generator.randint(1, 3)) for _ in range(options)],
                "label": list(LETTERS[:options]),
            },
            "answerKey": generator.choice(LETTERS[:options]),
        }
        for number in range(count)
    ]


def other_rows(name: str, count: int) -> list[dict[str, Any]]:
    """WinoGrande, PIQA, SIQA, HellaSwag, SciQ, LAMBADA."""
    g = random.Random(name)
    made = {
        "winogrande": lambda: {"sentence": f"{_phrase(g, 3)} _ {_phrase(g, 2)}.", "option1": _phrase(g, 1),
                               "option2": _phrase(g, 1), "answer": g.choice("12")},
        "piqa": lambda: {"goal": _phrase(g, 4), "sol1": _phrase(g, 3), "sol2": _phrase(g, 2),
                         "label": g.randrange(2)},
        "sciq": lambda: {"question": _phrase(g, 4), "distractor1": _phrase(g, 1), "distractor2": _phrase(g, 2),
                         "distractor3": _phrase(g, 3), "correct_answer": _phrase(g, 2), "support": _phrase(g, 5)},
        "siqa": lambda: {"context": _phrase(g, 4) + ".", "question": _phrase(g, 2) + "?", "answerA": _phrase(g, 1),
                         "answerB": _phrase(g, 2), "answerC": _phrase(g, 3), "label": g.choice("123")},
        "lambada": lambda: {"text": f"{_phrase(g, 6)}. {_phrase(g, 4)}"},
        "hellaswag": lambda: {"ind": g.randrange(99), "activity_label": _phrase(g, 1), "ctx_a": _phrase(g, 3) + ".",
                              "ctx_b": _phrase(g, 1), "ctx": "", "endings": [_phrase(g, 2) for _ in range(4)],
                              "source_id": "s", "split": "val", "split_type": "indomain", "label": g.choice("0123")},
    }[name]  # fmt: skip
    return [made() for _ in range(count)]


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(list(map(dict, rows))).to_parquet(str(path))


def write_saved(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one split in the form of `save_to_disk`."""
    datasets.Dataset.from_list(list(map(dict, rows))).save_to_disk(str(path))


def write_mmlu(root: Path, *, subjects: Sequence[str] = SUBJECTS, questions: int = 4) -> Path:
    """Write all subjects together, with their names in a column."""
    for split, count in (("test", questions), ("validation", 2), ("dev", 5)):
        rows = [row for subject in subjects for row in mmlu_rows(subject, split, count)]
        write_jsonl(root / "mmlu" / f"{split}.jsonl", rows)
    return root


def write_benchmarks(root: Path, *, questions: int = 8) -> Path:
    """Write the eight benchmarks in different accepted layouts; only WinoGrande and ARC have a training split."""
    write_mmlu(root, questions=2)
    for part, count in (("ARC-Easy", questions), ("ARC-Challenge", questions - 3)):
        for split in ("train", "validation", "test"):
            rows = labelled_rows(f"{part}-{split}", count)
            write_parquet(root / "allenai" / "ai2_arc" / part / f"{split}-00000-of-00001.parquet", rows)
    for split in ("train", "validation"):
        write_jsonl(root / "winogrande" / "winogrande_xl" / f"{split}.jsonl", other_rows("winogrande", questions))
    write_saved(root / "piqa" / "plain_text" / "validation", other_rows("piqa", questions))
    write_saved(root / "social_i_qa" / "none" / "validation", other_rows("siqa", questions))
    write_saved(root / "hellaswag" / "none" / "validation", other_rows("hellaswag", questions))
    write_jsonl(root / "openbookqa" / "main" / "test.jsonl", labelled_rows("obqa", questions, question="question_stem"))
    write_jsonl(root / "tau" / "commonsense_qa" / "validation.jsonl", labelled_rows("csqa", questions, options=5))
    return root
