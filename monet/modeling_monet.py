"""Monet for transformers: Llama attention, product-key routers, mixtures of tiny experts instead of MLPs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.utils import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from monet.cache_keyword import CACHE_KEYWORD, CACHE_KEYWORDS, one_cache
from monet.configuration_monet import MonetConfig
from monet.experts import EXPERTS
from monet.kernels.masked import Keep
from monet.llama_parts import LlamaAttention, LlamaRMSNorm, RotaryEmbedding
from monet.losses import RouterLoss, loss_fields, next_token_loss, projected_loss, projects_in_pieces
from monet.masking import ActiveMasks, MaskArgument
from monet.masks import ExpertMask
from monet.packing import varlen_arguments
from monet.pretrained import MASK_FILE, fingerprint, load_checked
from monet.router import MonetRouter, RouterLosses, RouterMetrics, RouterOutput, RoutingStatistics, router_losses


@dataclass
class MonetModelOutput(BaseModelOutputWithPast):
    """Output of MonetModel.

    router_probs: one entry a layer: (g1_BTHE, g2_BTHE) in float32 where the layer owns a router, else None.
    router_losses: one `RouterLosses` a routing group, if losses were asked for.
    """

    router_probs: tuple[tuple[Tensor, Tensor] | None, ...] | None = None
    router_losses: tuple[RouterLosses, ...] | None = None


@dataclass
class MonetCausalLMOutput(CausalLMOutputWithPast):
    """Output of MonetForCausalLM.

    loss: lm_loss plus the weighted auxiliary losses when `router_loss` was given, else lm_loss alone.
    lm_loss, uniformity_loss, ambiguity_loss: scalars, each on its own; the auxiliary ones are averaged over routers.
    router_probs: see `MonetModelOutput`.
    router_metrics: one `RouterMetrics` a routing group.
    """

    router_probs: tuple[tuple[Tensor, Tensor] | None, ...] | None = None
    lm_loss: Tensor | None = None
    uniformity_loss: Tensor | None = None
    ambiguity_loss: Tensor | None = None
    router_metrics: tuple[RouterMetrics, ...] | None = None


class MonetDecoderLayer(GradientCheckpointingLayer):
    """Pre-norm block; the first layer of a routing group owns the group's router."""

    def __init__(self, config: MonetConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config=config, layer_idx=layer_idx)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.router = MonetRouter(config) if layer_idx % config.moe_groups == 0 else None
        self.moe = EXPERTS[config.moe_decompose](config)

    def forward(
        self,
        hidden_states: Tensor,
        routing: tuple[Tensor, Tensor] | None = None,
        *,
        keep: Keep | None = None,
        router_options: dict[str, Any] | None = None,
        **attention_arguments: Any,
    ) -> tuple[Tensor, RouterOutput | None]:
        """(B, T, D) -> the same, and what the layer's router returned; followers route by `routing`."""
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **attention_arguments)
        hidden_states = hidden_states + attended
        x_BTD = self.post_attention_layernorm(hidden_states)
        routed = None
        if self.router is not None:
            options = dict(router_options or {})
            if self.router._forward_hooks:  # whoever watches the router sees float32
                options["float32_probs"] = True
            routed = self.router(x_BTD, **options)
            routing = routed.gates
        assert routing is not None, "a layer without a router comes after one that has it"
        return hidden_states + self.moe(x_BTD, *routing, keep), routed


