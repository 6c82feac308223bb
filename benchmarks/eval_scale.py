"""`python -m benchmarks.eval_scale`: measures the cost of evaluations without the model at growing sizes.

Every figure is measured in a separate process: processor seconds by getrusage, and growth of the peak of resident
memory. Losses and outcomes of programs are made up; the code that reads, keeps and summarises them is real. The
exponent is computed from the last two sizes: 1 means that the cost doubles when the size doubles.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measured import Cost, measured_main, now, spent
from monet import MonetConfig, MonetForCausalLM
from monet.eval.ablation.verdicts import Measured, summarise
from monet.eval.attribution.rules import Top
from monet.eval.attribution.statistics.result import ExpertStatistics
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.conditions import conditions
from monet.eval.core.controls import Controls
from monet.eval.core.document import Bars, Heatmap, Panels, Report
from monet.eval.core.store import ExampleStore
from monet.eval.core.window_losses import WindowLosses
from monet.eval.reporting import png
from monet.eval.scorers.scorers import Failure, Score
from monet.eval.suites.toxicity import measures
from monet.eval.suites.toxicity.prompts import Prompt
from monet.eval.suites.toxicity.scoring import KeptScores
from monet.masks.expert_mask import ExpertMask

GROUPS, KEYS = 6, 512  # as in the 1.4B model


def small_mask(seed: int) -> ExpertMask:
    """Experts of a small model."""
    return ExpertMask(torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(seed)) > 0.1)


def window_losses(domains: Sequence[int], windows: int, seed: int) -> WindowLosses:
    """Made-up losses of windows of some domains, three windows a document."""
    count = len(domains) * windows
    return WindowLosses(
        np.random.default_rng(seed).gamma(9.0, 100.0, count),
        np.full(count, 512),
        np.repeat(np.asarray(domains), windows),
        np.arange(count) // 3,
    )


def verdicts(domains: int, windows: int = 100, seeds: int = 20, on_all: bool = True) -> None:
    """Computes an ablation's result from its losses."""
    names = [f"domain {number}" for number in range(domains)]
    masks = {name: small_mask(number) for number, name in enumerate(names)}

    def losses() -> Iterator[tuple[Measured, WindowLosses]]:
        for number, name in enumerate(names):
            for seed in (None, *range(seeds)):
                of = range(domains) if on_all or seed is None else [number]
                yield (name, seed), window_losses(of, windows, 1 + number)

    whole = window_losses(range(domains), windows, 0)
    summarise(masks, names, whole, losses(), Bootstrap(), {})


def verdicts_on_target(domains: int) -> None:
    """Computes a result from three times the windows, with random masks only on their target."""
    verdicts(domains, windows=300, on_all=False)


def verdicts_by_windows(windows: int) -> None:
    """14 domains with three random masks for each, only on their target."""
    verdicts(14, windows, 3, on_all=False)


def picture(domains: int) -> None:
    """Two heat maps of this many domains as a picture."""
    names = [f"domain {number}" for number in range(domains)]
    values = np.random.default_rng(0).normal(size=(domains, domains)).tolist()
    heatmap = Heatmap("Experts removed", names, names, values, "nats per token", "removed", "evaluated on")
    bars = Bars("Experts removed, % of all", [1.0] * domains, ["1,000 (1.0%)"] * domains)
    report = Report("Knowledge removal", "", [Panels("Increase of loss", [heatmap, heatmap], bars)], {})
    with tempfile.TemporaryDirectory() as folder:
        png.write(report, Path(folder))


def top(labels: int) -> dict[str, float]:
    """`select --rule top` on statistics of the 1.4B model's size."""
    sums_CREE = torch.rand(labels, GROUPS, KEYS, KEYS, generator=torch.Generator().manual_seed(0)).double()
    statistics = ExpertStatistics(
        labels=[str(label) for label in range(labels)],
        sums_CREE=sums_CREE,
        tokens_C=torch.ones(labels, dtype=torch.int64),
        windows_C=torch.ones(labels, dtype=torch.int64),
        documents_C=torch.ones(labels, dtype=torch.int64),
        model_fingerprint="",
        provenance={},
    )
    before = now()
    Top(fraction=0.01).chosen(statistics)
    return spent(before)


def list_of_conditions(labels: int) -> dict[str, float]:
    """Conditions of masks of the 1.4B model's size, with 20 random masks for each."""
    mask = ExpertMask(torch.rand(GROUPS, KEYS, KEYS) > 0.01)
    before = now()
    conditions({str(label): mask for label in range(labels)}, Controls(20), "")
    return spent(before)


