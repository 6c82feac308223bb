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
# # Find the experts of a domain
#
# Which experts does a model use for PHP, at which words, and how much does it need them? This notebook looks at
# single experts. It uses the model of `make demo`, or trains a smaller one in about a minute.
#
# To run it, clone the repository, `pip install -e ".[docs]"`, and open `docs/notebooks/find_the_experts.py` in
# Jupyter as a notebook. Jupytext pairs the file with a notebook.

# %%
import math

import matplotlib.pyplot as plt
import torch
from quick_model import model_and_text

from monet import MonetForCausalLM
from monet.eval.attribution import selection, stats
from monet.eval.attribution.rules import Top
from monet.eval.attribution.stats import Wanted
from monet.eval.core import inputs
from monet.serve.generate import load

DOMAIN = "php"

folder, text = model_and_text()
model, tokenizer = load(folder)
assert isinstance(model, MonetForCausalLM)

# %% [markdown]
# ## Rank the experts
#
# `collect` reads text of all domains once. It adds up the weight of every expert, and counts the tokens at which
# each expert is active. Letters behind a name are its dimensions: C domains, R routing groups, E by E experts.

# %%
windows = inputs.PreparedWindows(text, "identify", seq_len=128, max_windows=100)
statistics = stats.collect(model, windows, wanted=Wanted(firing=True), progress=False)
means_CREE = statistics.means()
R, E = means_CREE.shape[1:3]
target = statistics.labels.index(DOMAIN)
others_REE = means_CREE[[c for c in range(len(statistics.labels)) if c != target]].amax(0)
ratio_REE = means_CREE[target] / others_REE.clamp(min=1e-12)

# %% [markdown]
# An expert serves PHP if its mean weight on PHP is much higher than on every other domain. The histogram shows
# this ratio for all experts. The paper takes the experts at a ratio of 2 or more.

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for group in range(R):
    axes.hist(ratio_REE[group].clamp(0.01, 100).log10().flatten(), bins=60, alpha=0.6, label=f"routing group {group}")
axes.axvline(math.log10(2), linestyle="--", color="black", label="ratio 2")
axes.set_xlabel(f"log10 of mean weight on {DOMAIN} / highest mean weight on another domain")
axes.set_ylabel("experts")
axes.legend()
plt.show()

# %% [markdown]
# The ten strongest experts of PHP among those with a ratio of 2 or more. Their share of tokens is the share at
# which they are active.

# %%
firing = statistics.firing
assert firing is not None
share_CREE = firing.fired_CREE / statistics.tokens_C[:, None, None, None]
own_REE = torch.where(ratio_REE >= 2, means_CREE[target], 0.0)
strongest = own_REE.flatten().topk(10).indices.tolist()
places = [(flat // (E * E), flat // E % E, flat % E) for flat in strongest]
print("group  expert  mean weight  ratio  share of tokens: " + "  ".join(statistics.labels))
for group, i, j in places:
    shares = "  ".join(f"{share:.3f}" for share in share_CREE[:, group, i, j].tolist())
    print(f"{group:5}  {i * E + j:6}  {means_CREE[target, group, i, j]:11.4f}  {ratio_REE[group, i, j]:5.1f}  {shares}")

# %% [markdown]
# ## See where an expert is active
#
# `output_router_probs=True` returns the routing probabilities `g1` and `g2` of every routing group. The weight of
# expert (i, j) at a token is the sum over heads of `g1[i] * g2[j]`. Brackets mark the tokens at which the expert
# is active.

# %%
code = """<?php
class Reader {
    public function open(string $name): bool {
        if (!file_exists($name)) {
            throw new Exception("no file " . $name);
        }
        return $this->read($name);
    }
}
"""


def weights_of(sample: str, group: int, i: int, j: int) -> tuple[list[str], torch.Tensor]:
    """The tokens of a sample, and the expert's weight at each."""
    ids = tokenizer(sample, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        routed = model(ids, output_router_probs=True).router_probs
    g1_BTHE, g2_BTHE = [probs for probs in routed if probs is not None][group]
    return [str(tokenizer.decode([token])) for token in ids[0]], (g1_BTHE[0, :, :, i] * g2_BTHE[0, :, :, j]).sum(-1)


for place in places[:3]:
    tokens, weight_T = weights_of(code, *place)
    print(f"routing group {place[0]}, expert {place[1] * E + place[2]}:")
    print("".join(f"[{token}]" if weight > 0 else token for token, weight in zip(tokens, weight_T, strict=True)))

# %% [markdown]
# ## Remove more and more of them
#
# The rule `Top` takes the experts of a domain in the order of their ratio. If they serve PHP, then the loss on
# PHP grows as they go, and the loss on the other domains stays.

# %%
held_out = inputs.PreparedWindows(text, "evaluate", seq_len=128, max_windows=12)


def losses() -> dict[str, float]:
    """Mean next-token loss of each domain in nats per token."""
    sums, counts = torch.zeros(len(held_out.labels)), torch.zeros(len(held_out.labels))
    for batch in held_out.batches(8):
        with torch.no_grad():
            log_probs_BTV = model(batch.input_ids_BT).logits.log_softmax(-1)
        loss_BT = -log_probs_BTV.gather(-1, batch.targets_BT[..., None]).squeeze(-1)
        sums.index_add_(0, batch.label_B, loss_BT.sum(1))
        counts.index_add_(0, batch.label_B, torch.full((len(loss_BT),), float(loss_BT.shape[1])))
    return dict(zip(held_out.labels, (sums / counts).tolist(), strict=True))


before = losses()
curve = {}
for count in (5, 10, 20, 40):
    mask = selection.select_by(statistics, Top(count=count))[DOMAIN]
    with mask.applied_to(model):
        curve[mask.num_removed] = {name: loss - before[name] for name, loss in losses().items()}

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for name in held_out.labels:
    color = "tab:red" if name == DOMAIN else "tab:gray"
    axes.plot(list(curve), [change[name] for change in curve.values()], marker="o", label=name, color=color)
axes.set_xlabel(f"experts of {DOMAIN} removed")
axes.set_ylabel("increase of loss, nats per token")
axes.legend()
plt.show()

# %% [markdown]
# A curve like this needs random controls before you believe it. `monet curve` makes one with controls and
# intervals; see [Knowledge removal](../knowledge-removal.md#curves). Other rules for the choice of experts are in
# the [same page](../knowledge-removal.md#rules).