class MonetPreTrainedModel(PreTrainedModel):
    """Loading, saving, initialisation and what both model classes share."""

    config: MonetConfig
    config_class = MonetConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MonetDecoderLayer"]
    _skip_keys_device_placement = list(CACHE_KEYWORDS)
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["running_mean", "running_var"]
    _can_record_outputs = {
        "hidden_states": OutputRecorder(MonetDecoderLayer, index=0),
        "attentions": OutputRecorder(LlamaAttention, index=1),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, tuple(EXPERTS.values())):
            for bias in module.parameters(recurse=False):
                init.zeros_(bias)
        elif isinstance(module, RoutingStatistics):
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable = checkpoint, **kwargs: Any
    ) -> None:
        # Re-entrant checkpointing does not track the routing handed from layer to layer and returns wrong gradients.
        options = getattr(gradient_checkpointing_func, "keywords", {}) | {"use_reentrant": False}
        super()._set_gradient_checkpointing(enable, partial(checkpoint, **options), **kwargs)

    @property
    def _body(self) -> Any:
        return self.base_model

    def routers(self) -> list[MonetRouter]:
        """The routers in the order of their routing groups."""
        return [layer.router for layer in self._body.layers if layer.router is not None]

    def freeze_router(self) -> None:
        """Stop learning in every router: no gradient for weights, running statistics unchanged, in training too."""
        for router in self.routers():
            router.requires_grad_(False)

    def fingerprint(self) -> str:
        """Hash that identifies this model's body, whatever its dtype; masks and statistics carry it."""
        return fingerprint(self.config, self.base_model)

    @property
    def expert_mask(self) -> ExpertMask | None:
        """The stored mask: applied in every forward and saved with the model."""
        return self._body.active_masks.stored

    def set_expert_mask(self, mask: ExpertMask | None) -> None:
        """Store a mask in the model, or remove it with None. From then on it is this model's, also if that learns on.

        Raises:
            CheckpointError: the mask belongs to another model or has another shape.
        """
        if mask is not None:
            mask.check_fits(self)
            mask = ExpertMask(mask.keep_REE, mask.provenance)
        self._body.active_masks.stored = mask

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, **kwargs: Any) -> None:
        """Save as transformers does; a stored mask lies beside the weights as expert_mask.safetensors."""
        path = Path(save_directory) / MASK_FILE
        # First the mask: a folder whose writing was cut short must not load as the unmasked model.
        if is_main_process and self.expert_mask is not None:
            self.expert_mask.save(path, model=self)
        elif is_main_process:
            path.unlink(missing_ok=True)
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any) -> Any:
        """Load as transformers does, with the stored mask if there is one.

        Only safetensors are read, and every tensor of the model must be in the file.

        Raises:
            CheckpointError: a tensor is missing, superfluous or not finite, or the mask is another model's.
            ConfigError: a configuration key is missing or impossible.
        """
        return load_checked(cls, super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)


