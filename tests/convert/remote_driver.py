"""Results of a model as named tensors, computed here with the package's class, and as a script with an export's code.

The script must not see the package: `python -I remote_driver.py FOLDER RESULTS SCRATCH`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PROMPT = [[5, 17, 33, 8, 41], [9, 12, 7, 60, 3]]
GENERATION = {"max_new_tokens": 8, "min_new_tokens": 8}


def measure(model: Any, classes: Any) -> dict[str, Tensor]:
    """Logits, losses, gradients and generated tokens, with and without masks; `classes` has ExpertMask, RouterLoss."""
    ids = torch.tensor(PROMPT)
    padded = torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    mask = classes.ExpertMask.random(model.config, 20, seed=3)
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        out = model(ids, labels=ids, output_router_probs=True)
        found |= {
            "logits": out.logits,
            "loss": out.loss,
            "uniformity": out.uniformity_loss,
            "g1": next(probs for probs in out.router_probs if probs is not None)[0],
        }
        found["logits, padded"] = model(ids, attention_mask=padded).logits[padded.bool()]
        found["logits, mask argument"] = model(ids, expert_mask=mask).logits
        found["logits, one mask a row"] = model(ids, expert_mask=[mask, None]).logits
        with mask.applied_to(model):
            found["logits, mask context"] = model(ids).logits
            found["greedy, mask context"] = model.generate(ids, do_sample=False, **GENERATION)
        for cache in (True, False):
            found[f"greedy, cache={cache}"] = model.generate(ids, do_sample=False, use_cache=cache, **GENERATION)
        torch.manual_seed(7)
        found["sampled"] = model.generate(ids, do_sample=True, **GENERATION)
        found["beams"] = model.generate(ids, num_beams=3, do_sample=False, **GENERATION)
        found["stored mask"] = torch.zeros(1) if model.expert_mask is None else model.expert_mask.keep_REE.float()
    model.train()
    model(ids, labels=ids, router_loss=classes.RouterLoss()).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and ("layers.0.moe" in name or "layers.0.mlp" in name or "router" in name):
            found[f"gradient of {name}"] = parameter.grad.clone()
    found |= {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
    model.zero_grad()
    model.eval()
    return {name: tensor.float().contiguous() for name, tensor in found.items()}


def module_of(model: Any) -> Any:
    return sys.modules[type(model).__module__]


def main(folder: str, results: str, scratch: str) -> None:
    sys.modules["monet"] = None  # type: ignore[assignment]  # importing it fails from here on
    import transformers
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    module = module_of(model)
    assert module.__name__.startswith("transformers_modules."), module.__name__
    assert isinstance(AutoConfig.from_pretrained(folder, trust_remote_code=True), module.MonetConfig)
    # AutoModel comes last: a head must have found its body without it before
    for auto in sorted(set(model.config.auto_map) - {"AutoConfig"}, reverse=True):
        made = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True)
        assert f"modeling_monet.{type(made).__name__}" == model.config.auto_map[auto], auto
        assert made.expert_mask == model.expert_mask, auto
    model.save_pretrained(scratch)
    again = AutoModelForCausalLM.from_pretrained(scratch, trust_remote_code=True)
    assert (Path(scratch) / "modeling_monet.py").read_text() == (Path(folder) / "modeling_monet.py").read_text()
    found = measure(model, module)
    found |= {
        f"reloaded: {name}": tensor for name, tensor in measure(again, sys.modules[type(again).__module__]).items()
    }
    save_file(found, results)
    assert [name for name in sys.modules if name.split(".")[0] == "monet"] == ["monet"]


if __name__ == "__main__":
    main(*sys.argv[1:])
