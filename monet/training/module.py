"""The Lightning module: model, losses, optimiser, and the numbers of each step."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from monet.errors import ConfigError, NonFiniteError
from monet.model.losses import RouterLoss
from monet.model.model_tokenizer import load_tokenizer
from monet.model.modeling_monet import MonetForCausalLM
from monet.model.ranks import GlobalBatch
from monet.training.checkpoints.states import keep_batches_of_a_step, name_moments, number_moments
from monet.training.language_models import (
    build,
    config_json,
    freeze_dense_weights,
    refuse_other_tokenizer,
    warm_start,
)
from monet.training.metrics import RouterHealth
from monet.training.optim import (
    OptimizerSettings,
    ScheduleSettings,
    build_optimizer,
    build_scheduler,
    grouped_names,
    reapply_settings,
)
from monet.training.private.lightning import inside_step
from monet.training.ranks.agree import any_over_ranks, take_from_rank_0
from monet.training.settings import ModelShape, check_freezing, differing_keys, refuse_structural_change
from monet.training.stage import STAGE, refuse_other_model
from monet.training.teacher import Teacher, TeacherSettings, refuse_other_teacher
from monet.training.trainer_options import tokens_per_step
from monet.training.watch.guard import StepGuard, gradient_norm
from monet.training.watch.nonfinite import NonFiniteSettings
from monet.training.watch.step_numbers import router_means

DEFAULT_ROUTER_LOSS = RouterLoss()
DEFAULT_OPTIMIZER = OptimizerSettings()
DEFAULT_SCHEDULE = ScheduleSettings()
DEFAULT_NONFINITE = NonFiniteSettings()


class MonetLightningModule(LightningModule):
    """Trains a Monet language model on windows of tokens.

    Batches are dictionaries: `input_ids` (B, T+1) int64, `domain` (B,) int64, `index` (B,) int64 window ids, and
    `position_ids` (B, T) int64 that restart at each document, if attention must not cross documents.

    Args:
        shape: sizes and architecture of the language model.
        init_from: folder of a released or exported model, or of a checkpoint, whose weights a new run starts with; a
            run that continues uses its own weights. None starts with random weights.
        freeze_router: keep the routers of init_from unchanged, including running statistics; their losses are measured
            but not added to the loss.
        teacher: a frozen model whose next-token probabilities the model learns; None trains on the text only.
        freeze_dense: train only routers and experts; all other weights of init_from stay unchanged.
        router_loss: weights and form of the routers' auxiliary losses.
        optimizer: AdamW and its parameter groups.
        schedule: learning rate over the run.
        attention: attention implementation of transformers: sdpa, eager, flash_attention_2 or flex_attention.
        gradient_checkpointing: True recomputes each layer in the backward pass: less memory, about a third more time.
        dead_window_steps: number of optimiser steps without firing after which a routing key counts as dead.
        router_statistics: global computes thresholds, running statistics and router losses over the batches of all
            ranks; local computes them over each rank's own batches, and at a checkpoint all ranks copy rank 0's running
            statistics.
        router_statistics_every: micro_batch updates the running statistics with every accumulated batch; step once per
            optimiser step, with all its batches. Thresholds always come from the current batch.
        nonfinite: what to do if a loss or gradient is NaN or infinite.
    """

    def __init__(
        self,
        shape: ModelShape,
        init_from: str | None = None,
        freeze_router: bool = False,
        teacher: TeacherSettings | None = None,
        freeze_dense: bool = False,
        router_loss: RouterLoss = DEFAULT_ROUTER_LOSS,
        optimizer: OptimizerSettings = DEFAULT_OPTIMIZER,
        schedule: ScheduleSettings = DEFAULT_SCHEDULE,
        attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = "sdpa",
        gradient_checkpointing: bool = False,
        dead_window_steps: int = 50,
        nonfinite: NonFiniteSettings = DEFAULT_NONFINITE,
        router_statistics: Literal["global", "local"] = "global",
        router_statistics_every: Literal["micro_batch", "step"] = "micro_batch",
    ) -> None:
        super().__init__()
        if dead_window_steps < 1:
            raise ConfigError(f"dead_window_steps must be at least 1, got {dead_window_steps}")
        self.router_loss, self.optimizer_settings, self.schedule = router_loss, optimizer, schedule
        self.model = build(shape.config(), attention)
        self.init_from, self.freeze_router, self.freeze_dense = init_from, freeze_router, freeze_dense
        check_freezing(self.model.config, init_from, freeze_router, freeze_dense)
        if freeze_router and isinstance(self.model, MonetForCausalLM):
            self.model.freeze_router()
            # these losses could then only move the layers below, away from the inputs the routers were trained on
            self.router_loss = replace(router_loss, uniformity_weight=0.0, ambiguity_weight=0.0)
        self.teacher_settings, self.teacher = teacher, None
        if teacher is not None:
            teacher.check()
        if freeze_dense:
            freeze_dense_weights(self.model)
        if gradient_checkpointing:
            # the old name raises a warning in versions that have the new name
            enable = getattr(self.model, "activation_checkpointing_enable", self.model.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        self.router_statistics = router_statistics
        for router in self.model.routers():
            router.collects_statistics = router_statistics_every == "step"
        self.router_health = RouterHealth(dead_window_steps)
        self.tokens_seen = 0
        self.validation_result: dict[str, Any] | None = None
        self.guard = StepGuard(self.model, nonfinite)
        self.compiles = False  # set before the training starts
        self.stage_from: str | None = None  # checkpoint of another run that this run started from
        self._step_metrics: dict[str, Any] = {}
        self._stored_rate: float | None = None  # learning rate of the next step according to the checkpoint

    @property
    def domains(self) -> list[str]:
        """Domain names, indexed by the domain numbers in the batches."""
        return list(getattr(self.trainer.datamodule, "domains", None) or [])  # type: ignore[attr-defined]

    @override
    def setup(self, stage: str) -> None:
        """Check that data and model fit, and copy the tokenizer's special ids to the model.

        Raises:
            ConfigError: the vocabulary or the longest sequence is too small, or init_from used another tokenizer.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.init_from is not None and self.trainer.ckpt_path is None:
            if (tokenizer := getattr(data, "tokenizer_dir", None)) is not None:
                refuse_other_tokenizer(self.init_from, Path(tokenizer))
            warm_start(self.model, self.init_from)
        if self.teacher_settings is not None and self.teacher is None:
            self.teacher = Teacher(self.teacher_settings, self.trainer.strategy.root_device)
            self.teacher.check_fits(self.model, getattr(data, "tokenizer_dir", None))
        if self.trainer.world_size > 1 and self.router_statistics == "global":
            ranks = GlobalBatch()
            for router in self.model.routers():
                router.ranks = ranks
        if data is None:
            return
        config = self.model.config
        if getattr(data, "document_mask", False):  # record it for checkpoints and exports
            config.document_mask = True
        rows = self.model.model.embed_tokens.num_embeddings
        if (found := getattr(data, "vocab_size", rows)) > rows:
            raise ConfigError(f"model.shape.vocab_size = {rows} is smaller than the tokenizer's {found} ids; raise it")
        if (length := getattr(data, "seq_len", 0)) > config.max_position_embeddings:
            raise ConfigError(
                f"data.seq_len = {length} exceeds model.shape.max_position_embeddings ="
                f" {config.max_position_embeddings}; raise the latter or shorten data.seq_len"
            )
        if (folder := getattr(data, "tokenizer_dir", None)) is not None:
            tokenizer = load_tokenizer(folder)
            for special in (self.model.config, self.model.generation_config):
                for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
                    setattr(special, key, getattr(tokenizer, key))

    @override
    def configure_model(self) -> None:
        if self.compiles:
            # compile in place: names of weights stay, and checkpoints are those of an eager run
            self.model.compile()
        if (shard := getattr(self.trainer.strategy, "shard", None)) is not None:
            shard(self.model)

    @override
    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.guard.begin(self.trainer.global_step)

    @override
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the total loss of one micro-batch, a scalar. It is checked for finite values before the update."""
        windows = batch["input_ids"]
        arguments: dict[str, Any] = {
            "input_ids": windows[:, :-1], "position_ids": batch.get("position_ids"), "shift_labels": windows[:, 1:],
            "router_loss": self.router_loss, "use_cache": False,
        }  # fmt: skip
        if self.teacher is None:
            out = self.model(**arguments, return_logits=False)
            loss = out.loss
            self.guard.record.add(batch, out)
        else:
            loss, kl, out = self.teacher.loss(self.model, arguments)
            self.guard.record.add(batch, out, loss=loss, kl=kl)
        self.tokens_seen += windows[:, 1:].numel() * self.trainer.world_size
        if not inside_step(self.trainer):
            for router in self.model.routers():
                router.commit_statistics()
        return loss

    @override
    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Measure the gradient's norm over all parameters, check the step before its update, and clip.

        Raises:
            NonFiniteError: a loss or gradient is NaN or infinite on some rank; raised on all, see `StepGuard.settle`.
        """
        assert gradient_clip_algorithm in (None, "norm")
        if inside_step(self.trainer):  # DeepSpeed's engine calls this for every batch
            return
        strategy, record, step = self.trainer.strategy, self.guard.record, self.trainer.global_step + 1
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        total = gradient_norm(parameters, strategy)
        numbers = self.guard.settle(total, self.trainer, self.domains)
        if numbers.is_finite:
            if gradient_clip_val and parameters and total is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, total)
            if (fired_R2HE := record.fired_R2HE) is not None:
                if self.router_statistics == "local":  # global statistics already cover all ranks
                    fired_R2HE = any_over_ranks(fired_R2HE, strategy)
                self.router_health.update(fired_R2HE, step)
        for router, dead_share in zip(numbers.routers, self.router_health.dead_share(step).tolist(), strict=True):
            router["dead_share"] = dead_share
        self._step_metrics = {
            **numbers.losses,
            **router_means(numbers.routers),
            "grad_norm": numbers.grad_norm,
            "learning_rate": optimizer.param_groups[0]["lr"],
            "routers": numbers.routers,
            "skipped": not numbers.is_finite,
        }

    def take_step_metrics(self) -> dict[str, Any]:
        """Return the numbers of the optimiser step that just ended, means over its micro-batches and ranks."""
        self.guard.record.clear()
        return self._step_metrics

    @override
    def on_validation_epoch_start(self) -> None:
        count = max(len(self.domains), 1)
        self._nll_C, self._kl_C = torch.zeros(2, count, dtype=torch.float64, device=self.device)
        self._tokens_C = torch.zeros(count, dtype=torch.int64, device=self.device)

    @override
    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        windows, domain_B = batch["input_ids"], batch["domain"]
        positions = batch.get("position_ids")
        logits_BTV = self.model(input_ids=windows[:, :-1], position_ids=positions, use_cache=False).logits
        if self.teacher is not None:
            kl_B = self.teacher.divergence_of_rows(logits_BTV, windows[:, :-1], positions, windows[:, 1:])
            self._kl_C.index_add_(0, domain_B, kl_B.double())
        # row by row: a float32 copy of all logits is large
        rows = zip(logits_BTV, windows[:, 1:], strict=True)
        nll_B = torch.stack([F.cross_entropy(row.float(), labels, reduction="sum") for row, labels in rows])
        self._nll_C.index_add_(0, domain_B, nll_B.double())
        self._tokens_C.index_add_(0, domain_B, torch.full_like(domain_B, windows.shape[1] - 1))

    @override
    def on_validation_epoch_end(self) -> None:
        nll_C = self.trainer.strategy.reduce(self._nll_C, reduce_op="sum").tolist()
        tokens_C = self.trainer.strategy.reduce(self._tokens_C, reduce_op="sum").tolist()
        names = self.domains or ["all"]
        losses = {name: nll / n for name, nll, n in zip(names, nll_C, tokens_C, strict=True) if n}
        if bad := [name for name, loss in losses.items() if not math.isfinite(loss)]:
            raise NonFiniteError(
                f"step {self.trainer.global_step}: the validation loss is {losses[bad[0]]} on {', '.join(bad)}"
            )
        mean = sum(losses.values()) / len(losses)
        self.validation_result = {
            "loss": mean,
            "perplexity": _perplexity(mean),
            "loss_by_domain": losses,
            "perplexity_by_domain": {name: _perplexity(loss) for name, loss in losses.items()},
        }
        if self.teacher is not None:
            kl_C = self.trainer.strategy.reduce(self._kl_C, reduce_op="sum").tolist()
            divergences = {name: kl / n for name, kl, n in zip(names, kl_C, tokens_C, strict=True) if n}
            self.validation_result |= {
                "kl": sum(divergences.values()) / len(divergences),
                "kl_by_domain": divergences,
            }
        # for callbacks that watch it; MetricsLog reports it to the loggers
        self.log("validation/loss", mean, logger=False, sync_dist=True)

    @override
    def configure_optimizers(self) -> Any:
        total_steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(total_steps) or total_steps < 1:
            raise ConfigError(
                f"trainer.max_steps = {self.trainer.max_steps}: set the number of optimiser steps to run, or max_tokens"
            )
        optimizer = build_optimizer(self.model, self.optimizer_settings)
        scheduler = build_scheduler(optimizer, self.schedule, int(total_steps), tokens_per_step(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @override
    def on_train_start(self) -> None:
        if self.teacher is not None and not self.compiles:
            self.teacher.share_lower_layers(self.model)
        (schedule,) = self.trainer.lr_scheduler_configs
        assert isinstance(schedule.scheduler, LambdaLR)
        optimizer = self.trainer.optimizers[0]
        reapply_settings(optimizer, schedule.scheduler, self.model, self.optimizer_settings)
        before, now = self._stored_rate, optimizer.param_groups[0]["lr"]
        if before is not None and before != now:
            rank_zero_only(print)(f"learning rate of the next step: {before:.2e} -> {now:.2e}", flush=True)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # the routers' statistics are then the same for every writing rank, and after a restart
        if self.router_statistics == "local":
            take_from_rank_0(buffer for router in self.model.routers() for buffer in router.buffers())
        checkpoint["config"] = self.config_json()
        names = grouped_names(self.model, self.optimizer_settings)
        name_moments(checkpoint, [name for group in names for name in group])
        checkpoint["monet"] = {
            "tokens_seen": self.tokens_seen,
            "accumulate_grad_batches": self.trainer.accumulate_grad_batches,
            "freeze_router": self.freeze_router,
            "freeze_dense": self.freeze_dense,
            "teacher": None if self.teacher is None else self.teacher.fingerprint,
            "router_health": self.router_health.state_dict(),
            "guard": self.guard.state_dict(),
        }

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.stage_from = checkpoint.get(STAGE)
        if self.stage_from is not None:
            self._begin_stage(self.stage_from, checkpoint)
        else:
            refuse_structural_change(checkpoint["config"], self.config_json())
            keep_batches_of_a_step(checkpoint, self.trainer)
            self.router_health.load_state_dict(checkpoint["monet"]["router_health"])
            if (guard := checkpoint["monet"].get("guard")) is not None:
                self.guard.load_state_dict(guard)
        for name in ("freeze_router", "freeze_dense"):
            if (frozen := checkpoint["monet"].get(name, False)) != getattr(self, name):
                raise ConfigError(
                    f"model.{name} = {getattr(self, name)} differs from the run's {frozen}, so the optimiser's state"
                    " does not match; restore that value, or start a new run_dir with model.init_from"
                )
        if self.stage_from is None:
            refuse_other_teacher(checkpoint["monet"].get("teacher"), self.teacher)
        self._stored_rate = checkpoint["optimizer_states"][0]["param_groups"][0]["lr"]
        if self.trainer.strategy.lightning_restore_optimizer:
            number_moments(checkpoint, grouped_names(self.model, self.optimizer_settings))
        self.tokens_seen = checkpoint["monet"]["tokens_seen"]

    def _begin_stage(self, folder: str, checkpoint: dict[str, Any]) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if (tokenizer := getattr(data, "tokenizer_dir", None)) is not None:
            refuse_other_tokenizer(folder, Path(tokenizer), "stage_from")
        stored = checkpoint["config"]
        refuse_other_model(folder, stored, self.config_json())
        changes = differing_keys(stored, self.config_json())
        rank_zero_only(print)("; ".join([f"weights and moments of {folder}", *changes]), flush=True)

    def config_json(self) -> dict[str, Any]:
        """Return the model's configuration as its config.json will store it."""
        return config_json(self.model.config)


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))  # a float overflows beyond that
