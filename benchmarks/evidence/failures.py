"""Where removal fails, on the same model: what a reader of docs/evidence.md should know beside what works.

Subjects: experts of what a text is about, whatever its language. Relearning: how much of a removal a few steps of
training take back. The third, other rules, needs nothing but the rules.
"""

from __future__ import annotations

import contextlib
import copy
import json
import lzma
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from benchmarks.evidence.removal import Plan
from monet import ExpertMask, MonetForCausalLM
from monet.eval import stats
from monet.eval.ablate import ablate
from monet.eval.inputs import LabelledSequences, PreparedWindows
from monet.eval.losses import window_losses
from monet.eval.results import AblationResult
from monet.eval.selection import select_by

NATURAL = ("english", "french", "german", "italian", "russian", "spanish")
# The works that every natural language of the text has, by the beginning of their packages' names.
SUBJECTS = {
    "office": "libreoffice-help", "debian": "debian-handbook",
    "installation": "installation-guide", "gimp": "gimp-help",
}  # fmt: skip
LEARNING_RATE = 3e-4


def by_subject(windows: PreparedWindows, text: Path) -> LabelledSequences:
    """The windows of the natural languages, labelled by the work that their first token is from, not by language."""
    sources = {}
    for domain in windows.labels:
        for file in sorted((text / domain).glob("*.jsonl.xz")):
            with lzma.open(file, "rt", encoding="utf-8") as lines:
                for number, line in enumerate(lines, start=1):
                    sources[f"{domain}/{file.name}:{number}"] = json.loads(line)["source"]
    dataset = windows.dataset
    sequences, labels, documents = [], [], []
    for domain in windows.labels:
        for window in dataset.windows_of(domain):
            name = dataset.document_name(window)
            label = next((i for i, prefix in enumerate(SUBJECTS.values()) if sources[name].startswith(prefix)), None)
            if label is not None:
                sequences.append(dataset[window]["input_ids"].tolist())
                labels.append(label)
                documents.append(name)
    return LabelledSequences(list(SUBJECTS), sequences, labels, documents=documents)


def thinned(data: LabelledSequences, windows: int) -> LabelledSequences:
    """At most so many sequences a label, evenly apart."""
    kept = []
    for label in range(len(data.labels)):
        numbers = [number for number, found in enumerate(data.label_of) if found == label]
        step = max(1, len(numbers) // windows)
        kept += numbers[::step][:windows]
    return replace(data, kept=kept)


def subjects(model: MonetForCausalLM, plan: Plan, text: Path) -> AblationResult:
    """Removal of the experts of a subject, chosen and measured over all natural languages together."""
    chosen_on, measured_on = (
        thinned(by_subject(PreparedWindows(plan.data, split, plan.seq_len, domains=NATURAL), text), windows)
        for split, windows in (("identify", 8 * plan.windows), ("evaluate", 2 * plan.windows))
    )
    wanted = stats.Wanted(firing=True)
    found = stats.collect(model, chosen_on, batch_size=plan.batch_size, wanted=wanted)
    result = ablate(
        model, select_by(found, plan.rule), measured_on, out=plan.out / "subjects", controls=plan.controls,
        control_on="target", batch_size=plan.batch_size,
    )  # fmt: skip
    assert result is not None, "only a part gives none"
    return result


def relearned(
    model: MonetForCausalLM, label: str, mask: ExpertMask, plan: Plan, steps: Sequence[int]
) -> dict[int, dict[str, float]]:
    """Mean loss of a domain after so many steps of training on its own text, with its experts removed and without.

    Removed experts stay removed throughout; all other weights are trained, with AdamW at a constant rate, on windows
    of the split `identify`. The whole model is trained alike, for it learns from them, too.

    Returns:
        by number of steps, 0 before any: nats a token of the model "whole" and "removed".
    """
    data = PreparedWindows(plan.data, "identify", plan.seq_len, max(steps) * plan.batch_size, [label])
    held_out = plan.evaluate.only([label])
    losses: dict[int, dict[str, float]] = {step: {} for step in (0, *steps)}
    for name, removed in (("whole", None), ("removed", ExpertMask(mask.keep_REE))):
        student = copy.deepcopy(model)

        def note(step: int, name: str = name, student: MonetForCausalLM = student, removed: Any = removed) -> None:
            found = window_losses(student, removed, held_out, batch_size=plan.batch_size, name=label)
            losses[step][name] = float(found.loss_sum_W.sum() / found.tokens_W.sum())

        note(0)
        optimizer = torch.optim.AdamW(student.train().parameters(), lr=LEARNING_RATE, weight_decay=0.0)
        taken = islice(cycle(data.batches(plan.batch_size)), max(steps))
        for step, batch in enumerate(tqdm(taken, f"training {label} again", max(steps)), start=1):
            with removed.applied_to(student) if removed else contextlib.nullcontext():
                logits_BTV = student(input_ids=batch.input_ids_BT, use_cache=False).logits
                F.cross_entropy(logits_BTV.flatten(0, 1), batch.targets_BT.flatten()).backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step in steps:
                note(step)
    return losses
