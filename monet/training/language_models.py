"""The language models that train.py trains: Monet, and its dense twin, a LLaMA with the same interface."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import LlamaConfig

from monet.configuration_monet import MonetConfig
from monet.errors import CheckpointError, ConfigError
from monet.masks.expert_mask import MASK_FILE, ExpertMask
from monet.model.cache_keyword import CACHE_KEYWORDS
from monet.model.losses import RouterLoss, next_token_loss, projected_loss, projects_in_pieces
from monet.model.model_tokenizer import backend_of, different_parts, different_starts, has_tokenizer
from monet.model.modeling_monet import MonetCausalLMOutput, MonetForCausalLM
from monet.model.packing import varlen_arguments
from monet.model.pretrained import load_checked
from monet.model.router import MonetRouter


class LlamaForCausalLM(transformers.LlamaForCausalLM):
    """transformers' LLaMA with the training interface of `MonetForCausalLM`: the dense twin for comparisons.

    The class has the name of transformers' class, so a folder that it saves loads as a plain LLaMA.
    """

    expert_mask: ExpertMask | None = None

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        shift_labels: Tensor | None = None,
        router_loss: RouterLoss | None = None,
        return_logits: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Return logits and, with labels, the same next-token loss as Monet.

        Args:
            input_ids: (B, T) int64.
            position_ids: (B or 1, T) int64; positions that restart separate documents, as in `MonetModel.forward`.
            shift_labels: (B, T) int64, already shifted; -100 is ignored.
            router_loss: accepted for compatibility with Monet; there are no routers.
            return_logits: see `MonetForCausalLM.forward`.
            kwargs: as in transformers.
        """
        flash = "flash" in str(self.config._attn_implementation)
        plain = all(kwargs.get(name) is None for name in ("attention_mask", *CACHE_KEYWORDS))
        if flash and plain and position_ids is not None and input_ids is not None:
            kwargs = varlen_arguments(position_ids, len(input_ids)) | kwargs
        if shift_labels is not None and not return_logits:
            states_BTD: Tensor = self.model(input_ids=input_ids, position_ids=position_ids, **kwargs).last_hidden_state
            if projects_in_pieces(states_BTD, self.lm_head):
                loss = projected_loss(states_BTD, self.lm_head.weight, shift_labels)
            else:
                loss = next_token_loss(self.lm_head(states_BTD), shift_labels)
            return MonetCausalLMOutput(loss=loss, lm_loss=loss, router_metrics=())
        out: Any = super().forward(input_ids=input_ids, position_ids=position_ids, **kwargs)  # type: ignore[arg-type]
        if shift_labels is None:
            return out
        loss = next_token_loss(out.logits, shift_labels)
        return MonetCausalLMOutput(loss=loss, lm_loss=loss, logits=out.logits, router_metrics=())

    def routers(self) -> list[MonetRouter]:
        """No routers."""
        return []

    @classmethod
    def from_pretrained(cls, name_or_path: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Load with the checks of Monet's loader: safetensors only, every tensor present and finite."""
        return load_checked(cls, super().from_pretrained, name_or_path, *args, **kwargs)


LanguageModel = MonetForCausalLM | LlamaForCausalLM
_MODELS: dict[str, tuple[type[Any], type[Any]]] = {
    "monet": (MonetConfig, MonetForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}
# Only attention positions depend on these keys; a longer context needs other values.
POSITIONS = frozenset({"max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters"})
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def config_json(config: LlamaConfig) -> dict[str, Any]:
    """Return a model's configuration as its config.json stores it."""
    return json.loads(config.to_json_string())


def config_of(content: dict[str, Any]) -> LlamaConfig:
    """Return the configuration that one of Monet's config.json files describes.

    Raises:
        CheckpointError: the model_type is neither monet nor llama.
    """
    return _classes(content)[0].from_dict(content)


def class_of(config: LlamaConfig) -> type[Any]:
    """Return the class: `MonetForCausalLM` or `LlamaForCausalLM`."""
    return _MODELS[config.model_type][1]


def build(config: LlamaConfig, attention: str) -> LanguageModel:
    """Return a model with random weights, float32.

    Args:
        config: a configuration from `ModelShape.config`.
        attention: attention implementation of transformers.
    """
    model = class_of(config)._from_config(config, attn_implementation=attention)
    model.config.architectures = [type(model).__name__]
    return model


def freeze_dense_weights(model: LanguageModel) -> None:
    """Freeze everything except routers and experts."""
    for name, parameter in model.named_parameters():
        if not any(part in name for part in (".router.", ".moe.")):
            parameter.requires_grad_(False)


def warm_start(model: LanguageModel, folder: str) -> None:
    """Load the weights and router statistics of a released, exported or checkpoint folder into a model.

    Parameters and buffers keep their identity; for a moment there are two copies of the weights. The model may have
    other rotary settings, a longer context, more vocabulary rows, and a separate output head if the folder's head is
    tied to the embedding. New rows are the mean of the folder's rows. Each such change is printed.

    Args:
        model: the configured model; apart from these changes it must have the architecture of the folder's model.
        folder: local folder with config.json and safetensors, of any floating dtype.
    Raises:
        ConfigError: the folder holds another model (every differing key is named) or one with removed experts.
        CheckpointError: the folder is missing, or its weights are incomplete or damaged.
    """
    from monet.training.checkpoints.checkpoint import read_config
    from monet.training.settings import differing_keys

    if not Path(folder).is_dir():
        raise CheckpointError(f"model.init_from = {folder}: no such folder; give one with config.json and safetensors")
    config = config_of(read_config(Path(folder)))
    if (Path(folder) / MASK_FILE).exists() or getattr(config, "expert_mask", None) is not None:
        raise ConfigError(
            f"model.init_from = {folder} has removed experts ({MASK_FILE}), but training neither uses nor keeps that"
            " mask; load the model, call set_expert_mask(None), and save it in another folder to start from"
        )
    allowed = set(POSITIONS)
    if model.config.vocab_size > config.vocab_size:
        allowed.add("vocab_size")
    if config.tie_word_embeddings:
        allowed.add("tie_word_embeddings")
    stored, configured = config_json(config), config_json(model.config)
    if changed := differing_keys(stored, configured, frozenset(allowed)):
        raise ConfigError(
            f"model.init_from = {folder} holds another model ({'; '.join(changed)}); set model.shape to the folder's"
            " values"
        )
    # The folder may request an attention implementation that is not installed; only its tensors are needed.
    attention = model.config._attn_implementation
    loaded = type(model).from_pretrained(
        folder, local_files_only=True, dtype=model.dtype, attn_implementation=attention
    )
    state = loaded.state_dict()
    for name in (_EMBEDDING, _HEAD):
        state[name] = _with_rows(state[name], model.config.vocab_size)
    model.load_state_dict(state)
    print("; ".join([f"weights of {folder}", *differing_keys(stored, configured)]), flush=True)


def _with_rows(weight_VD: Tensor, rows: int) -> Tensor:
    """Add rows to a vocabulary's weight up to this number; each new row is the mean of the old rows."""
    new = rows - len(weight_VD)
    mean_D = weight_VD.double().mean(0).to(weight_VD.dtype)
    return torch.cat([weight_VD, mean_D.expand(new, -1)]) if new else weight_VD


def refuse_other_tokenizer(folder: str, tokenizer: Path, setting: str = "model.init_from") -> None:
    """Refuse data whose ids or texts are tokenised differently than for the weights of a folder.

    Tokens in only one of the tokenizers are accepted, and so is a folder without a tokenizer. If only one of the two
    puts a beginning-of-text token before a text, this warns.

    Args:
        folder: folder of a model or of a checkpoint; a checkpoint uses the tokenizer of its run.
        tokenizer: folder of the data's tokenizer.
        setting: name of the setting that gave the folder.
    Raises:
        ConfigError: names the first id that differs, with both tokens, or the parts of the tokenizers that differ.
    """
    places = [Path(folder), Path(folder).parent.parent / "tokenizer"]
    theirs = next((place for place in places if has_tokenizer(place)), None)
    if theirs is None or (new := backend_of(tokenizer)) is None or (old := backend_of(theirs)) is None:
        return
    before, now = ({index: token for token, index in backend.get_vocab().items()} for backend in (old, new))
    if changed := sorted(index for index in before.keys() & now.keys() if before[index] != now[index]):
        index = changed[0]
        raise ConfigError(
            f"{setting} = {folder}: id {index} is {before[index]!r} for {theirs} and {now[index]!r} for the"
            f" data's {tokenizer} ({len(changed)} ids differ); prepare the data with the model's tokenizer"
        )
    if parts := [part for part in different_parts(old, new) if part != "model"]:
        raise ConfigError(
            f"{setting} = {folder}: the tokenizer {theirs} and the data's {tokenizer} differ in "
            f"{' and '.join(parts)}, so the same text has other ids; prepare the data with the model's tokenizer"
        )
    if words := different_starts([(theirs, old), (tokenizer, new)]):
        warnings.warn(f"{setting} = {folder}: {words} (add_bos of the data)", stacklevel=2)


def _classes(content: dict[str, Any]) -> tuple[type[Any], type[Any]]:
    kind = content.get("model_type")
    if kind not in _MODELS:
        raise CheckpointError(f"config.json: unknown model_type {kind!r}; use {' or '.join(map(repr, _MODELS))}")
    return _MODELS[kind]