class MonetModel(MonetPreTrainedModel):
    """Embeddings, decoder layers and the final norm."""

    def __init__(self, config: MonetConfig) -> None:
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(MonetDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.active_masks = ActiveMasks()
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_router_probs: bool | None = None,
        expert_mask: MaskArgument = None,
        router_loss: RouterLoss | None = None,
        with_losses: bool = False,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> MonetModelOutput:
        """Run the decoder.

        Args:
            input_ids: (B, T) int64; or `inputs_embeds` (B, T, D).
            attention_mask: (B, T) or (B, past + T), 0 at padding; padding enters no router statistic.
            position_ids: (B, T) int64; None counts from the cache's end. Without attention_mask and cache, a position
                that is not 1 more than the one before begins a document, and no token attends to another document.
            cache, past_key_values: two names of the same key-value cache, which this call extends in place.
            expert_mask: one ExpertMask, or a sequence with one mask (or None) a sequence of the batch.
            output_router_probs: return the routing probabilities; None follows the configuration.
            router_loss: what the uniformity loss is computed on; needs `with_losses`.
            with_losses: compute auxiliary losses and metrics.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        cache = one_cache(cache, past_key_values)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if inputs_embeds is None:
            inputs_embeds = cast(Tensor, self.embed_tokens(input_ids))
        B, T, _ = inputs_embeds.shape
        if position_ids is not None and attention_mask is None and cache is None:
            if "flash" in str(self.config._attn_implementation):
                kwargs = varlen_arguments(position_ids, B) | kwargs
        elif position_ids is None:
            past = cache.get_seq_length() if cache is not None else 0
            position_ids = (torch.arange(T, device=inputs_embeds.device) + past).unsqueeze(0)
        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE_KEYWORD: cache},  # pyright: ignore[reportArgumentType]
        )
        attention_arguments = {
            "attention_mask": causal_mask,
            "position_ids": position_ids,
            CACHE_KEYWORD: cache,
            "position_embeddings": self.rotary_emb(inputs_embeds, position_ids=position_ids),
            **kwargs,
        }
        wanted = self.config.output_router_probs if output_router_probs is None else output_router_probs
        router_options: dict[str, Any] = {
            "with_losses": with_losses, "router_loss": router_loss, "float32_probs": wanted
        }  # fmt: skip
        if self.training or with_losses:
            router_options["token_mask_BT"] = _token_mask(attention_mask, T)
        keep_R = self.active_masks.resolve(self, expert_mask, B, T, inputs_embeds.device)

        hidden_states, routing = inputs_embeds, None
        probs: list[tuple[Tensor, Tensor] | None] = []
        sums: list[Any] = []
        for index, layer in enumerate(cast(list[MonetDecoderLayer], self.layers)):
            hidden_states, routed = layer(
                hidden_states,
                routing,
                keep=keep_R[index // self.config.moe_groups],
                router_options=router_options,
                **attention_arguments,
            )
            if routed is not None and layer.router is not None:
                layer.router.update_statistics(routed)
                routing = routed.gates
                sums.extend([routed.sums] if routed.sums is not None else [])
            probs.append((routed.g1_BTHE, routed.g2_BTHE) if routed is not None and wanted else None)

        return MonetModelOutput(
            last_hidden_state=self.norm(hidden_states),
            **{CACHE_KEYWORD: cache},  # pyright: ignore[reportArgumentType]
            router_probs=tuple(probs) if wanted else None,
            router_losses=router_losses(sums, self.training and self.routers()[0].ranks) if with_losses else None,
        )


class MonetForCausalLM(MonetPreTrainedModel, GenerationMixin):
    """Language model: MonetModel and a linear head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: MonetConfig) -> None:
        super().__init__(config)
        self.model = MonetModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _expand_inputs_for_generation(self, expand_size: int = 1, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Also repeat per-sequence masks, as beams and several returned sequences repeat their prompts."""
        masks = kwargs.get("expert_mask")
        if isinstance(masks, Sequence):
            kwargs["expert_mask"] = [mask for mask in masks for _ in range(expand_size)]
        parent: Any = super()
        return parent._expand_inputs_for_generation(expand_size=expand_size, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_router_probs: bool | None = None,
        expert_mask: MaskArgument = None,
        router_loss: RouterLoss | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        return_logits: bool = True,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> MonetCausalLMOutput:
        """Logits and, with labels, the losses.

        Args:
            input_ids, attention_mask, cache, past_key_values, expert_mask, output_router_probs: see
                `MonetModel.forward`.
            labels: (B, T) int64, aligned with input_ids and shifted here; -100 is ignored.
            shift_labels: (B, T) int64, already shifted: shift_labels[t] is what position t must predict.
            router_loss: adds the weighted auxiliary losses to `loss`; None leaves `loss` the next-token loss.
            logits_to_keep: only compute the last so many positions' logits (0 for all), or those at given indices.
            num_items_in_batch: divisor of the summed next-token loss, for gradient accumulation; None for the mean.
            return_logits: False may leave `logits` None, where the losses are quicker and smaller without them; they
                then take one backward pass.
        """
        with_losses = labels is not None or shift_labels is not None
        outputs: MonetModelOutput = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=one_cache(cache, past_key_values),
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_router_probs=output_router_probs,
            expert_mask=expert_mask,
            router_loss=router_loss,
            with_losses=with_losses,
            **kwargs,
        )
        hidden_states = cast(Tensor, outputs.last_hidden_state)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else logits_to_keep
        hidden_states = hidden_states if isinstance(kept, int) else hidden_states[:, kept, :]
        in_pieces = with_losses and not return_logits and projects_in_pieces(hidden_states, self.lm_head)
        logits = None if in_pieces else self.lm_head(hidden_states)
        losses: dict[str, Any] = {}
        if with_losses:
            if shift_labels is None:
                shift_labels = nn.functional.pad(cast(Tensor, labels), (0, 1), value=-100)[:, 1:]
            if logits is None:
                lm_loss = projected_loss(hidden_states, self.lm_head.weight, shift_labels, num_items_in_batch)
            else:
                lm_loss = next_token_loss(logits, shift_labels, num_items_in_batch)
            losses = loss_fields(lm_loss, outputs.router_losses or (), router_loss)
        return MonetCausalLMOutput(
            logits=logits,
            **{CACHE_KEYWORD: getattr(outputs, CACHE_KEYWORD)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_probs=outputs.router_probs,
            **losses,
        )


def _token_mask(attention_mask: Tensor | None, num_tokens: int) -> Tensor | None:
    """(B, T) bool, False at padding, of the current tokens; None where no padding is told."""
    if attention_mask is None or attention_mask.dim() != 2:
        return None
    return attention_mask[:, -num_tokens:].bool()
