"""`monet generate`: continue a prompt with an exported model, with any expert mask."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from monet.errors import CheckpointError, ConfigError
from monet.terminal import clean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TextStreamer

    from monet import ExpertMask, MonetForCausalLM


def generate(
    model: Path,
    prompt: str,
    max_new_tokens: int = 100,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
    mask: Path | None = None,
    device: str = "auto",
) -> None:
    """Continue a prompt and print the text while it is generated.

    Args:
        model: folder of an exported or released model.
        prompt: text to continue; must not be empty.
        max_new_tokens: largest number of new tokens; generation ends earlier at the end-of-text token.
        temperature: divides the logits before sampling; 0 always takes the most likely token.
        top_p: samples from the most likely tokens that together have this share of the probability, in (0, 1].
        seed: seed for sampling.
        mask: file of the expert mask to apply; None removes no expert.
        device: torch device; auto uses a GPU if there is one.
    """
    import torch

    from monet import ExpertMask
    from monet.devices import choose_device
    from monet.model.experts import lay_out_for_decoding

    if not prompt:
        raise ConfigError("prompt is empty; pass some text to continue")
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if not temperature >= 0:
        raise ConfigError(f"temperature must be 0 or more, got {temperature}")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p must be in (0, 1], got {top_p}")
    where = choose_device(device)
    language_model, tokenizer = load(model)
    language_model.to(where)  # pyright: ignore[reportArgumentType]
    if where.type == "cuda":
        lay_out_for_decoding(language_model)
    expert_mask = None if mask is None else ExpertMask.load(mask, model=language_model)
    torch.manual_seed(seed)
    stream(language_model, tokenizer, prompt, max_new_tokens, temperature, top_p, expert_mask)


def load(folder: Path) -> tuple[MonetForCausalLM, PreTrainedTokenizerBase]:
    """An exported or released model in evaluation mode, and its tokenizer.

    Raises:
        CheckpointError: the folder has no model or no tokenizer.
        ConfigError: the folder has only a tokenizer.model, and sentencepiece is not installed.
    """
    from monet import MonetForCausalLM
    from monet.model.model_tokenizer import load_tokenizer

    if not (folder / "config.json").is_file():
        raise CheckpointError(f"model {folder}: no config.json found; pass the folder of an exported or released model")
    tokenizer = load_tokenizer(folder)
    return MonetForCausalLM.from_pretrained(folder).eval(), tokenizer


def _streamer(tokenizer: PreTrainedTokenizerBase) -> TextStreamer:
    """Prints the text while it is generated; cleaned, so that it cannot send commands to the terminal."""
    from transformers import TextStreamer

    class Cleaned(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text(clean(text), stream_end)

    return Cleaned(tokenizer, skip_special_tokens=True)  # pyright: ignore[reportArgumentType]


def stream(
    model: MonetForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    expert_mask: ExpertMask | None = None,
) -> str:
    """Print prompt and continuation token by token, and return the whole text. The arguments are those of `generate`.

    Raises:
        ConfigError: prompt and continuation are longer than the model's longest sequence.
    """
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
    length, limit = inputs["input_ids"].shape[1] + max_new_tokens, model.config.max_position_embeddings
    if length > limit:
        raise ConfigError(
            f"prompt and max_new_tokens = {max_new_tokens} make {length} tokens, the model takes {limit}; shorten one"
        )
    sampling = {"do_sample": temperature > 0}
    if temperature > 0:
        sampling |= {"temperature": temperature, "top_p": top_p, "top_k": 0}
    masked = {} if expert_mask is None else {"expert_mask": expert_mask}
    ids = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
        **inputs,
        max_new_tokens=max_new_tokens,
        streamer=_streamer(tokenizer),
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        **sampling,
        **masked,
    )
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))
