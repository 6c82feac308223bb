"""The ways to train a model on some GPUs: which of them fit, which is fastest, and the options that select it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import LlamaConfig

from monet.costs.communication import LINK_EFFICIENCY, latency_seconds, sent_bytes, starting_seconds, waiting_seconds
from monet.costs.flops import training_flops_per_token
from monet.costs.hardware import Accelerator
from monet.costs.memory import (
    STRATEGIES,
    Strategy,
    activation_bytes_per_token,
    copies_bytes,
    host_bytes,
    state_bytes,
    update_bytes,
    widths,
)

GIB = 1 << 30
# Memory kept free for the CUDA context, library workspaces and NCCL; and the share that the allocator cannot use.
RESERVED_BYTES, FRAGMENTED = 3 * GIB, 0.05


@dataclass(frozen=True)
class TeacherCost:
    """What a frozen teacher adds to each GPU.

    Attributes:
        parameters: number of the teacher's parameters; every GPU holds all of them.
        weight_bytes: memory of the teacher's weights.
        forward_flops: operations per token of the layers that the teacher does not share with its student.
    """

    parameters: int
    weight_bytes: int
    forward_flops: float


@dataclass(frozen=True)
class Run:
    """The parts of a training configuration that affect its cost.

    Attributes:
        windows: windows per optimiser step, over all GPUs.
        micro_batch: windows on one GPU at a time.
        freeze_dense: only routers and experts learn.
        teacher: the cost of a teacher; None without one.
        words: settings of the configuration that depend on the GPUs, by option name.
    """

    name: str
    config: LlamaConfig
    seq_len: int
    windows: int
    micro_batch: int
    steps: int
    precision: str
    checkpointing: bool
    strategy: Strategy
    offload: bool
    freeze_dense: bool = False
    teacher: TeacherCost | None = None
    words: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens per optimiser step."""
        return self.windows * self.seq_len

    def flops_per_token(self, recompute: bool = False) -> float:
        """Operations per token of the training and of the teacher; `recompute`: with activation checkpointing."""
        own = training_flops_per_token(self.config, self.seq_len, recompute, self.freeze_dense)
        return own + (0.0 if self.teacher is None else self.teacher.forward_flops)


@dataclass(frozen=True)
class Assumptions:
    """Assumptions of the estimates."""

    gpu: Accelerator
    gpus: int
    gpus_per_node: int
    mfu: float
    network_bandwidth: float  # bytes a second from one GPU to other nodes, in one direction

    @property
    def memory(self) -> float:
        """Bytes of GPU memory that a run can use."""
        return (self.gpu.memory_bytes - RESERVED_BYTES) * (1 - FRAGMENTED)

    @property
    def bandwidth(self) -> float:
        """Bytes a second that one GPU sends in a collective over all GPUs.

        Each ring leaves a node once, and there are as many rings as the node has network links. So the links inside a
        node limit the rate of one GPU, and so does all of the node's network together.
        """
        links = self.gpu.link_bandwidth
        if self.gpus > self.gpus_per_node:
            links = min(links, self.network_bandwidth * self.gpus_per_node)
        return LINK_EFFICIENCY * links


@dataclass(frozen=True)
class Choice:
    """One way to run, with memory in bytes per GPU and times in seconds per optimiser step.

    Attributes:
        communication_seconds: all communication; `waiting_seconds` is the part that does not overlap with computation.
        update_seconds: time of the optimiser's update.
    """

    strategy: Strategy
    offload: bool
    micro_batch: int
    checkpointing: bool
    accumulate: int
    memory: dict[str, float]
    compute_seconds: float
    communication_seconds: float
    waiting_seconds: float
    update_seconds: float
    fits: bool

    @property
    def name(self) -> str:
        """The value for trainer.strategy."""
        return self.strategy + ("_offload" if self.offload else "")

    @property
    def total_bytes(self) -> float:
        return sum(self.memory.values())

    @property
    def step_seconds(self) -> float:
        return self.compute_seconds + self.waiting_seconds + self.update_seconds


def all_choices(run: Run, given: Assumptions) -> list[Choice]:
    """Every strategy and micro-batch (powers of two that divide a GPU's windows), with and without checkpointing."""
    per_gpu = run.windows // given.gpus
    sizes = {2**n for n in range(6) if per_gpu % 2**n == 0}
    sizes |= {run.micro_batch} if per_gpu % run.micro_batch == 0 else set()
    strategies = STRATEGIES if given.gpus > 1 else STRATEGIES[:1]
    return [choice(run, given, s, m, c) for s in strategies for m in sorted(sizes) for c in (False, True)]


