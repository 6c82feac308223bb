"""Monet for transformers: Llama attention, product-key routers, and mixtures of tiny experts instead of MLPs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.utils import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from monet.configuration_monet import MonetConfig
from monet.errors import ConfigError
from monet.kernels.masked import Keep
from monet.kernels.shared import SharedGates
from monet.masks.active import ActiveMasks, MaskArgument
from monet.masks.expert_mask import ExpertMask
from monet.model.cache_keyword import CACHE_KEYWORD, one_cache
from monet.model.experts import EXPERTS
from monet.model.fingerprint import Identity, base_parameters
from monet.model.keywords import AttentionKeywords, LanguageModelKeywords, refuse_unknown
from monet.model.llama_parts import DenseMLP, LlamaAttention, LlamaRMSNorm, RotaryEmbedding
from monet.model.losses import (
    RouterLoss,
    loss_fields,
    next_token_loss,
    projected_loss,
    projects_in_pieces,
    router_losses,
)
from monet.model.modeling_base import MonetPreTrainedModel
from monet.model.outputs import MonetCausalLMOutput, MonetModelOutput
from monet.model.packing import varlen_arguments
from monet.model.router import MonetRouter, RouterOutput

if TYPE_CHECKING:
    from typing_extensions import Unpack


class MonetDecoderLayer(GradientCheckpointingLayer):
    """Pre-norm block with experts, or with a dense MLP in the layers that `config.dense_layers` names.

    Attributes:
        routing_group: number of the layer's routing group; None for a dense layer.
        router: the router of the group, in the group's first layer; None in all other layers.
        moe: the experts; None in a dense layer, which has `mlp`.
    """

    def __init__(self, config: MonetConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config=config, layer_idx=layer_idx)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.routing_group = config.routing_group(layer_idx)
        self.router = MonetRouter(config) if config.owns_router(layer_idx) else None
        self.moe = None if self.routing_group is None else EXPERTS[config.moe_decompose](config)
        if self.moe is None:
            self.mlp = DenseMLP(config)

    def forward(
        self,
        hidden_states: Tensor,
        routing: tuple[Tensor, Tensor] | None = None,
        *,
        keep: Keep | None = None,
        shared: SharedGates | None = None,
        router_options: dict[str, Any] | None = None,
        **attention_arguments: Any,
    ) -> tuple[Tensor, RouterOutput | None]:
        """(B, T, D) -> the new states, (B, T, D), and the output of the layer's router.

        A Monet layer without a router takes `routing`, the gates, and `shared` from the layer of its group that has a
        router.
        """
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **attention_arguments)
        hidden_states = hidden_states + attended
        x_BTD = self.post_attention_layernorm(hidden_states)
        if self.moe is None:
            return hidden_states + self.mlp(x_BTD), None
        routed = None
        if self.router is not None:
            routed = self.router.route(x_BTD, **(router_options or {}))
            routing, shared = routed.gates, routed.shared
        assert routing is not None, "a layer without a router must follow the layer of its group that has one"
        options = {"keep": keep, "shared": shared}
        given = {name: value for name, value in options.items() if value is not None}
        return hidden_states + self.moe(x_BTD, *routing, **given), routed


class MonetModel(MonetPreTrainedModel):
    """Embeddings, decoder layers and the final norm."""

    _can_record_outputs = {
        "hidden_states": OutputRecorder(MonetDecoderLayer, index=0),
        "attentions": OutputRecorder(LlamaAttention, index=1),
    }

    def __init__(self, config: MonetConfig) -> None:
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(MonetDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.active_masks = ActiveMasks()
        self.identity = Identity(self)
        self.post_init()

    def train(self, mode: bool = True) -> Any:
        """As in nn.Module. Training changes weights that are not frozen, so the known fingerprint is dropped."""
        if mode and any(weight.requires_grad for weight in base_parameters(self)):
            self.identity.forget()
        return super().train(mode)

    def _replicate_for_data_parallel(self) -> Any:
        # Replicas run in separate threads, which do not see the masks that this thread has applied.
        replica: Any = super()._replicate_for_data_parallel()  # type: ignore[misc]
        replica.active_masks = self.active_masks.for_another_thread()
        return replica

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
        token_type_ids: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Unpack[AttentionKeywords],
    ) -> MonetModelOutput:
        """Run the decoder.

        Args:
            input_ids: (B, T) int64; or `inputs_embeds` (B, T, D).
            attention_mask: (B, T) or (B, past + T), 0 at padding; padding does not count in router statistics.
            position_ids: (B, T) int64; None counts from the cache's end. Without attention_mask and cache, a position
                that is not 1 more than the previous one starts a document, and no token attends to another document.
            cache, past_key_values: two names of the same key-value cache, which this call extends in place.
            expert_mask: one ExpertMask, or a sequence with one mask (or None) for each sequence of the batch.
            output_router_probs: return the routing probabilities; None follows the configuration.
            router_loss: what the uniformity loss is computed on; requires `with_losses`.
            with_losses: compute auxiliary losses and metrics.
            token_type_ids: ignored; some tokenizers return them, but Monet has no token types.
            num_items_in_batch: ignored; the heads of transformers pass on this argument of their loss.
            kwargs: see `AttentionKeywords`.
        Raises:
            TypeError: a keyword is unknown, or two caches were given.
            ValueError: not exactly one of input_ids and inputs_embeds was given.
            ConfigError, CheckpointError: a mask does not fit; see `ActiveMasks.resolve`.
        """
        refuse_unknown(kwargs, AttentionKeywords, MonetModel.forward)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        cache, attention_keywords = one_cache(cache, past_key_values, dict(kwargs))
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if inputs_embeds is None:
            inputs_embeds = cast(Tensor, self.embed_tokens(input_ids))
        B, T, _ = inputs_embeds.shape
        if position_ids is not None and attention_mask is None and cache is None:
            if "flash" in str(self.config._attn_implementation):
                attention_keywords = varlen_arguments(position_ids, B) | attention_keywords
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
            **attention_keywords,
        }
        wanted = self.config.output_router_probs if output_router_probs is None else output_router_probs
        router_options: dict[str, Any] = {
            "with_losses": with_losses, "router_loss": router_loss, "float32_probs": wanted
        }  # fmt: skip
        if self.training or with_losses:
            router_options["token_mask_BT"] = _token_mask(attention_mask, T)
        keep_R = self.active_masks.resolve(self, expert_mask, B, T, inputs_embeds.device)

        hidden_states, routing, shared = inputs_embeds, None, None
        probs: list[tuple[Tensor, Tensor] | None] = []
        sums: list[Any] = []
        # An early exit, as in a model that drafts for itself, temporarily lowers num_hidden_layers.
        layers = cast(list[MonetDecoderLayer], self.layers)
        for layer in layers[: self.config.num_hidden_layers]:
            hidden_states, routed = layer(
                hidden_states,
                routing,
                keep=None if layer.routing_group is None else keep_R[layer.routing_group],
                shared=shared,
                router_options=router_options,
                **attention_arguments,
            )
            if routed is not None and layer.router is not None:
                layer.router.update_statistics(routed)
                routing, shared = routed.gates, routed.shared
                sums.append(routed.sums)
            probs.append((routed.g1_BTHE, routed.g2_BTHE) if routed is not None and wanted else None)

        sums = [] if any(one is None for one in sums) else sums
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

    def generate(self, *args: Any, expert_mask: MaskArgument = None, **kwargs: Any) -> Any:
        """As in transformers; a mask is active in every forward of this model, but not in those of an assistant model.

        Args:
            expert_mask: one ExpertMask, or a sequence with one mask (or None) for each sequence of the batch.
        Raises:
            ConfigError: a sequence of masks with guidance, whose second forward cannot match masks to sequences.
            CheckpointError: the mask has a different shape or belongs to another model.
        """
        parent: Any = super()
        if isinstance(expert_mask, ExpertMask):
            self.model.active_masks.check(self.model, expert_mask)
            with self.model.active_masks.applying(expert_mask):
                return parent.generate(*args, **kwargs)
        if expert_mask is not None:
            config = kwargs.get("generation_config") or self.generation_config
            for option in ("guidance_scale", "assistant_model", "assistant_early_exit"):
                if kwargs.get(option, getattr(config, option, None)) is not None:
                    raise ConfigError(
                        f"expert_mask has one mask for each sequence; with {option} pass one mask for all"
                    )
            kwargs["expert_mask"] = expert_mask
        return parent.generate(*args, **kwargs)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, the entry to generate_batch.

        Raises:
            ConfigError: a mask is applied by context, which the generating thread would not see.
        """
        if self.model.active_masks.applied:
            raise ConfigError(
                "continuous batching generates in a separate thread, where a mask applied by `with` is not active; "
                "store it with model.set_expert_mask(mask)"
            )
        parent: Any = super()
        return parent.init_continuous_batching(*args, **kwargs)

    def _expand_inputs_for_generation(self, expand_size: int = 1, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Also repeat per-sequence masks, in the same way as beams and several returned sequences repeat prompts."""
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
        use_cache: bool | None = None,
        output_router_probs: bool | None = None,
        expert_mask: MaskArgument = None,
        router_loss: RouterLoss | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        return_logits: bool = True,
        cache: Cache | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Unpack[LanguageModelKeywords],
    ) -> MonetCausalLMOutput:
        """Logits and, with labels, the losses.

        Args:
            input_ids, attention_mask, cache, past_key_values, expert_mask, output_router_probs: see
                `MonetModel.forward`.
            labels: (B, T) int64, aligned with input_ids and shifted here; -100 is ignored.
            router_loss: adds the weighted auxiliary losses to `loss`; with None, `loss` is the next-token loss.
            logits_to_keep: compute only the logits of this many last positions (0 for all), or those at given indices.
            num_items_in_batch: number of labels of a whole accumulated step, of which this batch is a part. It divides
                the summed next-token loss and weighs the auxiliary losses by this batch's share. None takes means over
                this batch.
            return_logits: if False, `logits` may be None where losses are faster and need less memory without logits;
                the losses then allow one backward pass.
            token_type_ids: ignored; some tokenizers return them, but Monet has no token types.
            kwargs: see `LanguageModelKeywords`, which includes shift_labels.
        Raises:
            TypeError: a keyword is unknown.
        """
        refuse_unknown(kwargs, LanguageModelKeywords, MonetForCausalLM.forward)
        shift_labels = kwargs.pop("shift_labels", None)
        with_losses = labels is not None or shift_labels is not None
        outputs: MonetModelOutput = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            past_key_values=past_key_values,
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
            of_all_ranks = self.training and self.routers()[0].ranks is not None
            own_labels = None if of_all_ranks else shift_labels
            losses = loss_fields(lm_loss, outputs.router_losses or (), router_loss, own_labels, num_items_in_batch)
        return MonetCausalLMOutput(
            logits=logits,
            **{CACHE_KEYWORD: getattr(outputs, CACHE_KEYWORD)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_probs=outputs.router_probs,
            **losses,
        )


def _token_mask(attention_mask: Tensor | None, num_tokens: int) -> Tensor | None:
    """(B, T) bool, False at padding, for the current tokens; None without an attention mask."""
    if attention_mask is None or attention_mask.dim() != 2:
        return None
    return attention_mask[:, -num_tokens:].bool()
