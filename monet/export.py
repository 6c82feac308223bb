"""`monet export`: a training checkpoint -> a Hugging Face folder with tokenizer and model card."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from monet import __version__
from monet.errors import CheckpointError, ConfigError, DataError
from monet.files import MANIFEST_NAME, atomic_directory, refuse_links_out, sha256_file
from monet.json_text import parse_json
from monet.model_tokenizer import TOKENIZER_FILE, has_tokenizer, sentencepiece_tokenizer, vocabulary

if TYPE_CHECKING:
    from torch import Tensor

    from monet.training.language_models import LanguageModel

PROVENANCE = "provenance.json"
# a tokenizer's folder may hold a whole other model
_TOKENIZER_PATTERNS = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt",
                       "chat_template*")  # fmt: skip


@dataclass(frozen=True)
class Provenance:
    """Where an exported model comes from; written to its model card and to provenance.json.

    `seed` is that of the initial weights and `data_seed` that of the order of the training text; None where the run's
    folder does not record it.
    """

    checkpoint: str
    checkpoint_manifest_sha256: str
    step: int
    tokens_seen: int
    seed: int | None
    data_seed: int | None
    data_fingerprint: str | None
    validation: dict[str, Any] | None
    dtype: str
    monet_version: str
    torch_version: str
    transformers_version: str
    python_version: str


def export(
    out: Path,
    run: Path | None = None,
    checkpoint: Path | None = None,
    tokenizer: Path | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    remote_code: bool = False,
) -> None:
    """Turn a training checkpoint into a Hugging Face model folder.

    Every weight is mapped by name in both directions, or nothing is written. Weights are read, cast and written one
    file at a time: the model is never in memory as a whole. The folder holds config.json, model.safetensors,
    generation_config.json, the tokenizer, README.md (model card) and provenance.json; with remote_code also
    modeling_monet.py.

    Args:
        out: folder to make; it must not exist yet.
        run: run folder; its newest valid checkpoint is exported. Give this or checkpoint.
        checkpoint: one checkpoint folder, RUN/checkpoints/step-00000000.
        tokenizer: tokenizer folder; None takes the one in the run's folder.
        dtype: data type of the exported weights; float32 keeps the checkpoint's bits. Router statistics stay float32.
        remote_code: also write the model's code as modeling_monet.py, so that the folder loads where monet is not
            installed: AutoModelForCausalLM.from_pretrained(OUT, trust_remote_code=True), with torch, transformers,
            safetensors and numpy. That code is plain torch, without the Triton and C++ kernels.
    """
    import torch

    from monet import MonetConfig
    from monet.remote_code import add_remote_code
    from monet.training import tensor_files
    from monet.training.checkpoint import chosen_checkpoint, read_weights

    folder = chosen_checkpoint(run, checkpoint, with_optimizer=False)
    if out.exists():
        raise ConfigError(f"out = {out} exists already; choose another name or remove it first")
    tokenizer = tokenizer or folder.parent.parent / "tokenizer"
    if not has_tokenizer(tokenizer):
        raise CheckpointError(f"{tokenizer}: no {TOKENIZER_FILE} there; name the tokenizer's folder with --tokenizer")
    copied = [path for pattern in _TOKENIZER_PATTERNS for path in tokenizer.glob(pattern) if path.is_file()]
    refuse_links_out(tokenizer, copied)
    converted = sentencepiece_tokenizer(str(tokenizer))
    with torch.device("meta"):  # names, shapes and data types without content
        model = _class_and_config(folder)
    if remote_code and not isinstance(model.config, MonetConfig):
        raise ConfigError(
            "remote_code = true, but the run trained a LLaMA; transformers has its code, leave the option out"
        )
    _check_vocabulary(tokenizer, model.config.vocab_size)
    stored = read_weights(folder)
    check_fit(stored, released_tensors(model), f"checkpoint {folder}")
    weights = _Cast(stored, {name for name, _ in model.named_parameters()}, getattr(torch, dtype))
    if dtype != "float32" and (large := [name for name, tensor in weights.items() if not tensor.isfinite().all()]):
        raise ConfigError(f"dtype {dtype} cannot hold the weights of {_some(large)}; take bfloat16 or float32")
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
        if converted is not None:  # so that the export loads without sentencepiece
            converted.save_pretrained(target)
        _check_written(weights, target)
        card = model_card(model, provenance, remote_code)
        (target / "README.md").write_text(card, encoding="utf-8")
        (target / PROVENANCE).write_text(json.dumps(vars(provenance), indent=2) + "\n", encoding="utf-8")
    print(f"exported step {provenance.step} of {folder} to {out}")


def load_checkpoint_model(folder: Path) -> LanguageModel:
    """The language model a checkpoint folder holds, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: a weight is missing, unknown, or of another shape or data type; names it.
    """
    from monet.training.checkpoint import read_weights

    model = _class_and_config(folder)
    copy_strictly(read_weights(folder), released_tensors(model), f"checkpoint {folder}")
    return model.eval()


def _class_and_config(folder: Path) -> LanguageModel:
    from monet.training.checkpoint import read_config
    from monet.training.language_models import class_of, config_of

    config = config_of(read_config(folder))
    return class_of(config)(config)


def trained_with_document_masks(folder: Path) -> bool:
    """Whether the run of a checkpoint folder kept the documents of a window apart (`data.document_mask`).

    The configuration in checkpoints of earlier versions does not say so; the data's position does.
    """
    from monet.training.checkpoint import read_entry

    return bool((read_entry(folder, "MonetDataModule") or {}).get("document_mask"))


def released_tensors(model: LanguageModel) -> dict[str, Tensor]:
    """The model's parameters and buffers under their released names; a tied output head is left out."""
    tensors = model.state_dict(keep_vars=True)
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    return tensors