def choice(
    run: Run, given: Assumptions, strategy: Strategy, micro_batch: int, checkpointing: bool, offload: bool = False
) -> Choice:
    """Memory and time of one way to run; the time does not include an offloaded update."""
    config, gpus, wide, frozen = run.config, given.gpus, widths(run.precision, strategy), run.freeze_dense
    memory = state_bytes(config, run.precision, strategy, gpus, offload, frozen)
    memory |= {} if run.teacher is None else {"teacher": float(run.teacher.weight_bytes)}
    per_token = activation_bytes_per_token(config, wide, checkpointing, frozen)
    memory |= {name: micro_batch * run.seq_len * value for name, value in per_token.items()}
    memory["copies"] = copies_bytes(config, wide, checkpointing)
    accumulate = run.windows // gpus // micro_batch
    compute = run.tokens / gpus * run.flops_per_token(recompute=checkpointing) / (given.gpu.peak_flops * given.mfu)
    volume = sent_bytes(config, run.precision, strategy, gpus, accumulate, frozen)
    starting = starting_seconds(config, run.precision, strategy, gpus, accumulate)
    sending, waiting = waiting_seconds(volume, strategy, given.bandwidth, compute, accumulate, starting)
    latency = latency_seconds(config, strategy, gpus, accumulate)
    update = (
        0.0 if offload else update_bytes(config, run.precision, strategy, gpus, frozen) / given.gpu.memory_bandwidth
    )
    fits = sum(memory.values()) <= given.memory
    return Choice(
        strategy, offload, micro_batch, checkpointing, accumulate, memory, compute, sending + latency,
        waiting + latency, update, fits,
    )  # fmt: skip


def best(choices: list[Choice], preferred: Choice | None = None) -> Choice | None:
    """The fastest that fits. Among those within one percent: the preferred one, else one without recomputation, then
    the one with the largest micro-batch, then the one with the first strategy."""
    fitting = [choice for choice in choices if choice.fits]
    least = min((choice.step_seconds for choice in fitting), default=0.0)
    near = [choice for choice in fitting if choice.step_seconds <= 1.01 * least]
    if preferred in near:
        return preferred
    return min(near, key=lambda c: (c.checkpointing, c.accumulate, STRATEGIES.index(c.strategy)), default=None)


def configured(run: Run, given: Assumptions) -> Choice | None:
    """The run as configured; None if its micro-batch does not divide a GPU's windows."""
    if (run.windows // given.gpus) % run.micro_batch:
        return None
    return choice(run, given, run.strategy, run.micro_batch, run.checkpointing, run.offload)


def words(run: Run, given: Assumptions, found: Choice) -> str:
    """Options that run the configuration on these GPUs in this way; empty if it already does."""
    nodes = max(1, given.gpus // given.gpus_per_node)
    options = {
        "trainer.num_nodes": nodes, "trainer.devices": given.gpus // nodes, "trainer.strategy": found.name,
        "data.batch_size": found.micro_batch, "trainer.accumulate_grad_batches": found.accumulate,
        "model.gradient_checkpointing": found.checkpointing,
    }  # fmt: skip
    # limits are counted in batches
    interval = run.words.get("trainer.val_check_interval")
    if isinstance(interval, int):
        accumulated = run.words["trainer.accumulate_grad_batches"]
        options["trainer.val_check_interval"] = max(1, interval * found.accumulate // accumulated)
    limit = run.words.get("data.max_val_windows")
    if limit is not None and limit < given.gpus:  # each GPU takes at least one
        options["data.max_val_windows"] = given.gpus
    changed = {name: value for name, value in options.items() if run.words.get(name) != value}
    return " ".join(f"--{name} {str(value).lower()}" for name, value in changed.items())


def remedies(run: Run, given: Assumptions, choices: list[Choice]) -> list[str]:
    """How to change a configured run that does not fit, or whose batch cannot be split evenly over the GPUs."""
    now = configured(run, given)
    if now is not None and now.fits:
        return []
    found = best(choices)
    if found is not None:
        return [words(run, given, found)]
    least = min(choices, key=lambda c: c.total_bytes)
    needed = least.total_bytes / (1 - FRAGMENTED) + RESERVED_BYTES
    lines = [f"more GPUs, or GPUs of more than {needed / GIB:,.0f} GiB"]
    offloaded = choice(run, given, "zero3", least.micro_batch, True, offload=True)
    if offloaded.fits:
        host = node_bytes(run, given, offloaded) / GIB
        lines.insert(0, f"{words(run, given, offloaded)} (slower, {host:,.0f} GiB of each node's memory)")
    return lines


def node_bytes(run: Run, given: Assumptions, found: Choice) -> float:
    """Host memory per node that an offloaded optimiser needs."""
    processes = min(given.gpus, given.gpus_per_node)
    return processes * host_bytes(run.config, run.precision, found.strategy, given.gpus, run.freeze_dense)
