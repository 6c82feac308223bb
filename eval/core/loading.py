"""Load models and prepared text for the commands, check that they fit, and record their origin."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn
from tqdm import tqdm

from monet.configuration_monet import ORIGIN_KEYS
from monet.devices import choose_device
from monet.errors import CheckpointError, ConfigError, DataError
from monet.eval.core.inputs import PreparedWindows
from monet.model import model_tokenizer
from monet.model.fingerprint import hashed_once

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from monet.eval.core.intervention import Intervention
    from monet.model.modeling_monet import MonetForCausalLM, MonetPreTrainedModel

DType = Literal["auto", "float32", "bfloat16", "float16"]
DocumentMask = Literal["auto"] | bool


def load_model(name: str, device: str = "auto", dtype: DType = "auto") -> MonetForCausalLM:
    """Load a Monet model in eval mode.

    Args:
        name: Hugging Face folder or hub name.
        device: a torch device; auto takes a GPU if there is one.
        dtype: precision of the weights; auto keeps the precision of the files.

    Raises:
        CheckpointError: the folder or model does not exist, or is not a Monet model.
        ConfigError: this machine does not have the device.
    """
    from monet import MonetForCausalLM

    return load_as(MonetForCausalLM, name, device, dtype)


def load_as(kind: Any, name: str, device: str, dtype: DType) -> Any:
    """Load a model of a class that checks what it loads; arguments and errors as for `load_model`."""
    where = choose_device(device)
    try:
        return kind.from_pretrained(name, dtype=dtype, trust_remote_code=False).to(where).eval()
    except OSError as error:
        raise CheckpointError(f"{name}: no model found ({str(error).splitlines()[0]})") from None


def open_windows(
    folder: Path,
    split: str,
    model: MonetForCausalLM,
    seq_len: int | None = None,
    max_windows: int | None = None,
    domains: list[str] | None = None,
    document_mask: DocumentMask = "auto",
) -> PreparedWindows:
    """Windows of prepared text that fit a model.

    Args:
        folder: folder from `monet data prepare`.
        split: name of the split.
        model: the model. If its folder has a tokenizer, the data must have the same one.
        seq_len: tokens of a window; None takes the model's `max_position_embeddings`.
        max_windows: windows of each domain, evenly spread; None takes all.
        domains: names of the domains to read; None takes all.
        document_mask: no attention between the documents of a window. "auto" follows the training of the model, as
            its configuration records it, and is false without a record.

    Raises:
        DataError: another tokenizer, a larger vocabulary, an unknown split or domain, or a domain without a window.
        ConfigError: a value is out of range.
    """
    masked = bool(getattr(model.config, "document_mask", False)) if document_mask == "auto" else document_mask
    windows = PreparedWindows(folder, split, window_length(model, seq_len), max_windows, domains, masked)
    data_size, model_size = windows.shards.vocab_size, vocab_size(model)
    if data_size > model_size:
        raise DataError(
            f"{folder} was tokenized with a vocabulary of {data_size}, but the model has {model_size}; "
            "prepare the text with the model's tokenizer"
        )
    mine = Path(str(model.name_or_path))
    own, theirs = (model_tokenizer.backend_of(place) for place in (mine, windows.shards.tokenizer_dir))
    if own is not None and theirs is not None:
        differing = model_tokenizer.different_parts(own, theirs)
        if own.get_vocab() != theirs.get_vocab():
            differing.insert(0, "vocabulary")
        if differing:
            raise DataError(
                f"{folder} was tokenized with another tokenizer than the one in {mine} (they differ in "
                f"{', '.join(differing)}); prepare the text with the model's tokenizer"
            )
        if words := model_tokenizer.different_starts([(mine, own), (windows.shards.tokenizer_dir, theirs)]):
            warnings.warn(f"{words}; prepare the text with the same --add_bos as the model's data", stacklevel=2)
    return windows


def window_length(model: MonetPreTrainedModel, seq_len: int | None) -> int:
    """Tokens of a window: `seq_len`, or the model's maximum.

    Raises:
        ConfigError: `seq_len` is more than the model's `max_position_embeddings`.
    """
    longest = cast(int, model.config.max_position_embeddings)
    if seq_len is not None and seq_len > longest:
        raise ConfigError(f"seq_len {seq_len} is more than the model's max_position_embeddings {longest}")
    return longest if seq_len is None else seq_len


def own_tokenizer(model: MonetPreTrainedModel) -> PreTrainedTokenizerBase | None:
    """The tokenizer in the model's own folder; None if it has none, for example a model that was made in memory.

    Raises:
        ConfigError: the folder has only a tokenizer.model, and sentencepiece is not installed.
    """
    if not model.name_or_path:
        return None
    try:
        return model_tokenizer.load_tokenizer(str(model.name_or_path))
    except CheckpointError:
        return None


def vocab_size(model: MonetPreTrainedModel) -> int:
    """Number of ids for which the model has embeddings."""
    return cast(int, model.config.vocab_size)


def windows_bar(total: int, description: str, shown: bool, unit: str = "window", initial: int = 0) -> tqdm:
    """Progress bar over windows (or other units) on standard error; occasional lines if that is not a terminal."""
    calm = {} if sys.stderr.isatty() else {"mininterval": 30.0, "ascii": True, "ncols": 100}
    return tqdm(total=total, initial=initial, desc=description, unit=unit, disable=not shown, **calm)


def check_batch_size(batch_size: int) -> None:
    """Refuse an empty batch.

    Raises:
        ConfigError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size {batch_size} must be at least 1")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients. The module's mode is restored afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def settings_of(model: nn.Module) -> str:
    """A model's configuration as JSON, without the keys that only record its origin."""
    config = cast(Any, model).config.to_dict()
    told = {key: value for key, value in config.items() if key not in ORIGIN_KEYS}
    return json.dumps(told, sort_keys=True, default=str)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the configuration and over names, types and bytes of all tensors.

    `model.fingerprint()` hashes less. Rotary base, norm epsilon, number of heads and similar settings change what a
    model computes, but not its weights; this digest includes them.
    """
    settings = settings_of(model)
    tensors = model.state_dict()

    def take() -> str:
        digest = hashlib.sha256(settings.encode())
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    return hashed_once(model, "weights", settings, tensors.values(), take)


def fingerprint_of(model: nn.Module) -> str:
    """For a Monet, the fingerprint in its masks; for any other model, the first digits of its weights' digest."""
    own = getattr(model, "fingerprint", None)
    return own() if own is not None else weights_digest(model)[:16]


def mask_digest(mask: Intervention | None) -> str:
    """The mask's digest, or "none" without a mask."""
    return "none" if mask is None else mask.digest


def provenance_now() -> dict[str, Any]:
    """Date (UTC) and versions of the installed packages."""
    import monet

    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "monet": monet.__version__,
            "torch": str(torch.__version__),
            "transformers": importlib.metadata.version("transformers"),
        },
    }
