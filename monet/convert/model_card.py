"""The model card of an exported model, and the record of the model's origin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monet.training.language_models import LanguageModel

PROVENANCE = "provenance.json"


@dataclass(frozen=True)
class Provenance:
    """The origin of an exported model, written to its model card and to provenance.json.

    `seed` is the seed for the initial weights and `data_seed` the seed for the order of the training text; each is None
    if the run's folder does not record it.
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


def model_card(model: LanguageModel, provenance: Provenance, remote_code: bool = False) -> str:
    """README.md of an exported model: its description, how to load it (also without Monet), and its origin."""
    from monet import MonetConfig

    c = model.config
    if isinstance(c, MonetConfig):
        square = f"{c.moe_experts}² = {c.moe_experts**2:,}"
        parts = {
            "experts": f"{square} per layer, {c.moe_decompose} decomposition, hidden width {c.moe_dim}",
            "routing": f"{c.moe_heads} heads, about {c.moe_topk} of {c.moe_experts} keys per side,"
            f" {c.num_routing_groups} routers ({c.moe_groups} layers each)",
        }
        if c.dense_layers:
            numbers = ", ".join(map(str, c.dense_layers))
            parts["dense layers"] = f"{numbers}: MLPs of intermediate size {c.intermediate_size}, {c.dense_act}"
    else:
        parts = {"MLPs": f"dense, intermediate size {c.intermediate_size}, {c.hidden_act}"}
    rows = {
        "parameters": f"{model.num_parameters():,}",
        "layers, width, attention heads": f"{c.num_hidden_layers}, {c.hidden_size}, {c.num_attention_heads}",
        **parts,
        "vocabulary": f"{c.vocab_size:,}",
        "trained for": f"{provenance.step:,} steps, {provenance.tokens_seen:,} tokens",
        "seeds": f"{provenance.seed} for the weights, {provenance.data_seed} for the data order",
        "data": f"fingerprint `{provenance.data_fingerprint}`"
        + (", with document masks" if getattr(c, "document_mask", False) else ""),
        "exported from": f"`{provenance.checkpoint}`, manifest SHA-256 `{provenance.checkpoint_manifest_sha256}`",
        "software": f"monet {provenance.monet_version}, torch {provenance.torch_version},"
        f" transformers {provenance.transformers_version}, Python {provenance.python_version}",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    card = _CARD if isinstance(c, MonetConfig) else _TWIN_CARD
    note = _HYBRID_NOTE if getattr(c, "dense_layers", None) else ""
    code = _CARD_REMOTE_CODE.format(version=provenance.monet_version) if remote_code else ""
    return card.format(table=table, notes=note + code, validation=_validation_table(provenance.validation))


def _validation_table(validation: dict[str, Any] | None) -> str:
    if validation is None:
        return "No validation was run at the checkpoint's step."
    losses, perplexities = validation["loss_by_domain"], validation["perplexity_by_domain"]
    rows = [f"| {name} | {losses[name]:.4f} | {perplexities[name]:.2f} |" for name in losses]
    mean = f"| mean of domains | {validation['loss']:.4f} | {validation['perplexity']:.2f} |"
    return "\n".join(["| domain | nats per token | perplexity |", "| --- | --- | --- |", *rows, mean])


_CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [monet, mixture-of-experts, interpretability]
---

# A Monet language model

A mixture of monosemantic experts. Each layer has a square number of small experts, chosen by product keys. Every
expert can be inspected, scored and removed.

```python
import monet  # registers the model type with the Auto classes
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
```
{notes}
| | |
| --- | --- |
{table}

## Held-out loss

{validation}

Architecture: Park, Ahn, Kim, Kang, "Monet: Mixture of Monosemantic Experts for Transformers", ICLR 2025
(arXiv 2412.04139).
"""

_HYBRID_NOTE = """
This model is a hybrid: some layers keep a dense MLP (`dense_layers` in config.json). The code that the authors of Monet
released cannot load a hybrid.
"""

_CARD_REMOTE_CODE = """
If the package Monet is not installed, torch, transformers, safetensors and numpy are sufficient:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("PATH")
```

This runs `modeling_monet.py` from this folder. The file was generated from Monet {version} and computes the same
results in plain torch, without Monet's faster kernels. It loads and applies an expert mask that is saved in the folder.
"""

_TWIN_CARD = """---
library_name: transformers
pipeline_tag: text-generation
---

# A LLaMA language model

The dense counterpart of a Monet model: the same trainer, data and recipe, with MLPs instead of experts.

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
