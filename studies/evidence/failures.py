"""Cases in which removal fails, on one model, for docs/evidence.md.

Other rules, and subjects: experts of what a text is about, regardless of its language. All are judged by the verdict of
`monet ablate`, on the few windows that controls are measured on.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from monet.eval.ablation.measure import measure
from monet.eval.ablation.results import Verdict
from monet.eval.attribution import stats
from monet.eval.attribution.rules import Argmax, Ratio, Top
from monet.eval.attribution.selection import select_by
from monet.eval.core.inputs import LabelledData, LabelledSequences, PreparedWindows
from monet.eval.core.intervention import Intervention
from studies.removal.candidates import Candidate, Llama, Monet
from studies.removal.plan import NATURAL

# The works that every natural language of the text has, by the beginning of their packages' names.
SUBJECTS = {
    "office": "libreoffice-help", "debian": "debian-handbook",
    "installation": "installation-guide", "gimp": "gimp-help",
}  # fmt: skip


def _judged(candidate: Candidate, masks: Mapping[str, Intervention], data: LabelledData) -> list[Verdict]:
    plan = candidate.plan
    result = measure(
        candidate.store, masks, data, controls=plan.judging, control_on="target", bootstrap=plan.bootstrap,
        progress=True,
    )  # fmt: skip
    return result.domains


def other_rules(candidate: Monet, owners: Sequence[str]) -> dict[str, list[Verdict]]:
    """Verdicts of the paper's rule on all domains, and of argmax on some."""
    data = candidate.plan.compared
    argmax = select_by(candidate.statistics, Argmax())
    return {
        "ratio": _judged(candidate, select_by(candidate.statistics, Ratio(2.0)), data),
        "argmax": _judged(candidate, {label: argmax[label] for label in owners}, data),
    }


def first_layer(candidate: Llama) -> list[Verdict]:
    """Verdicts of the paper's baseline: neurons of the first layer by the ratio of 2."""
    return _judged(candidate, candidate.first_layer(), candidate.plan.compared)


def by_subject(windows: PreparedWindows, text: Path) -> LabelledSequences:
    """The windows of the natural languages, labelled by the work that their first token is from, not by language."""
    sources = {}
    for domain in windows.labels:
        for file in sorted((text / domain).glob("*.jsonl.xz")):
            with lzma.open(file, "rt", encoding="utf-8") as lines:
                for number, line in enumerate(lines, start=1):
                    sources[f"{domain}/{file.name}:{number}"] = json.loads(line)["source"]
    dataset = windows.dataset
    sequences, labels, documents, originals = [], [], [], []
    for domain in windows.labels:
        for window in dataset.windows_of(domain):
            name = dataset.document_name(window)
            label = next((i for i, prefix in enumerate(SUBJECTS.values()) if sources[name].startswith(prefix)), None)
            if label is not None:
                sequences.append(dataset[window]["input_ids"].tolist())
                labels.append(label)
                documents.append(name)
                originals.append(sources[name])
    return LabelledSequences(list(SUBJECTS), sequences, labels, documents=documents, sources=originals)


def thinned(data: LabelledSequences, windows: int) -> LabelledSequences:
    """At most this number of sequences for each label, evenly spaced."""
    kept = []
    for label in range(len(data.labels)):
        numbers = [number for number, found in enumerate(data.label_of) if found == label]
        step = max(1, len(numbers) // windows)
        kept += numbers[::step][:windows]
    return replace(data, kept=kept)


def subjects(candidate: Monet, share: float, text: Path) -> list[Verdict]:
    """Removal of the experts of a subject, chosen and measured over all natural languages together.

    Args:
        candidate: the model.
        share: how many experts for each subject, as a share of all.
        text: folder of the text that was prepared; it says which work a record is from.
    """
    plan = candidate.plan
    chosen_on, measured_on = (
        thinned(by_subject(PreparedWindows(plan.data, split, plan.seq_len, domains=NATURAL), text), windows)
        for split, windows in (("identify", 8 * plan.windows), ("evaluate", 2 * plan.control_windows))
    )
    path = candidate.place("subjects", chosen_on.fingerprint).with_suffix(".safetensors")
    if not path.exists():
        wanted = stats.Wanted(firing=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        stats.collect(candidate.model, chosen_on, batch_size=plan.batch_size, wanted=wanted).save(path)
    found = stats.ExpertStatistics.load(path, model=candidate.model)
    return _judged(candidate, select_by(found, Top(fraction=share, by="mutual_information")), measured_on)