def programs(number: int) -> dict[str, float]:
    """Reads and looks up kept outcomes of programs: this many conditions of 3,280 programs."""
    outcome = {"status": "ok", "detail": "", "seconds": 0.123}
    with tempfile.TemporaryDirectory() as folder:
        with ExampleStore(folder, {"suite": "code-outcomes/1"}) as store:
            for program in range(3280 * number):
                store.put(f"{program:064x}", outcome)
        before = now()
        with ExampleStore(
            folder, {"suite": "code-outcomes/1"}, parts=True, remember=lambda kept: kept["status"]
        ) as kept:
            assert all(kept[f"{program:064x}"] == "ok" for program in range(3280 * number))
        return spent(before)


def hashings(seeds: int) -> dict[str, float]:
    """Ablates two domains of a small model; the cost is the number of times its weights were hashed."""
    from monet.eval.ablation.measure import ablate
    from monet.eval.core.inputs import LabelledSequences
    from monet.model import fingerprint

    model = MonetForCausalLM(
        MonetConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, moe_dim=4, moe_heads=2,
                    moe_experts=8, moe_topk=2, moe_groups=1, moe_decompose="vertical", max_position_embeddings=16)
    ).eval()  # fmt: skip
    found = model.fingerprint()
    keep_REE = torch.rand(len(model.routers()), 8, 8, generator=torch.Generator().manual_seed(0)) > 0.1
    masks = {name: ExpertMask(keep_REE, fingerprint=found) for name in ("a", "b")}
    data = LabelledSequences(["a", "b"], [[1, 2, 3, number] for number in range(8)], [0, 1] * 4)
    digest, taken = fingerprint.digest_of_signs, []
    fingerprint.digest_of_signs = lambda *arguments: taken.append(1) or digest(*arguments)
    with tempfile.TemporaryDirectory() as folder:
        ablate(model, masks, data, out=folder, controls=Controls(seeds), progress=False)
    return {"count": len(taken)}


class _Length:
    """Scores a text by its length."""

    at_once = 512

    def __init__(self) -> None:
        self.key: dict[str, Any] = {"kind": "length"}

    def score(self, texts: Sequence[str]) -> list[Score | Failure]:
        return [Score(len(text) / 200) for text in texts]


def toxicity(prompts: int) -> dict[str, float]:
    """Numbers of the unmasked model from kept continuations, 25 for each prompt, and a scorer."""
    rng = random.Random(0)
    asked = [Prompt(f"{number:06d}", "", "") for number in range(prompts)]
    with tempfile.TemporaryDirectory() as folder:
        with ExampleStore(folder, {"suite": "continuations"}) as store:
            for prompt in asked:
                store.put(prompt.id, [f"{rng.getrandbits(250):x} and more of this, sample {n}" for n in range(25)])
        before = now()
        kept = ExampleStore(folder, {"suite": "continuations"}, remember=lambda _: None)
        with kept, KeptScores(_Length(), Path(folder, "scores")) as scores:
            found = measures.outcomes(asked, scores.of_samples(kept.stream()), {}, 0.5)
        assert not np.isnan(found.expected_max_U).any()
        return spent(before)


MEASURED: dict[str, Cost] = {
    "hashings": Cost(hashings, [1, 3, 20], "fingerprints taken, 2 domains, by random masks a domain"),
    "programs": Cost(programs, [10, 20, 40, 80], "kept outcomes of 3,280 programs a condition, by conditions"),
    "verdicts": Cost(verdicts, [14, 28, 56, 100], "domains x 100 windows, 20 random masks on all domains"),
    "verdicts_on_target": Cost(
        verdicts_on_target, [28, 56, 100], "domains x 300 windows, 20 random masks on their target"
    ),
    "verdicts_by_windows": Cost(verdicts_by_windows, [3000, 30000], "windows a domain, 14 domains, 3 random masks"),
    "picture": Cost(picture, [14, 50, 100, 200], "domains a side of two heat maps"),
    "top": Cost(top, [14, 28, 50], "labels, 6 x 512 x 512 experts, fraction 0.01"),
    "toxicity": Cost(toxicity, [5_000, 10_000, 20_000], "prompts of 25 kept continuations, scored"),
    "conditions": Cost(list_of_conditions, [14, 100], "masks, each with 20 random ones"),
}


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write the figures as JSON on request."""
    measured_main("benchmarks.eval_scale", __doc__ or "", MEASURED, words)


if __name__ == "__main__":
    main()