def copy_strictly(source: Mapping[str, Tensor], target: dict[str, Tensor], what: str) -> None:
    """Copy tensors by name, after `check_fit`.

    Args:
        source: tensors read from a file.
        target: the model's tensors, overwritten in place.
        what: name of the source in messages.
    """
    import torch

    check_fit(source, target, what)
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])


def check_fit(source: Mapping[str, Tensor], target: Mapping[str, Tensor], what: str) -> None:
    """Names, shapes and data types must agree on both sides; all weights together may be of half precision.

    Raises:
        CheckpointError: names up to five tensors of each kind of disagreement.
    """
    if missing := sorted(target.keys() - source.keys()):
        raise CheckpointError(f"{what} lacks {len(missing)} weights of the model: {_some(missing)}")
    if unknown := sorted(source.keys() - target.keys()):
        raise CheckpointError(f"{what} has {len(unknown)} weights the model does not know: {_some(unknown)}")
    unlike, weights = [], {source[name].dtype for name, tensor in target.items() if tensor.requires_grad}
    for name, tensor in target.items():
        shape, dtype = source[name].shape, source[name].dtype
        half = tensor.requires_grad and len(weights) == 1 and str(dtype) in ("torch.bfloat16", "torch.float16")
        if shape != tensor.shape or (dtype != tensor.dtype and not half):
            unlike.append(f"{name}: {tuple(shape)} {dtype} for {tuple(tensor.shape)} {tensor.dtype}")
    if unlike:
        raise CheckpointError(f"{what} does not fit the model: {_some(unlike)}")


class _Cast(Mapping[str, "Tensor"]):
    """Stored weights in another data type, made when asked for; other tensors as they are."""

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
        raise ConfigError(f"tokenizer {tokenizer} has {found} ids, the model {rows}; name the one it was trained with")


def _check_written(expected: Mapping[str, Tensor], target: Path) -> None:
    from monet.training.checkpoint import read_weights

    written = read_weights(target)
    if written.keys() != expected.keys():
        raise CheckpointError(f"the export would write other names: {_some(sorted(written.keys() ^ expected.keys()))}")
    if wrong := [name for name, tensor in expected.items() if not _same(written[name], tensor)]:
        raise CheckpointError(f"the export would change weights: {_some(wrong)}")


def _same(first: Tensor, second: Tensor) -> bool:
    import torch

    return first.dtype == second.dtype and torch.equal(first, second)


