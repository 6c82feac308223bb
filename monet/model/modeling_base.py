"""The base of every Monet model class: loading and saving with the stored mask, initialisation, the routers."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel

from monet.configuration_monet import MonetConfig
from monet.masks.expert_mask import MASK_FILE, ExpertMask
from monet.model.cache_keyword import CACHE_KEYWORDS
from monet.model.experts import EXPERTS
from monet.model.pretrained import load_checked, remove_uploaded_mask
from monet.model.router import MonetRouter, RoutingStatistics


class MonetPreTrainedModel(PreTrainedModel):
    """Loading, saving, initialisation and other functions that all model classes share."""

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
        # Re-entrant checkpointing does not track the routing passed between layers and returns wrong gradients.
        function = partial(gradient_checkpointing_func, use_reentrant=False)
        super()._set_gradient_checkpointing(enable, function, **kwargs)

    @property
    def _body(self) -> Any:
        return self.base_model

    def routers(self) -> list[MonetRouter]:
        """The routers in the order of their routing groups."""
        return [layer.router for layer in self._body.layers if layer.router is not None]

    def freeze_router(self) -> None:
        """Stop learning in every router: weights get no gradient, running statistics stay fixed, even in training."""
        for router in self.routers():
            router.requires_grad_(False)

    def fingerprint(self) -> str:
        """Hash that identifies this model's body in any dtype; masks and statistics record it.

        Adapters and offloading do not change it. `monet.model.fingerprint.Identity` has the definition.

        Raises:
            CheckpointError: the weights are quantised, and neither an earlier fingerprint nor the files are known.
        """
        return self._body.identity.of(self.config, self._body)

    @property
    def expert_mask(self) -> ExpertMask | None:
        """The stored mask: applied in every forward and saved with the model."""
        return self._body.active_masks.stored

    def set_expert_mask(self, mask: ExpertMask | None) -> None:
        """Store a mask in the model, or remove it with None. The model then keeps the mask, even if it trains further.

        The configuration names the mask, so that no model with this configuration runs without the mask by accident.

        Raises:
            CheckpointError: the mask belongs to another model or has a different shape.
        """
        if mask is not None:
            mask.check_fits(self)
            mask = ExpertMask(mask.keep_REE, mask.provenance)
        self._body.active_masks.stored = mask
        self.config.expert_mask = None if mask is None else mask.named()

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, **kwargs: Any) -> None:
        """Save as in transformers; a stored mask is written as expert_mask.safetensors, and config.json names it.

        Raises:
            CheckpointError: the configuration names a mask that this model does not have.
        """
        path, mask = Path(save_directory) / MASK_FILE, self.expert_mask
        self._body.active_masks.refuse_named_but_absent(self.config)
        self.config.expert_mask = None if mask is None else mask.named()
        if is_main_process and mask is not None:
            mask.save(path, model=self)
        elif is_main_process:
            path.unlink(missing_ok=True)
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)

    def _upload_modified_files(
        self, working_dir: Any, repo_id: str, files_timestamps: dict[str, float], *args: Any, **kwargs: Any
    ) -> Any:
        """Upload as in transformers, with the stored mask; an old mask in the repository is removed.

        transformers omits files that were written before its own, and the mask is such a file.
        """
        stamps = {name: stamp for name, stamp in files_timestamps.items() if name != MASK_FILE}
        done = super()._upload_modified_files(working_dir, repo_id, stamps, *args, **kwargs)
        if self.expert_mask is None and not kwargs.get("create_pr"):
            remove_uploaded_mask(repo_id, kwargs.get("token"), kwargs.get("revision"))
        return done

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any) -> Any:
        """Load as in transformers, with the stored mask if there is one.

        Only safetensors are read, and every tensor of the model must be in the file.

        Raises:
            CheckpointError: a tensor is missing, superfluous or not finite; the mask belongs to another model; or the
                mask that config.json names is missing.
            ConfigError: a configuration key is missing or invalid.
        """
        return load_checked(cls, super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)
