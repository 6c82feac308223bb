"""`monet export`: a training checkpoint -> a Hugging Face folder with tokenizer and model card."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from monet import __version__
from monet.convert.model_card import PROVENANCE, Provenance, model_card
from monet.errors import CheckpointError, ConfigError, DataError
from monet.files import MANIFEST_NAME, atomic_directory, refuse_links_out, sha256_file
from monet.json_text import parse_json
from monet.model.model_tokenizer import TOKENIZER_FILE, has_tokenizer, sentencepiece_tokenizer, vocabulary

if TYPE_CHECKING:
    from torch import Tensor


# a tokenizer's folder may contain a whole other model
_TOKENIZER_PATTERNS = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt",
                       "chat_template*")  # fmt: skip


def export(
    out: Path,
    run: Path | None = None,
    checkpoint: Path | None = None,
    tokenizer: Path | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    remote_code: bool = False,
) -> None:
    """Turn a training checkpoint into a Hugging Face model folder.

    Every weight is mapped by name in both directions; if one does not match, nothing is written. Weights are read, cast
    and written one file at a time: the whole model is never in memory. The folder holds config.json, model.safetensors,
    generation_config.json, the tokenizer, README.md (model card) and provenance.json; with remote_code it also holds
    modeling_monet.py.

    Args:
        out: folder to create; it must not exist yet.
        run: run folder; its newest valid checkpoint is exported. Give either run or checkpoint.
        checkpoint: one checkpoint folder, RUN/checkpoints/step-00000000.
        tokenizer: tokenizer folder; None uses the one in the run's folder.
        dtype: data type of the exported weights; float32 keeps the checkpoint's bits. Router statistics stay float32.
        remote_code: also write the model's code as modeling_monet.py, so that the folder loads where monet is not
            installed: AutoModelForCausalLM.from_pretrained(OUT, trust_remote_code=True), with torch, transformers,
            safetensors and numpy. This code is plain torch, without the Triton and C++ kernels.
    """
    import torch

    from monet import MonetConfig
    from monet.convert.remote_code import add_remote_code
    from monet.training.checkpoints import tensor_files
    from monet.training.checkpoints.checkpoint import chosen_checkpoint, read_weights
    from monet.training.weights import (
        check_fit,
        model_without_weights,
        released_tensors,
        some_of,
        trained_with_document_masks,
    )

    folder = chosen_checkpoint(run, checkpoint, with_optimizer=False)
    if out.exists():
        raise ConfigError(f"out = {out} exists already; choose another name or remove it first")
    tokenizer = tokenizer or folder.parent.parent / "tokenizer"
    if not has_tokenizer(tokenizer):
        raise CheckpointError(f"{tokenizer}: no {TOKENIZER_FILE} found; pass the tokenizer's folder as --tokenizer")
    copied = tokenizer_files(tokenizer)
    converted = sentencepiece_tokenizer(str(tokenizer))
    with torch.device("meta"):  # names, shapes and data types without content
        model = model_without_weights(folder)
    if remote_code and not isinstance(model.config, MonetConfig):
        raise ConfigError(
            "remote_code = true, but the run trained a LLaMA, whose code is in transformers; omit the option"
        )
    _check_vocabulary(tokenizer, model.config.vocab_size)
    stored = read_weights(folder)
    check_fit(stored, released_tensors(model), f"checkpoint {folder}")
    weights = Cast(stored, {name for name, _ in model.named_parameters()}, getattr(torch, dtype))
    if dtype != "float32" and (large := [name for name, tensor in weights.items() if not tensor.isfinite().all()]):
        raise ConfigError(f"dtype {dtype} cannot represent the weights of {some_of(large)}; use bfloat16 or float32")
    provenance = _provenance(folder, dtype)
    with atomic_directory(out) as target:
        model.config.dtype, model.config.architectures = getattr(torch, dtype), [type(model).__name__]
        if masked := trained_with_document_masks(folder):
            model.config.document_mask = masked
        model.config.save_pretrained(target)
        if remote_code:
            add_remote_code(target)
        model.generation_config.save_pretrained(target)
        mode = (target / "config.json").stat().st_mode
        files = tensor_files.plan("model", weights)
        for file in files:
            tensor_files.write(target, file, weights, mode)
        tensor_files.write_index(target, "model", files, weights)
        for path in copied:
            shutil.copyfile(path, target / path.name)
        if converted is not None:  # converted so that the export loads without sentencepiece
            converted.save_pretrained(target)
        _check_written(weights, target)
        card = model_card(model, provenance, remote_code)
        (target / "README.md").write_text(card, encoding="utf-8")
        (target / PROVENANCE).write_text(json.dumps(vars(provenance), indent=2) + "\n", encoding="utf-8")
    print(f"exported step {provenance.step} of {folder} to {out}")


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of the tokenizer in a model's folder.

    Raises:
        CheckpointError: one of them is a link out of the folder.
    """
    files = [path for pattern in _TOKENIZER_PATTERNS for path in folder.glob(pattern) if path.is_file()]
    refuse_links_out(folder, files)
    return files


