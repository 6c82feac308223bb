"""Times whole models with random weights: a training step, LLaMA's training step, and the statistics pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.gpu.plan import FORMS, Plan, Row, free, medians
from benchmarks.measure import time_on_device
from monet import MonetForCausalLM
from monet.costs.flops import training_flops_per_token
from monet.costs.hardware import peak_flops
from monet.eval.attribution.stats import collect
from monet.eval.core.inputs import Batch, LabelledSequences
from monet.model.losses import RouterLoss, next_token_loss


def monet(plan: Plan, form: str, dtype: torch.dtype, **changes: Any) -> MonetForCausalLM:
    """The main shape's model in eval mode, with running statistics of random tokens: about k keys are active."""
    torch.manual_seed(0)
    with plan.device:
        model = MonetForCausalLM(plan.shape.config(form, plan.topk, **changes))
    model.to(dtype=dtype)  # type: ignore[call-arg]
    seen: list[Any] = []
    hooks = [router.register_forward_hook(lambda _, __, output: seen.append(output)) for router in model.routers()]
    with torch.no_grad():
        model.train()(random_tokens(plan, 1, min(256, plan.seq_len)), use_cache=False)
    for router, hook, output in zip(model.routers(), hooks, seen, strict=True):
        hook.remove()
        for norm, batch in zip((router.norm1, router.norm2), output.statistics or (), strict=True):
            norm.running_mean.copy_(batch.mean_H)
            norm.running_var.copy_(batch.m2_H / batch.count)
    return model.eval()


def random_tokens(plan: Plan, *size: int) -> Tensor:
    return torch.randint(plan.shape.vocab_size, size, device=plan.device)


def training_rows(plan: Plan) -> Iterator[Row]:
    """Tokens a second of a training step: bf16 autocast over float32 weights, fused AdamW, clipping."""
    baseline = _train(plan, "LLaMA", lambda: _llama(plan), _llama_loss)
    yield baseline
    free(plan.device)
    for form, short in FORMS.items():
        row = _train(plan, f"Monet {short}", lambda form=form: monet(plan, form, torch.float32), _monet_loss)
        row["over_llama"] = row["tokens_per_s"] / baseline["tokens_per_s"]
        row["targets"] = {f"G12 {short}": row["over_llama"], f"G14 {short}": row["mfu"]}
        yield row
        free(plan.device)


def _llama(plan: Plan) -> LlamaForCausalLM:
    shape = plan.shape
    config = LlamaConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.hidden_size, intermediate_size=shape.dense_width,
        num_hidden_layers=shape.layers, num_attention_heads=shape.attention_heads, tie_word_embeddings=False,
    )  # fmt: skip
    with plan.device:
        return LlamaForCausalLM(config)


def _llama_loss(model: Any, ids_BT: Tensor) -> Tensor:
    return next_token_loss(model(input_ids=ids_BT[:, :-1], use_cache=False).logits, ids_BT[:, 1:])


def _monet_loss(model: Any, ids_BT: Tensor) -> Tensor:
    return model(input_ids=ids_BT[:, :-1], shift_labels=ids_BT[:, 1:], router_loss=RouterLoss(), use_cache=False).loss


def _train(plan: Plan, name: str, make: Callable[[], nn.Module], loss_of: Callable[[nn.Module, Tensor], Tensor]) -> Row:
    """One model's row; the micro-batch is the largest that fits, and all models have the same tokens in a step."""
    micro = plan.batch
    while True:
        try:
            return timed_training(plan, name, make(), loss_of, micro)
        except torch.OutOfMemoryError:
            if micro == 1:
                raise
        # Outside the handler, which still holds the failed step's tensors.
        micro //= 2
        free(plan.device)


def timed_training(
    plan: Plan, name: str, model: Any, loss_of: Callable[[nn.Module, Tensor], Tensor], micro: int
) -> Row:
    """Time of one training step on `micro` sequences, and its peak memory on a GPU."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    losses: list[Tensor] = []
    if plan.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(plan.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        windows = random_tokens(plan, plan.batch, plan.seq_len + 1)
        for ids_BT in windows.split(micro):
            with torch.autocast(plan.device.type, torch.bfloat16):
                loss = loss_of(model, ids_BT) * (len(ids_BT) / plan.batch)
            loss.backward()
            losses.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()

    ms = medians(time_on_device({"step": step}, plan.device, plan.steps, warmup=2))["step"]
    if not bool(torch.stack(losses).isfinite().all()):
        raise AssertionError(f"{name}: a loss is not finite")
    tokens_per_s = plan.batch * plan.seq_len / ms * 1e3
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    row: Row = {"model": name, "parameters_m": num_parameters / 1e6, "ms_a_step": ms, "tokens_per_s": tokens_per_s}
    flops = training_flops_per_token(model.config, plan.seq_len)
    peak = peak_flops(plan.device)
    row |= {"gflop_a_token": flops / 1e9, "mfu": tokens_per_s * flops / peak if peak else None, "micro_batch": micro}
    if plan.device.type == "cuda":
        row["peak_gib"] = torch.cuda.max_memory_allocated(plan.device) / 2**30
    return row


class _Unpadded(LabelledSequences):
    """Sequences of one length, label by label, without a padding mask, like windows of prepared text."""

    def batches(self, batch_size: int) -> Iterator[Batch]:
        for batch in super().batches(batch_size):
            yield batch._replace(attention_mask_BT=None)


def statistics_rows(plan: Plan) -> Iterator[Row]:
    """Times the pass that sums expert weights by label, and a forward pass over the same batches."""
    for form, short in FORMS.items():
        model = monet(plan, form, plan.dtype)
        # Hashing the weights takes seconds once in each pass, regardless of the pass's length.
        model.fingerprint = lambda: "benchmark"
        sequences = random_tokens(plan, 4 * plan.batch, plan.seq_len).tolist()
        labels = [f"label {number}" for number in range(plan.labels)]
        data: Any = _Unpadded(labels, sequences, [n * plan.labels // len(sequences) for n in range(len(sequences))])
        seconds = {"forward": [], "statistics": []}
        for _ in range(1 + plan.steps // 2):
            for name, run in {"forward": _forward_pass, "statistics": _statistics_pass}.items():
                started = time.perf_counter()
                run(plan, model, data)
                seconds[name].append(time.perf_counter() - started)
        ms = {name: value * 1e3 for name, value in medians({n: v[1:] for n, v in seconds.items()}).items()}
        ratio = ms["statistics"] / ms["forward"]
        yield {"form": short, "labels": plan.labels, "tokens": 4 * plan.batch * plan.seq_len,
               "ms_forward": ms["forward"], "ms_statistics": ms["statistics"], "ratio": ratio,
               "targets": {f"G13 {short}": ratio}}  # fmt: skip
        del model
        free(plan.device)


@torch.no_grad()
def _forward_pass(plan: Plan, model: MonetForCausalLM, data: LabelledSequences) -> None:
    for batch in data.batches(plan.batch):
        model.model(input_ids=batch.input_ids_BT.to(plan.device), use_cache=False)
    if plan.device.type == "cuda":
        torch.cuda.synchronize(plan.device)


def _statistics_pass(plan: Plan, model: MonetForCausalLM, data: Any) -> None:
    collect(model, data, batch_size=plan.batch, progress=False)
