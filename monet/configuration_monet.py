"""MonetConfig: the keys of the released checkpoints and the rules for their values."""

from __future__ import annotations

import copy
import math
import os
from collections import defaultdict
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaConfig, PreTrainedConfig

from monet.configuration_rules import file_problems, labels_problem, rope_problems, value_problems
from monet.errors import CheckpointError, ConfigError
from monet.json_text import read_json

# These keys have no defaults: the defaults of the authors' class (moe_dim 8, moe_topk 32, hidden_size 4096, ...)
# describe no released model.
REQUIRED_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "moe_dim",
    "moe_heads",
    "moe_experts",
    "moe_topk",
    "moe_groups",
    "moe_decompose",
)
# A file must also state these keys: the authors' class and the released files disagree about their values.
REQUIRED_KEYS_OF_FILES = (*REQUIRED_KEYS, "rms_norm_eps")

# These keys record the origin of a configuration and the files next to it. They do not change what the model computes.
ORIGIN_KEYS = frozenset({
    "_name_or_path", "architectures", "auto_map", "document_mask", "dtype", "expert_mask", "torch_dtype",
    "transformers_version",
})  # fmt: skip


class _NothingStated:
    """The result of `MonetConfig()`. transformers calls it to omit default values from a nested configuration's file.

    Monet has no defaults, so the values of `to_dict` equal no other value. Any other use is refused.
    """

    def to_dict(self) -> dict[str, Any]:
        return defaultdict(object)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python and debuggers look these up in every object
            raise AttributeError(name)
        raise ConfigError("; ".join(map(_missing, REQUIRED_KEYS)))


if TYPE_CHECKING:
    _Maker = type
else:

    class _Maker(type):
        """Makes a `MonetConfig`. Copying and unpickling do not call this."""

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs) if args or kwargs else _NothingStated()


