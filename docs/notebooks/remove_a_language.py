# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Remove a language
#
# This notebook finds the experts that a small model uses for Italian, removes them, and measures what the model
# loses. It uses the model of `make demo`. If you have not run `make demo`, the first cell trains a smaller model,
# which takes about a minute.
#
# To run it, clone the repository, `pip install -e ".[docs]"`, and open `docs/notebooks/remove_a_language.py` in
# Jupyter as a notebook. Jupytext pairs the file with a notebook.

# %%
import matplotlib.pyplot as plt
import torch
from quick_model import model_and_text

from monet import MonetForCausalLM
from monet.eval.attribution import selection, stats
from monet.eval.core import inputs
from monet.eval.core.controls import Controls
from monet.eval.suites.loss import ablate
from monet.serve.generate import load

LANGUAGE = "italian"

folder, text = model_and_text()
model, tokenizer = load(folder)
assert isinstance(model, MonetForCausalLM)
config = model.config
experts = config.moe_experts**2
print(f"{config.num_hidden_layers} layers, {config.num_routing_groups} routers, {experts} experts for each router")

# %% [markdown]
# ## Find the experts
#
# Each router gives every token two vectors of probabilities per head, `g1` and `g2`. Expert (i, j) has the weight
# `sum over heads of g1[i] * g2[j]` at that token. `collect` adds up these weights over the text of each domain.
# The text comes from the split `identify`, which the evaluation below does not use.

# %%
windows = inputs.PreparedWindows(text, "identify", seq_len=128, max_windows=100)
statistics = stats.collect(model, windows, progress=False)
dict(zip(statistics.labels, statistics.tokens_C.tolist(), strict=True))

# %% [markdown]
# An expert belongs to a domain if its mean weight there is at least twice its mean weight in every other domain.
# This is the rule of the paper. Most experts belong to no domain: they are generalists, and they stay.

# %%
masks = selection.select(statistics, ratio=2.0)
for label, mask in masks.items():
    print(f"{label:8} {mask.num_removed:4} of {mask.num_experts} experts, by routing group: {mask.removed_per_group}")

# %% [markdown]
# ## Remove them
#
# A mask works inside a `with` block. Outside of the block the model is unchanged, to the last bit.

# %%
mask = masks[LANGUAGE]
sentences = {
    "italian": "Il programma non è in grado di aprire il file perché la cartella non esiste.",
    "english": "The program is not able to open the file because the folder does not exist.",
}


def loss_of(sentence: str) -> float:
    """Mean next-token loss in nats."""
    ids = tokenizer(sentence, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return float(model(ids, labels=ids).loss)


before = {name: loss_of(sentence) for name, sentence in sentences.items()}
with mask.applied_to(model):
    without = {name: loss_of(sentence) for name, sentence in sentences.items()}
after = {name: loss_of(sentence) for name, sentence in sentences.items()}
assert before == after
for name in sentences:
    print(f"{name}: loss {before[name]:.2f} before, {without[name]:.2f} without the experts of {LANGUAGE}")

# %% [markdown]
# The model also writes other text. It is far too small to write good sentences in any language.


# %%
def continuation(prompt: str) -> str:
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    torch.manual_seed(0)
    out = model.generate(ids, max_new_tokens=40, do_sample=True, temperature=0.7, pad_token_id=tokenizer.pad_token_id)
    return str(tokenizer.decode(out[0], skip_special_tokens=True))


print("before: ", continuation("Il programma "))
with mask.applied_to(model):
    print("without:", continuation("Il programma "))

# %% [markdown]
# ## Measure it
#
# One sentence proves little. `ablate` measures every domain on held-out text, before and after the removal. It
# also removes random experts, the same number in each routing group, 39 times. If random removals hurt Italian as
# much, then the chosen experts would be nothing special.

# %%
held_out = inputs.PreparedWindows(text, "evaluate", seq_len=128, max_windows=12)
result = ablate.ablate(
    model,
    {LANGUAGE: mask},
    held_out,
    out=folder.parent / "notebook-removal",
    controls=Controls(count=39),
    progress=False,
)
assert result is not None
(verdict,) = result.domains
low, high = verdict.target_interval
largest = max(verdict.random_per_control)
print(f"{LANGUAGE}: loss {verdict.target_delta:+.2f}, between {low:+.2f} and {high:+.2f}")
print(f"most affected other domain: {verdict.others_max_name}, {verdict.others_max_delta:+.2f}")
print(f"random removals on {LANGUAGE}: mean {verdict.random_delta:+.3f}, largest {largest:+.3f}")
print(f"p = {verdict.p:.3f}; the removal {'passes' if verdict.passes else 'does not pass'}")

# %%
names = [baseline.name for baseline in result.evaluated]
changes = [change.value for change in result.delta[0]]
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.bar(names, changes, color=["tab:red" if name == LANGUAGE else "tab:gray" for name in names])
axes.axhline(largest, linestyle="--", color="black", label=f"largest random removal on {LANGUAGE}")
axes.set_ylabel("increase of loss, nats per token")
axes.set_title(f"without the experts of {LANGUAGE}")
axes.legend()
plt.show()

# %% [markdown]
# The commands `monet stats`, `monet select` and `monet ablate` do the same for all domains at once, and `monet
# report` makes a page of the result. [Knowledge removal](../knowledge-removal.md) defines every number, and [the
# second notebook](find_the_experts.py) looks at single experts.
