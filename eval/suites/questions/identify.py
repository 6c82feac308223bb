"""Finds the experts that serve each MMLU category: routes the questions and their options, and applies the ratio rule.

The paper does not say which questions it routed. It seems to have routed the questions that it then asked. The default
here is MMLU's validation and dev splits, so that masks are chosen on questions that they are not judged by.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from filelock import FileLock

from monet.errors import DataError
from monet.eval.attribution.selection import save_masks, select, summarise
from monet.eval.attribution.statistics.exclusion import Exclusion
from monet.eval.attribution.stats import PERMUTATIONS, ExpertStatistics, Wanted, collect
from monet.eval.choices.texts import as_sequences, content_of
from monet.eval.core.inputs import LabelledData
from monet.eval.core.store import acquire, model_key
from monet.eval.suites.questions.catalog import TaskSpec
from monet.eval.suites.questions.categories import CATEGORIES, CATEGORY_OF
from monet.eval.suites.questions.content import MMLU_SPLITS, as_text
from monet.eval.suites.questions.schemas import screen
from monet.eval.suites.questions.sources import open_data, quiet_harness, task_manager
from monet.eval.suites.questions.tasks import Faults
from monet.masks.expert_mask import find_body

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from monet.masks.expert_mask import ExpertMask
    from monet.model.modeling_monet import MonetForCausalLM

IdentifyOn = Literal["held_out", "same"]
HELD_OUT_SPLITS = ("validation", "dev")
ALSO_ASKED = "a question that is asked, too"


@dataclass(frozen=True)
class Texts:
    """Questions with their options, by category.

    Args:
        of_category: texts by category; a category without texts is absent.
        splits: splits that the texts come from.
        left_out: number of rows that are left out, by reason.
        missing: subjects without data.
    """

    of_category: dict[str, list[str]]
    splits: list[str]
    left_out: dict[str, int]
    missing: list[str]


def held_out_texts(
    specs: Sequence[TaskSpec], data: Path | None, limit: int | None, faults: Faults, asked: AbstractSet[str]
) -> Texts:
    """MMLU's validation and dev questions, without those that are also asked.

    Args:
        specs: the tasks of MMLU's subjects.
        data: folder with the data sets; None reads the hub or its cache.
        limit: at most this many questions per subject and split, the first ones.
        faults: `count` leaves out rows that cannot be asked; `refuse` raises.
        asked: contents of the asked questions (`monet.eval.suites.questions.content`).

    Raises:
        DataError: there are no data, or with `refuse` a row cannot be asked.
    """
    texts: dict[str, list[str]] = {category: [] for category in CATEGORIES}
    left_out: Counter[str] = Counter()
    missing = []
    with quiet_harness():
        manager = task_manager(specs)
        for spec in specs:
            opened = open_data(spec, manager.task_index[spec.harness_name].cfg, data, HELD_OUT_SPLITS)
            splits = [split for split in HELD_OUT_SPLITS if opened is not None and split in opened.splits]
            if opened is None or not splits:
                missing.append(spec.name)
                continue
            for split in splits:
                rows: Any = opened.read(split)
                found = screen(list(rows), spec.schema, rows.column_names, f"{opened.source}, split {split!r}")
                if found.skipped and faults == "refuse":
                    raise DataError(f"{opened.source}, split {split!r} of {spec.name}: {found.sentence}")
                left_out.update(found.skipped)
                for row in map(rows.__getitem__, found.kept[:limit]):
                    question, options = spec.schema.question(row), spec.schema.options(row)
                    if content_of(question, options) in asked:
                        left_out[ALSO_ASKED] += 1
                    else:
                        texts[CATEGORY_OF[str(spec.subject)]].append(as_text(question, options))
    if len(missing) == len(specs):
        raise DataError(
            f"no {' or '.join(HELD_OUT_SPLITS)} questions of MMLU {f'below {data}' if data else 'on the hub'} to find "
            "experts on; add them, or find experts on the questions that are asked (--identify_on same)"
        )
    return Texts(
        {name: found for name, found in texts.items() if found}, list(HELD_OUT_SPLITS), dict(left_out), missing
    )


def identify(
    model: MonetForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    texts: Texts,
    *,
    folder: Path,
    ratio: float = 2.0,
    permutations: int = PERMUTATIONS,
    batch_size: int = 8,
    progress: bool = True,
) -> tuple[dict[str, ExpertMask], dict[str, Any]]:
    """Collect statistics over the texts and apply the ratio rule: one removal mask per category.

    Args:
        model: the complete model.
        tokenizer: tokenizer of the model.
        texts: questions of at least two categories.
        folder: holds statistics and masks. Statistics in it are reused if they are of the same model and texts, so that
            masks stay the same after a kill. If several processes look for the same masks, one collects and the others
            wait.
        ratio: minimum ratio between an expert's highest and second highest mean weight.
        permutations: collect statistics this many more times, with the categories shuffled over the questions; the
            masks' provenance then says how many experts the rule finds in shuffled data.
        batch_size: texts per forward.
        progress: show a bar on standard error.

    Returns:
        Masks by category, and a description of the texts: numbers of texts, of tokens, and of texts cut at the model's
        context.

    Raises:
        DataError: there are fewer than two categories.
        ConfigError: ratio is below 1, permutations are below 0, or the model has no experts.
    """
    find_body(model)
    data, counts = as_sequences(
        texts.of_category, tokenizer, int(model.config.max_position_embeddings), {MMLU_SPLITS: texts.splits}
    )
    sequence_data = cast(LabelledData, data)
    key = json.dumps([model_key(model), sequence_data.fingerprint, batch_size, permutations], sort_keys=True)
    path = folder / f"statistics-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    notes = {
        "splits": texts.splits,
        "texts": data.num_windows,
        "texts_cut": counts["cut"],
        "texts_too_short": counts["too_short"],
        "left_out": texts.left_out,
        "missing": texts.missing,
    }
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.stem}.lock"))
    acquire(lock, path)
    try:
        if path.exists():
            statistics = ExpertStatistics.load(path, model)
        else:
            exclusion = Exclusion.chosen(model, tokenizer)
            wanted = Wanted(permutations=permutations)
            statistics = collect(
                model, sequence_data, batch_size=batch_size, wanted=wanted, exclusion=exclusion, progress=progress
            )
            provenance = {**statistics.provenance, "mmlu": notes}
            statistics = dataclasses.replace(statistics, provenance=provenance)
            statistics.save(path)
        masks = select(statistics, ratio)
        save_masks(folder / "masks", masks, summarise(statistics, masks, ratio))
    finally:
        lock.release()
    return masks, {**notes, "tokens": int(statistics.tokens_C.sum()), "ratio": ratio}


def check_categories(labels: Iterable[str]) -> None:
    """Refuse masks whose labels are not categories.

    Raises:
        DataError: a label is not a category; the message names each one.
    """
    if strangers := [label for label in labels if label not in CATEGORIES]:
        raise DataError(
            f"masks of {', '.join(map(repr, strangers))}, which are not MMLU categories ({', '.join(CATEGORIES)}); "
            "use `monet eval general`, which takes masks of any name"
        )
