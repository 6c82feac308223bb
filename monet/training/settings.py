"""The model's shape as typed settings, and which of them a continued run may change."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaConfig, PreTrainedConfig
from transformers.activations import ACT2FN

from monet.configuration_monet import ORIGIN_KEYS, MonetConfig
from monet.errors import ConfigError

# These may differ between a checkpoint and the run that continues from it.
BENIGN_KEYS = ORIGIN_KEYS | {
    "attention_dropout", "bos_token_id", "eos_token_id", "initializer_range", "output_router_probs", "pad_token_id",
    "pretraining_tp", "use_cache",
}  # fmt: skip
# A model is built from these keys. Other keys of a foreign config.json do not change what Monet or LLaMA computes.
_KEYS_OF_MODELS = {field.name for field in fields(MonetConfig)} - {field.name for field in fields(PreTrainedConfig)}
_KEYS_OF_MODELS |= {"model_type", "quantization_config", "rope_scaling", "rope_theta"}


@dataclass(frozen=True)
class ModelShape:
    """Sizes and architecture of the language model; names are those of the released configuration.

    Args:
        vocab_size: rows of the token embedding; at least the tokenizer's number of ids.
        hidden_size: width D of the residual stream.
        num_hidden_layers: decoder layers L.
        num_attention_heads: attention heads; they must divide hidden_size unless head_dim is given.
        architecture: monet, or llama for a dense model to compare it with; the moe_ settings are only for monet.
        intermediate_size: hidden width of llama's MLPs, or of those of monet's dense layers; else None.
        dense_layers: numbers of the layers of monet that have a dense MLP instead of experts; None means no layer.
        dense_act: activation of these MLPs.
        moe_dim: hidden width M of one expert; even for vertical.
        moe_heads: routing heads H.
        moe_experts: keys per side E; a layer has E*E experts.
        moe_topk: expected number K of firing keys per side and head, in 1..E.
        moe_groups: number G of consecutive Monet layers that share one router.
        moe_decompose: how two keys form an expert: vertical or horizontal.
        num_key_value_heads: key-value heads of grouped-query attention; None takes num_attention_heads.
        head_dim: width of one attention head; None takes hidden_size / num_attention_heads.
        max_position_embeddings: longest sequence in tokens.
        rope_theta: base of the rotary embedding's wavelengths.
        rope_scaling: rotary scaling as Llama models configure it; None means no scaling.
        hidden_act: activation of experts or MLPs; None means relu2 (relu, then square) for monet, silu for llama.
        rms_norm_eps: added under the root of the norms.
        initializer_range: standard deviation of the initial weights.
        attention_dropout: share of attention weights dropped in training.
        attention_bias: True adds biases to the attention's four projections.
        tie_word_embeddings: True uses the token embedding as output head too.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    architecture: Literal["monet", "llama"] = "monet"
    intermediate_size: int | None = None
    dense_layers: list[int] | None = None
    dense_act: str | None = None
    moe_dim: int | None = None
    moe_heads: int | None = None
    moe_experts: int | None = None
    moe_topk: int | None = None
    moe_groups: int | None = None
    moe_decompose: Literal["vertical", "horizontal"] | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    hidden_act: str | None = None
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    attention_dropout: float = 0.0
    attention_bias: bool = False
    tie_word_embeddings: bool = False

    def config(self) -> LlamaConfig:
        """Return the model's configuration; settings that are None use the configuration's own default.

        Returns:
            a `MonetConfig`, or a plain `LlamaConfig` for llama.
        Raises:
            ConfigError: a setting is missing, impossible, or belongs to the other architecture.
        """
        given = {key: value for key, value in asdict(self).items() if value is not None and key != "architecture"}
        if self.architecture == "monet":
            for key in ("intermediate_size", "dense_act"):
                if key in given and not self.dense_layers:
                    raise ConfigError(
                        f"model.shape.{key} = {given[key]}: only llama and dense_layers use it; set moe_dim instead"
                    )
            return MonetConfig(**given)
        if foreign := [key for key in given if key.startswith(("moe_", "dense_"))]:
            raise ConfigError(f"model.shape.{foreign[0]} = {given[foreign[0]]!r}: llama has no experts; leave it out")
        if self.intermediate_size is None:
            raise ConfigError("model.shape.intermediate_size is missing: llama needs the hidden width of its MLPs")
        for key, value in given.items():
            if type(value) is int and value < 1:
                raise ConfigError(f"model.shape.{key} = {value}: must be a whole number of at least 1")
        if self.num_attention_heads % (self.num_key_value_heads or 1):
            raise ConfigError(
                f"model.shape.num_key_value_heads = {self.num_key_value_heads}: must divide num_attention_heads ="
                f" {self.num_attention_heads}"
            )
        if self.hidden_act is not None and self.hidden_act not in ACT2FN:
            raise ConfigError(f"model.shape.hidden_act = {self.hidden_act}: choose from {', '.join(sorted(ACT2FN))}")
        try:
            return LlamaConfig(**given)
        except (StrictDataclassError, ValueError) as error:
            raise ConfigError(f"model.shape: {' '.join(str(error).split())}") from error


def check_freezing(config: LlamaConfig, init_from: str | None, freeze_router: bool, freeze_dense: bool) -> None:
    """Refuse to freeze weights that the model does not have, or that would stay random.

    Args:
        config: the model.
        init_from: the folder whose weights the run starts with.
        freeze_router: the routers do not learn.
        freeze_dense: only routers and experts learn.
    Raises:
        ConfigError: names the setting and the fix.
    """
    for name, isset, part, random in (
        ("freeze_router", freeze_router, "router", "routers"),
        ("freeze_dense", freeze_dense, "experts", "weights"),
    ):
        if isset and not isinstance(config, MonetConfig):
            raise ConfigError(f"model.{name} = True: llama has no {part}; leave it out")
        if isset and init_from is None:
            raise ConfigError(f"model.{name} = True: random {random} would stay random; name a model.init_from")


def differing_keys(stored: dict[str, Any], configured: dict[str, Any], but: frozenset[str] = frozenset()) -> list[str]:
    """Return the keys that make two config.json different models: one text per key, with both values.

    Only keys that a model is built from count. A folder of the authors' release may name its modelling file
    (`auto_map`), another version of transformers, or settings of other tools.

    Args:
        stored, configured: config.json of a folder, and of the configured model.
        but: keys that may differ in addition to `BENIGN_KEYS`.
    """
    keys = sorted(_KEYS_OF_MODELS - BENIGN_KEYS - but)
    return [
        f"{key}: checkpoint {stored.get(key)!r}, now {configured.get(key)!r}"
        for key in keys
        if stored.get(key) != configured.get(key)
    ]


def refuse_structural_change(stored: dict[str, Any], configured: dict[str, Any]) -> None:
    """Refuse to continue a run with a different model than its checkpoint holds.

    Args:
        stored: config.json of the checkpoint.
        configured: config.json of the configured model.
    Raises:
        ConfigError: names every key that differs, with both values.
    """
    if changed := differing_keys(stored, configured):
        raise ConfigError(
            f"the run's checkpoint holds another model ({'; '.join(changed)}); restore the old values or start a new"
            " run_dir"
        )
