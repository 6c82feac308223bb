"""A short check of the model against recorded numbers: run `python -m tests.smoke` (a few seconds, no pytest).

Two tiny models, one for each decomposition, get weights from a formula. Their logits, greedy tokens and losses with
and without a mask must equal smoke.safetensors, and generation must give the same tokens with and without a cache.
The numbers were recorded in float64 with torch 2.13.0 and transformers 5.24.0 (`--record`). The same code then
reproduced numbers of the authors' implementation. The command prints the versions of all dependencies, then one
line for each check. The exit code is 1 if a number differs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from monet import ExpertMask, MonetForCausalLM
from tests.model.tiny import FORMS, tiny_config, tokens
from tests.tolerances import assert_close

RECORDED = Path(__file__).with_name("smoke.safetensors")
NEW_TOKENS = 12
# Chosen so that no greedy token is near a tie (logits differ by over 2e-4) and that few tokens repeat.
START = {"vertical": 45.0, "horizontal": 47.0}
REMOVED = {0: [0, 1, 7, 8, 14, 20, 21, 27, 35], 1: [2, 3, 9, 16, 22, 23, 30, 31]}


def formula_model(form: str, dtype: torch.dtype = torch.float32) -> MonetForCausalLM:
    """A tiny model whose every weight and statistic comes from a sine, identical under every release of torch."""
    model = MonetForCausalLM(tiny_config(form)).to(dtype).eval()
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    with torch.no_grad():
        for place, name in enumerate(sorted(name for name in tensors if "inv_freq" not in name)):
            tensor = tensors[name]
            if not tensor.is_floating_point():
                tensor.fill_(1000)
                continue
            wave = torch.sin((torch.arange(tensor.numel(), dtype=torch.float64) + 1) * (START[form] + place) ** 0.5)
            if "running_var" in name:
                wave = 0.5 + wave.abs()
            elif "norm" in name and "running" not in name:
                wave = 1 + 0.1 * wave
            elif "embed" not in name:
                wave = 0.4 * wave
            # through float32, so that a float64 model has the same weights
            tensor.copy_(wave.to(torch.float32).reshape(tensor.shape))
    return model


def observed(model: MonetForCausalLM, use_cache: bool = True) -> dict[str, Tensor]:
    """Results of the model for two rows, the second padded on the left.

    Returns:
        logits (B, T, V) at real tokens, zero elsewhere; tokens (B, 12) int64, greedy; loss and masked_loss, both [],
        nats per token.
    """
    input_ids = tokens(B=2, T=9)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, :3] = 0
    labels = torch.where(attention_mask.bool(), input_ids, -100)
    labels[1, 3] = -100  # its logits belong to a padded position
    mask = ExpertMask.from_removed(model.config, REMOVED)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    with torch.no_grad():
        plain = model(**inputs, labels=labels, use_cache=False)
        with mask.applied_to(model):
            masked = model(**inputs, labels=labels, use_cache=False)
        generated = model.generate(
            **inputs,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            use_cache=use_cache,
        )
    return {
        "logits": plain.logits * attention_mask[..., None],
        "tokens": generated[:, -NEW_TOKENS:].clone(),
        "loss": plain.loss,
        "masked_loss": masked.loss,
    }


def check(form: str) -> list[str]:
    """Compare the numbers of one decomposition with the recorded ones; returns one line for each comparison.

    Raises:
        AssertionError: a number differs.
    """
    recorded = {name.removeprefix(f"{form}."): tensor for name, tensor in load_file(RECORDED).items()}
    model = formula_model(form)
    got = observed(model)
    for name in ("logits", "loss", "masked_loss"):
        assert_close(f"{form} {name}", got[name], recorded[name])
    assert abs(recorded["masked_loss"] - recorded["loss"]) > 0.01, "the recorded mask does nothing"
    assert torch.equal(got["tokens"], recorded["tokens"]), f"{form}: cached generation gives other tokens"
    uncached = observed(model, use_cache=False)["tokens"]
    assert torch.equal(uncached, recorded["tokens"]), f"{form}: generation without a cache gives other tokens"
    return [
        f"{form}: logits and loss are the recorded ones",
        f"{form}: {NEW_TOKENS} greedy tokens of two rows are the recorded ones, with and without a cache",
        f"{form}: the loss with {sum(map(len, REMOVED.values()))} experts removed is the recorded one",
    ]


def record() -> None:
    """Write the numbers of this environment, computed in float64."""
    found = {f"{form}.{name}": t for form in FORMS for name, t in observed(formula_model(form, torch.float64)).items()}
    save_file({name: t.to(torch.float32) if t.is_floating_point() else t for name, t in found.items()}, RECORDED)


def versions() -> dict[str, str]:
    """The versions of Python and of each dependency of the installed package; "absent" if it is not installed."""
    found = {"python": platform.python_version()}
    for line in importlib.metadata.requires("monet-experts") or []:
        name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
        if "extra ==" not in line:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = "absent"
    return found


def main(argv: list[str] | None = None) -> int:
    """Print versions and checks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write smoke.safetensors from this environment")
    if parser.parse_args(argv).record:
        record()
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    try:
        for form in FORMS:
            print(*check(form), sep="\n")
    except AssertionError as error:
        print(f"FAILED {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
