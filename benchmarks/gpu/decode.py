"""One token at a time: experts and router, and the whole model, reading all weights or only the active keys'.

Launching such small kernels takes longer than running them, so each step is captured in a CUDA graph and replayed.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import StaticCache

from benchmarks.cpu_layer import FORWARD
from benchmarks.gpu.layers import GROUP_LAYERS
from benchmarks.gpu.models import monet, random_tokens
from benchmarks.gpu.parts import build, call, cast_gates, make_inputs
from benchmarks.gpu.plan import FORMS, Plan, Row, environment, free, medians
from benchmarks.measure import time_on_device
from monet import MonetForCausalLM
from monet.model.experts import lay_out_for_decoding

Module = TypeVar("Module", bound=nn.Module)

# The environment of each path. Output weights are laid out for `sparse`; `in place` keeps the checkpoint's layout.
PATHS = {
    "dense": {"MONET_DECODE": "dense"},
    "sparse": {"MONET_DECODE": "sparse", "MONET_DECODE_COPY": "1"},
    "in place": {"MONET_DECODE": "sparse", "MONET_DECODE_COPY": "0"},
}
# Calls before the timed steps: warm-up, and the calls that precede a capture.
_SPARE_STEPS = 16


def on_path(path: str, run: Callable[[], object]) -> object:
    """Run with the decode path forced."""
    with environment(**PATHS[path]):
        return run()


def rows(plan: Plan) -> Iterator[Row]:
    """Batch 1, k as planned: milliseconds of a layer's experts and router/4, then the model's tokens a second."""
    yield from _part_rows(plan)
    for form, short in FORMS.items():
        found: dict[str, Row] = {}
        for path in ("dense", "sparse"):
            found[path] = on_path(path, partial(_model_row, plan, form, short, path))  # type: ignore[assignment]
            yield found[path]
            free(plan.device)
        ratio = found["sparse"]["tokens_per_s"] / found["dense"]["tokens_per_s"]
        yield {"form": short, "what": "model, sparse / dense", "ratio": ratio, "targets": {f"G11 {short}": ratio}}


def prepared(path: str, module: Module) -> Module:
    """The module with its output weights in the memory layout of the path."""
    if path == "sparse":
        lay_out_for_decoding(module)
    return module


def _part_rows(plan: Plan) -> Iterator[Row]:
    parts = build(plan, plan.shape)
    make_inputs(plan, plan.shape, parts.router, plan.seq_len)
    inputs = cast_gates(make_inputs(plan, plan.shape, parts.router, 1, settle=False))
    router, _ = graphed(call(parts.router.ours, "router", FORWARD, inputs), plan.device)
    router_ms = medians(time_on_device({"router": router}, plan.device, plan.rounds))["router"] / GROUP_LAYERS
    for form, short in FORMS.items():
        runs, graphs = {}, []
        for path in PATHS:
            experts = prepared(path, copy.deepcopy(parts.experts[form].ours))
            runs[path], is_graph = graphed(partial(on_path, path, call(experts, form, FORWARD, inputs)), plan.device)
            graphs.append(is_graph)
        ms = {
            path: taken + router_ms for path, taken in medians(time_on_device(runs, plan.device, plan.rounds)).items()
        }
        ratio = ms["dense"] / ms["sparse"]
        yield {"form": short, "what": "experts and router/4", "ms_dense": ms["dense"], "ms_sparse": ms["sparse"],
               "ms_in_place": ms["in place"], "ms_router_4": router_ms, "graph": all(graphs), "ratio": ratio,
               "targets": {f"G10 {short}": ratio}}  # fmt: skip


def _model_row(plan: Plan, form: str, short: str, path: str) -> Row:
    length = plan.prompt + plan.decoded + _SPARE_STEPS
    model = prepared(path, monet(plan, form, plan.dtype, max_position_embeddings=length))
    step, is_graph = graphed(Decoding(model, random_tokens(plan, 1, plan.prompt), length).step, plan.device)
    ms = medians(time_on_device({"step": step}, plan.device, plan.decoded))["step"]
    return {"form": short, "what": f"model, {path}", "ms": ms, "tokens_per_s": 1e3 / ms, "graph": is_graph}


class Decoding:
    """Greedy decoding in which every step makes the same calls on the same memory, as a CUDA graph needs.

    Args:
        model: in eval mode.
        prompt_BT: (1, T) tokens to begin with.
        length: tokens that fit in the cache, including the prompt.
    """

    @torch.no_grad()
    def __init__(self, model: MonetForCausalLM, prompt_BT: Tensor, length: int) -> None:
        prompt, device = prompt_BT.shape[1], prompt_BT.device
        self.model, self.cache = model, StaticCache(config=model.config, max_cache_len=length)
        logits = model(input_ids=prompt_BT, cache=self.cache, use_cache=True).logits
        self.token_11 = logits[:, -1:].argmax(-1)
        self.position_1 = torch.full((1,), prompt, device=device)
        # Created here, because transformers would read values from the device to create it.
        self.seen_111T = (torch.arange(length, device=device) <= prompt)[None, None, None]

    @torch.no_grad()
    def step(self) -> Tensor:
        """One more token, (1, 1)."""
        logits = self.model(
            input_ids=self.token_11, attention_mask=self.seen_111T, position_ids=self.position_1[None],
            cache=self.cache, use_cache=True,
        ).logits  # fmt: skip
        self.token_11.copy_(logits[:, -1:].argmax(-1))
        self.position_1.add_(1)
        self.seen_111T.index_fill_(3, self.position_1, True)
        return self.token_11


def graphed(run: Callable[[], object], device: torch.device) -> tuple[Callable[[], object], bool]:
    """The call as one launch of a CUDA graph, and True; the unchanged call and False if it cannot be captured."""
    if device.type != "cuda":
        return run, False
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except Exception as error:
        torch.cuda.synchronize(device)
        warnings.warn(f"no CUDA graph of a step: {type(error).__name__}: {error}", stacklevel=2)
        return run, False
    return graph.replay, True
