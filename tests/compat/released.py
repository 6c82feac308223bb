"""Folders in the form of the authors' release: `auto_map` in config.json, bfloat16, a tokenizer.model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

AUTO_MAP = {
    "AutoConfig": "modeling_monet.MonetConfig",
    "AutoModel": "modeling_monet.MonetModel",
    "AutoModelForCausalLM": "modeling_monet.MonetForCausalLM",
}
TEXT = [
    "The cat sat on the mat and ran far from home while rain fell.",
    "def f(x):\n\treturn x  +  1  # 1234567890",
    "naïve café, ½ ﬁ; [INST] what is it? [/INST]",
] * 20
TOKENIZER_CONFIG: dict[str, Any] = {
    "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
    "pad_token": None, "legacy": True, "model_max_length": 2048, "sp_model_kwargs": {},
    "clean_up_tokenization_spaces": False, "tokenizer_class": "LlamaTokenizer", "use_default_system_prompt": False,
    "added_tokens_decoder": {
        str(index): {
            "content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": True,
        }
        for index, token in enumerate(["<unk>", "<s>", "</s>"])
    },
}  # fmt: skip


def change_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """Set keys of a folder's config.json; returns its new content."""
    content = json.loads((folder / "config.json").read_text(encoding="utf-8")) | changes
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return content


def write_sentencepiece(folder: Path, vocab_size: int = 420, kind: str = "bpe", **config: Any) -> Any:
    """Write a tokenizer.model like LLaMA's with its tokenizer_config.json; returns sentencepiece's processor for it."""
    import sentencepiece  # pyright: ignore[reportMissingImports]

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_prefix=str(folder / "tokenizer"), vocab_size=vocab_size, model_type=kind,
        byte_fallback=True, character_coverage=0.99, normalization_rule_name="identity", split_digits=True,
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, pad_id=-1, unk_id=0, bos_id=1, eos_id=2,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG | config), encoding="utf-8")
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