class Cast(Mapping[str, "Tensor"]):
    """Stored weights, cast to another data type when they are read; other tensors stay unchanged."""

    def __init__(self, stored: Mapping[str, Tensor], weights: set[str], dtype: Any) -> None:
        self.stored, self.weights, self.dtype = stored, weights, dtype

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.stored[name]
        return tensor.to(self.dtype) if name in self.weights else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def _check_vocabulary(tokenizer: Path, rows: int) -> None:
    if (found := len(vocabulary(tokenizer) or ())) > rows:
        raise ConfigError(f"tokenizer {tokenizer} has {found} ids, but the model has {rows}; pass the model's own")


def _check_written(expected: Mapping[str, Tensor], target: Path) -> None:
    from monet.training.checkpoints.checkpoint import read_weights
    from monet.training.weights import some_of

    written = read_weights(target)
    if written.keys() != expected.keys():
        raise CheckpointError(
            f"the export would write other names: {some_of(sorted(written.keys() ^ expected.keys()))}"
        )
    if wrong := [name for name, tensor in expected.items() if not _same(written[name], tensor)]:
        raise CheckpointError(f"the export would change weights: {some_of(wrong)}")


def _same(first: Tensor, second: Tensor) -> bool:
    import torch

    return first.dtype == second.dtype and torch.equal(first, second)


def _provenance(folder: Path, dtype: str) -> Provenance:
    import torch
    import transformers

    from monet.training.checkpoints.checkpoint import read_entry, step_of

    step, data = step_of(folder), read_entry(folder, "MonetDataModule") or {}
    return Provenance(
        checkpoint=f"{folder.parent.parent.name}/{folder.parent.name}/{folder.name}",
        checkpoint_manifest_sha256=sha256_file(folder / MANIFEST_NAME),
        step=step,
        tokens_seen=read_entry(folder, "monet")["tokens_seen"],
        seed=_seed_of(folder.parent.parent),
        data_seed=data.get("seed"),
        data_fingerprint=data.get("fingerprint"),
        validation=_validation_at(folder.parent.parent, step),
        dtype=dtype,
        monet_version=__version__,
        torch_version=torch.__version__,
        transformers_version=transformers.__version__,
        python_version=platform.python_version(),
    )


def _seed_of(run: Path) -> int | None:
    """The seed that the run started with."""
    import yaml

    try:
        content = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    seed = content.get("seed_everything") if isinstance(content, dict) else None
    return seed if type(seed) is int else None


def _validation_at(run: Path, step: int) -> dict[str, Any] | None:
    path = run / "validation.jsonl"
    if not path.is_file():
        return None
    found = None
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = parse_json(line, str(path))
        except DataError:  # truncated by a kill; the run rewrites it when it continues
            continue
        if entry["step"] == step:
            found = entry
    return found