def _provenance(folder: Path, dtype: str) -> Provenance:
    import torch
    import transformers

    from monet.training.checkpoint import read_entry, step_of

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
    """The seed that a run was started with."""
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
        except DataError:  # torn by a kill; the run writes it again when it continues
            continue
        if entry["step"] == step:
            found = entry
    return found


def model_card(model: LanguageModel, provenance: Provenance, remote_code: bool = False) -> str:
    """README.md of an exported model: what it is, how to load it (also without Monet), where it comes from."""
    from monet import MonetConfig

    c = model.config
    if isinstance(c, MonetConfig):
        square = f"{c.moe_experts}² = {c.moe_experts**2:,}"
        parts = {
            "experts": f"{square} a layer, {c.moe_decompose} decomposition, hidden width {c.moe_dim}",
            "routing": f"{c.moe_heads} heads, about {c.moe_topk} of {c.moe_experts} keys a side,"
            f" {c.num_routing_groups} routers ({c.moe_groups} layers each)",
        }
    else:
        parts = {"MLPs": f"dense, intermediate size {c.intermediate_size}, {c.hidden_act}"}
    rows = {
        "parameters": f"{model.num_parameters():,}",
        "layers, width, attention heads": f"{c.num_hidden_layers}, {c.hidden_size}, {c.num_attention_heads}",
        **parts,
        "vocabulary": f"{c.vocab_size:,}",
        "trained for": f"{provenance.step:,} steps, {provenance.tokens_seen:,} tokens",
        "seeds": f"of the weights {provenance.seed}, of the data's order {provenance.data_seed}",
        "data": f"fingerprint `{provenance.data_fingerprint}`"
        + (", with document masks" if getattr(c, "document_mask", False) else ""),
        "exported from": f"`{provenance.checkpoint}`, manifest SHA-256 `{provenance.checkpoint_manifest_sha256}`",
        "software": f"monet {provenance.monet_version}, torch {provenance.torch_version},"
        f" transformers {provenance.transformers_version}, Python {provenance.python_version}",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    card = _CARD if isinstance(c, MonetConfig) else _TWIN_CARD
    alone = _CARD_REMOTE_CODE.format(version=provenance.monet_version) if remote_code else ""
    return card.format(table=table, remote_code=alone, validation=_validation_table(provenance.validation))


def _validation_table(validation: dict[str, Any] | None) -> str:
    if validation is None:
        return "The checkpoint's step was not validated."
    losses, perplexities = validation["loss_by_domain"], validation["perplexity_by_domain"]
    rows = [f"| {name} | {losses[name]:.4f} | {perplexities[name]:.2f} |" for name in losses]
    mean = f"| mean of domains | {validation['loss']:.4f} | {validation['perplexity']:.2f} |"
    return "\n".join(["| domain | nats a token | perplexity |", "| --- | --- | --- |", *rows, mean])


def _some(items: list[str]) -> str:
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")


_CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [monet, mixture-of-experts, interpretability]
---

# A Monet language model

A mixture of monosemantic experts: each layer has a square number of small experts, chosen by product keys, and every
expert can be read, scored and removed.

```python
import monet  # makes the Auto classes know the model type
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
```
{remote_code}
| | |
| --- | --- |
{table}

## Held-out loss

{validation}

Architecture: Park, Ahn, Kim, Kang, "Monet: Mixture of Monosemantic Experts for Transformers", ICLR 2025
(arXiv 2412.04139).
"""

_CARD_REMOTE_CODE = """
Where the package Monet is not installed, torch, transformers, safetensors and numpy are enough:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("PATH")
```

This runs `modeling_monet.py` from this folder. The file was generated from Monet {version} and computes the same in
plain torch, without Monet's faster kernels. It loads and applies an expert mask that is saved in the folder.
"""

_TWIN_CARD = """---
library_name: transformers
pipeline_tag: text-generation
---

# A LLaMA language model

The dense counterpart of a Monet model: the same trainer, data and recipe, MLPs in place of experts.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
```

| | |
| --- | --- |
{table}

## Held-out loss

{validation}
"""