@strict
class MonetConfig(LlamaConfig, metaclass=_Maker):
    """Configuration of a Monet model, with exactly the keys of the released checkpoints.

    Attributes:
        vocab_size, hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim,
        max_position_embeddings, rms_norm_eps, rope_theta, rope_scaling, attention_bias, attention_dropout,
        tie_word_embeddings: as in LLaMA.
        moe_dim: hidden width of one expert (even in the vertical decomposition).
        moe_heads: routing heads.
        moe_experts: keys along one axis, E; a layer has E * E experts.
        moe_topk: expected number of active keys per axis and head, in 1..moe_experts; it sets the routing threshold.
        moe_groups: Monet layers that share one router; the first of each group owns it.
        moe_decompose: "vertical" or "horizontal".
        dense_layers: sorted numbers of the layers with a dense MLP instead of experts; such a model is a hybrid. None
            if every layer is a Monet layer, as in the released models; config.json then omits the key.
        intermediate_size, dense_act: hidden width and activation of the dense MLPs, which are gated as in LLaMA.
        output_router_probs: return the routing probabilities from every forward.
        expert_mask: file and digest of the mask that is stored with the model. None for the unmasked model; config.json
            then omits the key. `model.set_expert_mask` sets it.
        document_mask: whether training masked attention across the documents of a window. False if it did not, or if
            that is unknown; config.json then omits the key. A forward does not depend on it: pass `position_ids` that
            start at 0 for each document. `monet export` sets it, and evaluation follows it.
        auto_map: the modelling files of the folder from which the configuration was read, by Auto class; empty if there
            are none. Monet's own classes always run. A saved config.json names only files that are in its folder.
        num_labels, id2label, label2id, problem_type: as in transformers, for the heads of `monet/model/heads.py`;
            config.json holds them only if they differ from the defaults.

    Raises:
        ConfigError: a key is missing or its value is invalid; the message names the key, its value and the valid range.
    Source: arXiv 2412.04139, table 6; released checkpoints.
    """

    model_type: ClassVar[str] = "monet"
    # Outputs that a trainer's evaluation should not gather in addition to the logits.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "cache",
        "past_key_values",
        "router_probs",
        "lm_loss",
        "uniformity_loss",
        "ambiguity_loss",
        "router_metrics",
    ]
    # Releases of transformers before 5.18 read this; without it they build a configuration without arguments.
    has_no_defaults_at_init: ClassVar[bool] = True
    # Attention is sharded as in Llama. Routers, experts and dense MLPs are replicated.
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
    }
    base_model_pp_plan = None

    intermediate_size: int | None = None
    mlp_bias: bool | None = None
    hidden_act: str = "relu2"
    rms_norm_eps: float = 1e-5
    output_router_probs: bool = False
    expert_mask: dict[str, str] | None = None
    document_mask: bool = False
    dense_layers: list[int] | None = None
    dense_act: str = "silu"
    if TYPE_CHECKING:  # every existing configuration has these keys; missing ones are refused below
        vocab_size: int = 0
        hidden_size: int = 0
        num_hidden_layers: int = 0
        num_attention_heads: int = 0
        moe_dim: int = 0
        moe_heads: int = 0
        moe_experts: int = 0
        moe_topk: int = 0
        moe_groups: int = 0
        moe_decompose: str = ""
    else:
        vocab_size: int | None = None
        hidden_size: int | None = None
        num_hidden_layers: int | None = None
        num_attention_heads: int | None = None
        moe_dim: int | None = None
        moe_heads: int | None = None
        moe_experts: int | None = None
        moe_topk: int | None = None
        moe_groups: int | None = None
        moe_decompose: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        _refuse([_missing(key) for key in REQUIRED_KEYS if getattr(self, key) is None])
        _refuse(value_problems(self))
        _refuse([f"{key}: unknown key; use one of {_MOE_KEYS}" for key in kwargs if key.startswith("moe_")])
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if (problem := labels_problem(kwargs.get("num_labels"))) is not None:
            raise ConfigError(problem)
        rope_scaling = kwargs.get("rope_scaling")
        if rope_scaling is not None and not isinstance(rope_scaling, dict):
            raise ConfigError(f"rope_scaling={rope_scaling!r}: must be null or an object with rope_type")
        self.dense_layers = self.dense_layers or None
        super().__post_init__(**kwargs)
        # Trainers and Auto classes read it from every configuration whose class is not part of transformers.
        self.auto_map: dict[str, Any] = dict(kwargs.get("auto_map") or {})
        _refuse(rope_problems(dict(self.rope_parameters or {})))

    @property
    def monet_layers(self) -> tuple[int, ...]:
        """Numbers of the layers with experts: all layers without those in `dense_layers`."""
        dense = frozenset(self.dense_layers or ())
        return tuple(layer for layer in range(self.num_hidden_layers) if layer not in dense)

    @property
    def num_routing_groups(self) -> int:
        """R: number of routers, one for every `moe_groups` Monet layers."""
        return math.ceil(len(self.monet_layers) / self.moe_groups)

    def routing_group(self, layer: int) -> int | None:
        """Routing group of a layer; None for a dense layer. Groups count only Monet layers."""
        layers = self.monet_layers
        return layers.index(layer) // self.moe_groups if layer in layers else None

    def owns_router(self, layer: int) -> bool:
        """Whether a layer is the first of its routing group, which has the group's router."""
        return layer in self.monet_layers[:: self.moe_groups]

    def validate_architecture(self) -> None:
        """Does nothing: `value_problems` checks the values at construction and names them."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> MonetConfig:
        """Build from the content of a config.json, which must state all keys that affect the computation."""
        overrides = {key: kwargs.pop(key) for key in list(kwargs) if key in _OWN_KEYS or key.startswith("moe_")}
        rope = dict(config_dict.get("rope_parameters") or {})
        if rope and overrides.keys() & {"rope_theta", "rope_scaling"}:
            overrides = {"rope_theta": rope["rope_theta"], "rope_parameters": None, **overrides}
        given = config_dict = {**config_dict, **overrides}
        missing = [key for key in REQUIRED_KEYS_OF_FILES if given.get(key) is None]
        if given.get("rope_theta") is None and "rope_theta" not in (given.get("rope_parameters") or {}):
            missing.append("rope_theta")
        _refuse([_missing(key) for key in missing])
        _refuse(file_problems(given))
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ConfigError(f"model_type={model_type!r} in the configuration: must be {cls.model_type!r}")
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def from_json_file(cls, json_file: Any) -> MonetConfig:
        """Build from a config.json, which must state the keys that `from_dict` requires."""
        return cls.from_dict(cls._dict_from_json_file(json_file))

    @classmethod
    def _dict_from_json_file(cls, json_file: Any) -> dict[str, Any]:
        content = read_json(json_file, CheckpointError)
        if not isinstance(content, dict):
            raise CheckpointError(f"{json_file}: must hold a JSON object, but holds a {type(content).__name__}")
        return content

    def to_dict(self) -> dict[str, Any]:
        """All keys in the form of the released files: `rope_theta`, `rope_scaling` and `torch_dtype` at top level."""
        content = super().to_dict()
        own = {key: value for key, value in content.items() if key not in _FOREIGN_KEYS and not key.startswith("_")}
        rope: dict[str, Any] = dict(self.rope_parameters or {})
        own["rope_theta"] = float(rope.pop("rope_theta", 10000.0))
        own["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
        own["torch_dtype"] = content.get("dtype")
        for key in ("pad_token_id", "expert_mask", "auto_map"):
            if not own.get(key) and own.get(key) != 0:
                own.pop(key, None)
        if not self.document_mask:
            own.pop("document_mask", None)
        if not self.dense_layers:
            for key in ("dense_layers", "dense_act"):
                own.pop(key, None)
        own["architectures"] = content.get("architectures")
        # The file names labels only if a task has set them: the released files do not contain them.
        own |= {key: content[key] for key, default in _DEFAULT_TASK.items() if content.get(key) != default}
        return own

    def to_diff_dict(self) -> dict[str, Any]:
        """The same as `to_dict`: a reader must never have to take a key from a class default."""
        return self.to_dict()

    def to_json_file(self, json_file_path: str | os.PathLike, use_diff: bool = True) -> None:
        """Write config.json. Its `auto_map` names only code in the same folder, so that every reader can follow it."""
        stated, folder = copy.copy(self), Path(json_file_path).parent
        stated.auto_map = {auto: code for auto, code in self.auto_map.items() if _lies_in(folder, code)}
        super(MonetConfig, stated).to_json_file(json_file_path, use_diff)


# transformers checks values when they are set, before our rules run; its errors become ConfigError.
_checked_init = MonetConfig.__init__


@wraps(_checked_init)
def _init(self: MonetConfig, *args: Any, **kwargs: Any) -> None:
    try:
        _checked_init(self, *args, **kwargs)
    except StrictDataclassError as error:
        raise ConfigError(" ".join(str(error).split())) from error


MonetConfig.__init__ = _init

_OWN_KEYS = {field.name for field in fields(MonetConfig)} - {field.name for field in fields(PreTrainedConfig)}
_OWN_KEYS |= {"rope_theta", "rope_scaling"}

# Keys that transformers adds to every configuration and that the released files do not contain.
_FOREIGN_KEYS = {"rope_parameters", "dtype"} | {
    key
    for key in PreTrainedConfig().to_dict()
    if key
    not in {
        "architectures",
        "bos_token_id",
        "eos_token_id",
        "tie_word_embeddings",
        "model_type",
        "transformers_version",
    }
}

# The entries that transformers adds to every configuration about the labels of a classification task.
_DEFAULT_TASK = {key: PreTrainedConfig().to_dict()[key] for key in ("id2label", "label2id", "problem_type")}

_MOE_KEYS = "moe_decompose, moe_dim, moe_experts, moe_groups, moe_heads, moe_topk"


def _lies_in(folder: Path, code: Any) -> bool:
    """Whether all files of `code`, an entry of auto_map such as "module.Class" or a list of them, are in `folder`.

    For "repository--module.Class" the answer is no: that code is not ours, and ignores a mask that the folder holds.
    """
    parts = [code] if isinstance(code, str) else [part for part in code or [] if part is not None]
    return bool(parts) and all((folder / f"{part.split('.')[0]}.py").is_file() for part in parts)


def _missing(key: str) -> str:
    return f"{key} is missing: Monet has no default for it; state it in config.json or in the call"


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConfigError("; ".join(problems))
