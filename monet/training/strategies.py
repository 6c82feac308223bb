"""Strategies for several processes: data parallel, ZeRO 1 to 3, fully sharded; tests run them on the CPU.

All strategies share one checkpoint format (monet/training/checkpoints/folder_io.py), so each continues from a
checkpoint of any other.
"""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from monet.errors import ConfigError
from monet.extras import install_command
from monet.training.checkpoints.folder_io import FolderCheckpointIO
from monet.training.checkpoints.sharded_state import ShardedState
from monet.training.checkpoints.states import gather, keep_own
from monet.training.checkpoints.zero_state import ZeroState
from monet.training.private.deepspeed import gradient_norm, leave_out_update, one_optimizer_class, use_gloo
from monet.training.private.lightning import EngineStrategy, shard_over_all_ranks, unwrapped
from monet.training.ranks.coordination import ProcessRanks, Ranks


class Together(Strategy):
    """Common parts of the strategies below: a channel between the ranks, and checkpoints that all ranks write."""

    ranks: Ranks = Ranks()
    timeout: timedelta

    @override
    def setup_environment(self) -> None:
        if self.ranks.world_size == 1:  # a second call has nothing to do
            self._connect()
            self.ranks = ProcessRanks(self.timeout)
            io = getattr(self.checkpoint_io, "io", self.checkpoint_io)
            assert isinstance(io, FolderCheckpointIO)
            io.ranks = self.ranks

    def _connect(self) -> None:
        super().setup_environment()

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Make every rank write its part of a checkpoint folder.

        Raises:
            CheckpointError: on all ranks, if any rank failed; then nothing is published.
        """
        self.checkpoint_io.save_checkpoint(self._part(checkpoint), filepath)

    def _part(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        return keep_own(checkpoint, self.ranks)

    @override
    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path)


class DataParallel(Together, DDPStrategy):
    """Every rank holds the whole model and optimiser; gradients are averaged while the backward pass runs.

    Args:
        timeout_minutes: how long a rank waits for the others before it gives up.
        bucket_megabytes: size of the gradients that are averaged together.
    """

    def __init__(self, timeout_minutes: float = 30.0, bucket_megabytes: int = 25) -> None:
        self.timeout = timedelta(minutes=timeout_minutes)
        # the routers' statistics are already equal; torch 2.13 renamed the option
        known = inspect.signature(DistributedDataParallel).parameters
        unsynced = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {unsynced: False, "bucket_cap_mb": bucket_megabytes, "gradient_as_bucket_view": True}
        super().__init__(timeout=self.timeout, **options)


class Zero(Together, EngineStrategy):
    """DeepSpeed's ZeRO: optimiser state (1), also gradients (2), also parameters (3) are partitioned over the ranks.

    Args:
        stage: 1, 2 or 3.
        offload_optimizer: keep optimiser state in host memory and update there.
        offload_parameters: with stage 3, keep this rank's part of the parameters in host memory.
        config: further keys of DeepSpeed's configuration; they take precedence over the settings above. Without
            `zero_optimization.reduce_bucket_size`, a bucket of gradients is at most as large as the model.
        timeout_minutes: how long a rank waits for the others before it gives up.
    """

    def __init__(
        self,
        stage: Literal[1, 2, 3] = 2,
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
        config: dict[str, Any] | None = None,
        timeout_minutes: float = 30.0,
    ) -> None:
        if importlib.util.find_spec("deepspeed") is None:
            raise ConfigError(
                f"trainer.strategy: ZeRO needs DeepSpeed, which is not installed: {install_command('deepspeed')}"
            )
        if offload_parameters and stage != 3:
            raise ConfigError(f"trainer.strategy: offload_parameters needs stage 3, got stage {stage}")
        self.timeout = timedelta(minutes=timeout_minutes)
        super().__init__(
            stage=stage,
            offload_optimizer=offload_optimizer,
            offload_parameters=offload_parameters,
            timeout=self.timeout,
        )
        assert isinstance(self.config, dict)
        self.config["zero_force_ds_cpu_optimizer"] = False  # torch's fused AdamW needs no build
        _merge(self.config, config or {})
        self._bucket_is_given = "reduce_bucket_size" in (config or {}).get("zero_optimization", {})
        # the engine clips, with the norm that the module has checked
        warnings.filterwarnings("ignore", message="Since DeepSpeed handles gradient clipping internally")
        warnings.filterwarnings("ignore", message=r"`torch.distributed.*` is deprecated", category=FutureWarning)
        self._state: ZeroState | None = None
        self._restore: Callable[[], None] | None = None

    @property
    def _on_cpu(self) -> bool:
        return self.root_device.type == "cpu"

    @override
    def _connect(self) -> None:
        if self._on_cpu:  # Lightning refuses the CPU
            use_gloo()
            super(DeepSpeedStrategy, self).setup_environment()
        else:
            DeepSpeedStrategy.setup_environment(self)

    @override
    def setup_distributed(self) -> None:
        if not self._on_cpu:
            super().setup_distributed()
            return
        self.set_world_ranks()
        self.start_deepspeed_processes()

    @override
    def make_engine(self, model: nn.Module, optimizer: Any, lr_scheduler: Any = None) -> Any:
        import deepspeed

        assert isinstance(self.config, dict)
        if is_half := self.config.get("bf16", {}).get("enabled", False):
            # over micro-batches and over ranks: a long sum in bfloat16 rounds small terms away
            self.config.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
            self.config.setdefault("communication_data_type", "fp32")
        trained: Any = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self._bucket_is_given:  # a bucket takes its whole size, however few gradients it receives
            count = sum(parameter.numel() for parameter in trained)
            zero = self.config["zero_optimization"]
            zero["reduce_bucket_size"] = min(zero["reduce_bucket_size"], count)
        if self.zero_stage_3:
            if is_half:
                model.to(torch.bfloat16)
            # Build the whole model as one process does: inside zero.Init, transformers' initialisation of weights
            # would find empty parameters and do nothing.
            deepspeed.zero.Init(module=model, config_dict_or_path=self.config)
        with one_optimizer_class():
            engine, optimizer, _, _ = deepspeed.initialize(
                config=self.config,
                model=model,
                model_parameters=trained,
                optimizer=optimizer,
                lr_scheduler=lr_scheduler,
                dist_init_required=False,
            )
        module = self.lightning_module
        assert module is not None
        self._state = ZeroState(engine, module.model)  # type: ignore[arg-type]
        return engine, optimizer

    @override
    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        # Lightning has divided the loss by the number of accumulated batches; the engine must not do it again
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def gradient_norm(self) -> Tensor:
        """Norm of the averaged gradient over all parameters, infinite if it holds a NaN; all ranks call it."""
        return gradient_norm(self.model.optimizer, self.zero_stage_3)  # type: ignore[union-attr]

    def discard_gradients(self) -> None:
        """Make the engine skip the next update, as it does if a gradient overflows."""
        self._restore = leave_out_update(self.model.optimizer, self.root_device)  # type: ignore[union-attr]

    @override
    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().optimizer_step(*args, **kwargs)
        finally:
            if self._restore is not None:
                self._restore()
                self._restore = None

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {}

    @override
    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return {"state": {}, "param_groups": _plain_groups(optimizer)}

    @override
    def _part(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        assert self._state is not None
        return checkpoint | gather(self._state, checkpoint["config"], self.ranks)

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        Together.save_checkpoint(self, checkpoint, filepath)

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self._state is not None
        self._state.load(checkpoint["state_dict"], checkpoint["moments"])


class FullyShard(Together, ModelParallelStrategy):
    """Torch's fully_shard (FSDP2): parameters, gradients and optimiser state are sharded, layer by layer.

    Args:
        reshard_after_forward: free a layer's whole parameters after its forward and gather them again for its backward.
        timeout_minutes: how long a rank waits for the others before it gives up.
    """

    def __init__(self, reshard_after_forward: bool = True, timeout_minutes: float = 30.0) -> None:
        self.timeout = timedelta(minutes=timeout_minutes)
        super().__init__(tensor_parallel_size=1, timeout=self.timeout)
        self.reshard_after_forward = reshard_after_forward
        self._state: ShardedState | None = None

    @override
    def _connect(self) -> None:
        shard_over_all_ranks(self)
        ModelParallelStrategy.setup_environment(self)

    def shard(self, model: Any) -> None:
        """Shard a language model over all ranks, in place."""
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        # a routing group's gates are views; no code writes into them
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        options: dict[str, Any] = {
            "mesh": self.device_mesh["data_parallel"], "reshard_after_forward": self.reshard_after_forward,
        }  # fmt: skip
        if self.precision_plugin.precision == "bf16-mixed":
            options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        for layer in model.model.layers:
            fully_shard(layer, **options)
        fully_shard(model, **options)

    @override
    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return {"state": {}, "param_groups": _plain_groups(optimizer)}

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {}

    def _sharded(self) -> ShardedState:
        module = self.lightning_module
        assert module is not None
        return ShardedState(module.model, self.optimizers[0])  # type: ignore[arg-type]

    @override
    def _part(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        return checkpoint | gather(self._sharded(), checkpoint["config"], self.ranks)

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        Together.save_checkpoint(self, checkpoint, filepath)

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        self._sharded().load(checkpoint["state_dict"], checkpoint["moments"])


NAMES: dict[str, Callable[[], Strategy]] = {
    "ddp": DataParallel,
    **{f"zero{stage}": lambda stage=stage: Zero(stage) for stage in (1, 2, 3)},
    "zero2_offload": lambda: Zero(2, offload_optimizer=True),
    "zero3_offload": lambda: Zero(3, offload_optimizer=True, offload_parameters=True),
    "fsdp2": FullyShard,
}


def by_name(name: str) -> Strategy:
    """Return the strategy with a short name.

    Raises:
        ConfigError: the name is unknown; lists the known names.
    """
    if name not in NAMES:
        raise ConfigError(f"trainer.strategy = {name!r}: choose from auto, {', '.join(NAMES)}, or one of our classes")
    return NAMES[name]()


def _plain_groups(optimizer: Any) -> list[dict[str, Any]]:
    groups = unwrapped(optimizer).param_groups
    return [{key: value for key, value in group.items() if key != "params"} for group in groups]


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
