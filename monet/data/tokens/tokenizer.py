"""The tokenizer of prepared data: any fast Hugging Face tokenizer, or a byte-level BPE trained here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from monet.data.tokens.text_encoder import TextEncoder
from monet.errors import CheckpointError, ConfigError, DataError
from monet.json_text import parse_json
from monet.model import model_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
_SPECIAL = (BOS, EOS, PAD)
_BYTES = 256
_NO_BOS = "add_bos is set but the tokenizer has no bos_token; leave add_bos out or choose another tokenizer"


def train_tokenizer(texts: Iterable[str] | Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE: it encodes every text without unknown tokens, and decoding restores the same bytes.

    The result depends only on the texts, not on their batching or on the number of threads.

    Args:
        texts: training text; read once.
        vocab_size: number of ids, including the 256 bytes and <bos>, <eos>, <pad> (ids 0, 1, 2).
    Raises:
        ConfigError: the size is below 259.
        DataError: the text is too short to find this many tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    smallest = _BYTES + len(_SPECIAL)
    if vocab_size < smallest:
        raise ConfigError(f"vocab_size {vocab_size} is below {smallest}, the 256 bytes and {len(_SPECIAL)} special ids")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (found := tokenizer.get_vocab_size()) != vocab_size:
        raise DataError(
            f"the training text gives {found} tokens, but vocab_size is {vocab_size}; add text, or set vocab_size to "
            f"at most {found}"
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer from a folder or from the Hugging Face hub; code that comes with it never runs.

    Raises:
        DataError: the tokenizer cannot be loaded, is not fast, or has no end-of-text token.
        ConfigError: there is only a tokenizer.model, and sentencepiece is not installed.
    """
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = model_tokenizer.load_tokenizer(name)
    except CheckpointError as error:
        raise DataError(
            f"tokenizer {name!r} cannot be loaded: {error}; give a tokenizer's folder or its name on the Hugging "
            "Face hub, or leave the setting out to train one"
        ) from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise DataError(f"tokenizer {name!r} is not a fast one (no tokenizer.json); save it as PreTrainedTokenizerFast")
    if tokenizer.eos_token_id is None:
        raise DataError(f"tokenizer {name!r} has no eos_token, which marks where a document ends; set one and save it")
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path, *, add_bos: bool) -> None:
    """Write a tokenizer that adds the same tokens to a text as the documents of the data have: bos or nothing.

    A model that was trained on the data then sees the same tokens before a prompt as before a document.

    Raises:
        ConfigError: add_bos with a tokenizer that has no bos token.
    """
    if add_bos and tokenizer.bos_token_id is None:
        raise ConfigError(_NO_BOS)
    tokenizer.save_pretrained(str(folder))
    wanted = [tokenizer.bos_token_id] if add_bos else []
    if model_tokenizer.added_around(tokenizer.backend_tokenizer) != (wanted, []):
        model_tokenizer.put_around(folder, str(tokenizer.bos_token) if add_bos else None)


def notes_on_bos(tokenizer: PreTrainedTokenizerFast, add_bos: bool) -> list[str]:
    """Return a sentence for each token that the original tokenizer adds to a text but the stored one does not."""
    before, behind = model_tokenizer.added_around(tokenizer.backend_tokenizer)
    have = str(tokenizer.bos_token) if add_bos else "nothing"
    notes = []
    if (has := " ".join(tokenizer.convert_ids_to_tokens(before)) or "nothing") != have:
        advice = "" if add_bos or tokenizer.bos_token_id is None else "; --add_bos true puts it before each document"
        notes.append(
            f"the tokenizer puts {has} before a text by itself, but these data have {have} there (add_bos "
            f"{str(add_bos).lower()}), so the tokenizer stored with them puts {have}{advice}"
        )
    if behind:
        token = " ".join(tokenizer.convert_ids_to_tokens(behind))
        notes.append(f"the tokenizer puts {token} after a text by itself, but the one stored with the data does not")
    return notes


class Encoder(TextEncoder):
    """Makes a `TextEncoder` of a transformers tokenizer: it encodes texts as lists of ids that end with eos.

    Strings such as "<eos>" inside a text are encoded as plain text, unless the vocabulary itself contains them.

    Args:
        tokenizer: a fast tokenizer with an eos token.
        add_bos: put the bos id before each document.
    Attributes:
        vocab_size: the largest id plus 1.
        unknown_id: id for text that the vocabulary cannot express; None if there is none.
        forbidden: ids that must not be inside a document: eos and bos.
    Raises:
        ConfigError: add_bos with a tokenizer that has no bos token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, add_bos: bool = False) -> None:
        if add_bos and tokenizer.bos_token_id is None:
            raise ConfigError(_NO_BOS)
        # some tokenizers skip ids, so the number of tokens is not enough
        self.vocab_size = max(tokenizer.get_vocab().values()) + 1
        prefix = [int(tokenizer.bos_token_id)] if add_bos else []  # pyright: ignore[reportArgumentType]
        super().__init__(tokenizer.backend_tokenizer, prefix, int(tokenizer.eos_token_id))  # pyright: ignore[reportArgumentType]
        model = parse_json(self.backend.to_str(), "a tokenizer")["model"]
        unknown = model.get("unk_id")
        if unknown is None and (token := model.get("unk_token") or tokenizer.unk_token) is not None:
            unknown = self.backend.token_to_id(str(token))
        self.unknown_id: int | None = None if unknown == self.eos_id else unknown
        bos = tokenizer.bos_token_id
        special = [self.eos_id] if bos is None or bos == self.unknown_id else [self.eos_id, bos]
        self.forbidden = np.array(special, dtype="<u4")
