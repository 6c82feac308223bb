"""Sizes of a small model, and readers of a run's files."""

from __future__ import annotations

import json
from pathlib import Path

SHAPE = {
    "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "moe_dim": 4,
    "moe_heads": 2, "moe_experts": 8, "moe_topk": 3, "moe_groups": 2, "moe_decompose": "vertical",
    "max_position_embeddings": 64, "tie_word_embeddings": True, "attention_dropout": 0.1,
}  # fmt: skip


def read_log(run_dir: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (run_dir / name).read_text(encoding="utf-8").splitlines()]


def losses(run_dir: Path) -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in read_log(run_dir)]
