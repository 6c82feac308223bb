"""`python -m benchmarks.scaling_tables`: the tables of docs/scaling.md that need only configurations."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.tables import markdown
from monet.costs.communication import sent_bytes
from monet.costs.flops import forward_flops_per_token, parameter_counts
from monet.costs.hardware import ACCELERATORS
from monet.costs.memory import STRATEGIES, layer_bytes_per_token, state_bytes, widths
from monet.planning.choices import GIB, Assumptions, Choice, Run, all_choices, best, choice, configured
from monet.planning.plan import read_run
from monet.training.configs import read_training_config
from monet.training.settings import ModelShape

PRETRAIN = Path(__file__).resolve().parent.parent / "configs" / "pretrain"
SIZES = {"850M": "monet_850m_vd", "1.4B": "monet_1.4b_vd", "4.1B": "monet_4.1b_vd"}
GPUS = (8, 64, 512)
CHANGES: dict[str, dict[str, Any]] = {
    "none": {},
    "N x 4 (E 1024, M 16)": {"moe_experts": 1024},
    "N x 16 (E 2048, M 16)": {"moe_experts": 2048},
    "N x 4 at the same width (E 1024, M 8)": {"moe_experts": 1024, "moe_dim": 8},
    "N x 16 at the same width (E 2048, M 4)": {"moe_experts": 2048, "moe_dim": 4},
    "D x 1.5, with heads and M (3072, H 12, M 24)": {
        "hidden_size": 3072, "num_attention_heads": 24, "moe_heads": 12, "moe_dim": 24
    },
    "D x 2, with heads and M (4096, H 16, M 32)": {
        "hidden_size": 4096, "num_attention_heads": 32, "moe_heads": 16, "moe_dim": 32
    },
    "T x 4 (8,192)": {"seq_len": 8192},
    "T x 16 (32,768)": {"seq_len": 32768},
    "a router in every layer (G 1)": {"moe_groups": 1},
}  # fmt: skip
RELEASED = {"model": "", "GPUs": "", "configured": "", "its GiB": ".1f", "quickest that fits": "", "GiB": ".1f",
            "step, s": ".2f", "waiting": ".0%", "tokens/s": ",.0f", "days": ".2f", "GPU hours": ",.0f"}  # fmt: skip
GROWTH = {"change from 1.4B (E 512, M 16, D 2048, T 2048, G 4)": "", "parameters, B": ".3f",
          "forward GFLOP, token": ".2f", "saved KiB, token, layer": ".0f"}  # fmt: skip


def files(name: str) -> list[Path]:
    return [PRETRAIN / "recipe.yaml", PRETRAIN / f"{name}.yaml"]


def h100s(gpus: int) -> Assumptions:
    """Assumptions of `monet plan --gpu h100 --gpus N`."""
    return Assumptions(ACCELERATORS["h100"], gpus, gpus_per_node=8, mfu=0.4, network_bandwidth=50e9)


def described(choice: Choice | None) -> str:
    if choice is None:
        return "cannot be dealt out"
    recomputing = ", recomputing" if choice.checkpointing else ""
    return f"{choice.name} {choice.micro_batch} x {choice.accumulate}{recomputing}"


def released() -> list[dict[str, Any]]:
    """`monet plan` for the released sizes."""
    rows = []
    for size, name in SIZES.items():
        run = read_run(files(name))
        for gpus in GPUS:
            now = configured(run, h100s(gpus))
            found = best(all_choices(run, h100s(gpus)), now)
            assert found is not None
            seconds = found.step_seconds
            rows.append({
                "model": size, "GPUs": gpus, "configured": described(now), "quickest that fits": described(found),
                "its GiB": now and now.total_bytes / GIB, "GiB": found.total_bytes / GIB, "step, s": seconds,
                "waiting": found.waiting_seconds / seconds, "tokens/s": run.tokens / seconds,
                "days": run.steps * seconds / 86400, "GPU hours": run.steps * seconds * gpus / 3600,
            })  # fmt: skip
    return rows


def growth() -> list[dict[str, Any]]:
    """Parameters, operations and saved bytes of models that differ from 1.4B in one respect."""
    shape = read_training_config(files(SIZES["1.4B"])).model.shape.as_dict()
    rows = []
    for change, values in CHANGES.items():
        values = dict(values)
        seq_len = values.pop("seq_len", 2048)
        config = ModelShape(**{**shape, **values}).config()
        rows.append(dict(zip(GROWTH, (
            change, sum(parameter_counts(config).values()) / 1e9,
            sum(forward_flops_per_token(config, seq_len).values()) / 1e9,
            layer_bytes_per_token(config, widths("bf16-mixed", "zero1")) / 1024,
        ), strict=True)))  # fmt: skip
    return rows


def runs(many: tuple[int, ...] = GPUS) -> list[tuple[dict[str, Any], Run, int, int]]:
    """First cells of a row, run, GPUs, and micro-batches of a step (as configured, if a GPU gets enough windows)."""
    found = []
    for size in ("1.4B", "4.1B"):
        run = read_run(files(SIZES[size]))
        for gpus in many:
            accumulate = max(1, run.windows // gpus // run.micro_batch)
            found.append(({"model": size, "GPUs": gpus, "A": accumulate}, run, gpus, accumulate))
    return found


def states() -> list[dict[str, Any]]:
    """GiB of weights, gradients and optimiser on a GPU."""
    rows = []
    for row, run, gpus, _ in runs():
        for name in STRATEGIES:
            parts = state_bytes(run.config, run.precision, name, gpus)
            row[name] = (sum(parts.values()) - parts["buffers"]) / GIB
        rows.append(row)
    return rows


def buffers() -> list[dict[str, Any]]:
    """GiB of communication buffers on a GPU."""
    return [
        row | {name: state_bytes(run.config, run.precision, name, gpus)["buffers"] / GIB for name in STRATEGIES}
        for row, run, gpus, _ in runs((64,))
    ]


def volumes() -> list[dict[str, Any]]:
    """GB that a GPU sends in a step."""
    return [
        row | {name: sum(sent_bytes(run.config, run.precision, name, gpus, accumulate)) / 1e9 for name in STRATEGIES}
        for row, run, gpus, accumulate in runs()
    ]


def waiting() -> list[dict[str, Any]]:
    """Share of a step that waits for communication; in parentheses if memory does not suffice."""
    rows = []
    for row, run, gpus, accumulate in runs((8, 64, 128, 256, 512)):
        for name in STRATEGIES:
            found = choice(run, h100s(gpus), name, run.windows // gpus // accumulate, checkpointing=False)
            share = f"{found.waiting_seconds / found.step_seconds:.0%}"
            row[name] = share if found.fits else f"({share})"
        rows.append(row)
    return rows


def tables() -> list[str]:
    """All tables, as on the page."""
    each, first = dict.fromkeys(STRATEGIES, ".1f"), {"model": "", "GPUs": ""}
    return [
        markdown(released(), RELEASED), markdown(growth(), GROWTH), markdown(states(), {**first, **each}),
        markdown(buffers(), {"model": "", **each}), markdown(volumes(), {**first, "A": "", **each}),
        markdown(waiting(), {**first, "A": "", **each}),
    ]  # fmt: skip


if __name__ == "__main__":
    print("\n\n".join(tables()))
    sys.exit(0)
