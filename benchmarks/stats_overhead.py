"""Measures the cost of collecting routing statistics compared with a plain forward, in turns in one process.

    python -m benchmarks.stats_overhead [--json FILE] [--quick] [--device cuda] [--dtype bfloat16]

There are two models with random weights: the demo's shape, and one routing group (four layers) of the 1.4B shape. The
routers' running statistics are set so that as many keys fire as in training. Every row is a pass of a few batches
through `collect`, or through the reader of `monet index`. It is compared with the same batches through the model's body
without hooks. `ratio` is the median of the ratios of each round, and `low` and `high` are their quartiles. `of_whole`
compares with a forward that includes the output head, which collecting does not need. On a CPU the milliseconds are
processor time, which depends less on other work on the machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor

from benchmarks.measure import time_in_turns
from benchmarks.tables import markdown
from monet import MonetConfig, MonetForCausalLM
from monet.cpu import keep_freed_memory
from monet.eval.attribution.statistics.exclusion import Exclusion
from monet.eval.attribution.statistics.passes import read_text
from monet.eval.attribution.stats import Wanted, collect
from monet.eval.core.inputs import LabelledSequences
from monet.eval.core.loading import evaluating
from monet.eval.index.build import TOKEN_MEMORY
from monet.eval.index.passes import chunks
from monet.eval.index.reader import IndexReader
from monet.eval.index.tables import Sizes
from monet.eval.index.units import Units
from monet.files import atomic_write_json

LIMIT = 1.15
SHAPES: dict[str, dict[str, Any]] = {
    "demo": {
        "vocab_size": 2048, "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4, "moe_experts": 32,
        "moe_dim": 12, "moe_heads": 4, "moe_topk": 4, "moe_groups": 2, "max_position_embeddings": 512,
    },
    "1.4B, 4 layers": {
        "vocab_size": 32000, "hidden_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 16,
        "moe_experts": 512, "moe_dim": 16, "moe_heads": 8, "moe_topk": 8, "moe_groups": 4,
        "max_position_embeddings": 2048,
    },
}  # fmt: skip
# Batches of a pass and tokens of a batch of 8 sequences; maxima become stable during a pass.
PASSES = {"demo": (16, 2048), "1.4B, 4 layers": (2, 1024)}
COLUMNS = {"model": "", "collected": "", "ms": ".1f", "ratio": ".3f", "low": ".3f", "high": ".3f", "of_whole": ".3f"}


def build(shape: str, device: str, dtype: torch.dtype) -> MonetForCausalLM:
    """A model with random weights whose routers let about `moe_topk` keys through."""
    torch.manual_seed(0)
    model = MonetForCausalLM(MonetConfig(**SHAPES[shape], moe_decompose="vertical"))
    model = cast(Any, model).to(device, dtype).eval()
    ids_BT = torch.randint(model.config.vocab_size, (2, 128), device=device)
    for router in model.routers():
        for axis, norm in ((router.w1, router.norm1), (router.w2, router.norm2)):
            handle = axis.register_forward_hook(partial(_calibrate, norm))
            with torch.no_grad():
                model.base_model(input_ids=ids_BT, use_cache=False)
            handle.remove()
    return model


def _calibrate(norm: Any, _: Any, __: Any, logits: Tensor) -> None:
    z_XHE = logits.detach().float().reshape(-1, *norm.running_mean.shape, logits.shape[-1] // len(norm.running_mean))
    norm.running_mean.copy_(z_XHE.mean((0, 2)))
    norm.running_var.copy_(z_XHE.var((0, 2)))


def contestants(model: MonetForCausalLM, batches: int, batch_size: int, length: int) -> dict[str, Callable[[], object]]:
    """A pass through the body, through the whole model, and through `collect` with each option."""
    generator = torch.Generator().manual_seed(1)
    vocabulary: int = model.config.vocab_size
    ids_SBT = torch.randint(vocabulary, (batches, batch_size, length), generator=generator)
    count = batches * batch_size
    data = LabelledSequences(["a", "b"], ids_SBT.flatten(0, 1).tolist(), [n * 2 // count for n in range(count)])
    scored = dataclasses.replace(data, scores=torch.rand(count, length, generator=generator).tolist())
    model.__dict__["fingerprint"] = lambda: ""  # hashing all weights is left out: one hash for each pass
    strongest = collect(model, data, batch_size=batch_size, progress=False).strongest(64).tolist()
    coactivation = dict(enumerate(strongest))
    runs: dict[str, tuple[LabelledSequences, Wanted]] = {
        "sums": (data, Wanted(permutations=0)),
        "sums, labels permuted once": (data, Wanted()),
        "scores": (scored, Wanted(permutations=0)),
        "scores, permuted once": (scored, Wanted()),
        "firing": (data, Wanted(firing=True, firing_above=0.1, permutations=0)),
        "firing, labels permuted once": (data, Wanted(firing=True, firing_above=0.1)),
        "maxima": (data, Wanted(maxima=True, permutations=0)),
        "coactivation of 64": (data, Wanted(coactivation=coactivation, permutations=0)),
        "all of these": (scored, Wanted(True, 0.1, True, coactivation)),
    }

    def forward(part: Any) -> None:
        with evaluating(model):
            for ids_BT in ids_SBT:
                part(input_ids=ids_BT.to(model.device), use_cache=False)
        _wait(model)

    def collecting(text: LabelledSequences, wanted: Wanted) -> None:
        collect(model, text, batch_size=batch_size, wanted=wanted, progress=False)
        _wait(model)

    return {
        "body": partial(forward, model.base_model),
        "whole": partial(forward, model),
        **{name: partial(collecting, *what) for name, what in runs.items()},
        "index": partial(_index, model, data),
    }


def _index(model: MonetForCausalLM, data: LabelledSequences) -> None:
    """The pass of `monet index`, without its files."""
    config: Any = model.config
    units = Units(len(model.routers()), config.moe_experts)
    exact = units.groups * units.per_group * config.vocab_size * 4 <= TOKEN_MEMORY << 20
    sizes = Sizes(units.per_group, 16, len(data.labels), config.moe_heads, config.vocab_size if exact else 0, 0)
    read_text(model, chunks(data), IndexReader(units, sizes, model.device, Exclusion()), lambda *_: None)
    _wait(model)


def _wait(model: MonetForCausalLM) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def measure(shape: str, device: str, dtype: torch.dtype, rounds: int) -> list[dict[str, Any]]:
    """Rows of one model."""
    model = build(shape, device, dtype)
    batches, tokens = PASSES[shape]
    runs = contestants(model, batches, 8, tokens // 8)
    on_cpu = model.device.type == "cpu"
    samples = time_in_turns(runs, rounds, 0.05, time.process_time if on_cpu else time.perf_counter)
    rows = []
    for name in runs:
        ratios = [mine / plain for mine, plain in zip(samples[name], samples["body"], strict=True)]
        whole = [mine / plain for mine, plain in zip(samples[name], samples["whole"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        row = {"ms": statistics.median(samples[name]), "ratio": middle, "low": low, "high": high}
        rows.append({"model": shape, "collected": name, **row, "of_whole": statistics.median(whole)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--quick", action="store_true", help="only the demo's shape, three rounds")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    keep_freed_memory()
    rounds = 3 if options.quick else options.rounds
    rows: list[dict[str, Any]] = []
    for shape in SHAPES if not options.quick else ["demo"]:
        rows += measure(shape, options.device, getattr(torch, options.dtype), rounds)
    on_gpu = options.device.startswith("cuda")
    where = torch.cuda.get_device_name(options.device) if on_gpu else f"{platform.processor() or platform.machine()}"
    conditions = {
        "device": where,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": options.dtype,
        "rounds": rounds,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.date.today().isoformat(),
    }
    print(", ".join(f"{name} {value}" for name, value in conditions.items()) + "\n")
    print(markdown(rows, COLUMNS))
    over = [row for row in rows if row["collected"] not in ("body", "whole") and row["ratio"] > LIMIT]
    for row in over:
        print(f"over {LIMIT}: {row['model']}, {row['collected']}: {row['ratio']:.3f}")
    if options.json:
        atomic_write_json(options.json, {"conditions": conditions, "rows": rows, "limit": LIMIT})


if __name__ == "__main__":
    main()
