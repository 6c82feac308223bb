"""Exact routing statistics over labelled or scored text, streamed through hooks on the routers.

The weight of expert (i, j) at a token is `w[i,j] = sum_h g1[h,i] * g2[h,j]`. Its sums for each label are added up in
float64 over all tokens except pads. Options add moments with a score, counts, maxima and co-activation. The E x E
weights of a token are never built.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from monet.errors import ConfigError, DataError
from monet.eval.attribution.statistics.accumulator import Accumulator, Sums
from monet.eval.attribution.statistics.collectors import PERMUTATIONS, Wanted
from monet.eval.attribution.statistics.exclusion import Exclude, Exclusion
from monet.eval.attribution.statistics.passes import read_text
from monet.eval.attribution.statistics.result import FORMAT, ExpertStatistics
from monet.eval.attribution.statistics.scored import read_scored
from monet.eval.attribution.statistics.shuffle import Shuffle
from monet.eval.core import text_overlap
from monet.eval.core.inputs import Batch, LabelledData, LabelledSequences, PreparedWindows
from monet.eval.core.loading import (
    check_batch_size,
    mask_digest,
    own_tokenizer,
    provenance_now,
    window_length,
    windows_bar,
)
from monet.eval.core.options import Compute, WindowOptions
from monet.parts import parse_shard
from monet.terminal import clean

if TYPE_CHECKING:
    from monet.model.modeling_monet import MonetForCausalLM, MonetPreTrainedModel

NOT_PERMUTED = (
    "no labels were permuted: --permutations is 0, or the text has only one label, or a merged part has no permutation"
)

__all__ = ["FORMAT", "PERMUTATIONS", "ExpertStatistics", "Wanted", "collect", "merge", "run"]


def collect(
    model: MonetPreTrainedModel,
    data: LabelledData,
    *,
    batch_size: int = 8,
    wanted: Wanted | None = None,
    exclusion: Exclusion | None = None,
    progress: bool = True,
) -> ExpertStatistics:
    """Sum every expert's weight over the tokens of every label, in one pass.

    The memory for the sums, in addition to the model's own memory, is (C, R, E, E) float64, for any amount of text.
    Firing counts take two or three times that memory more. Moments with scores and maxima take a few times (R, E, E).
    Each permutation of the labels takes the memory of the sums, the firing counts and the moments again; the data are
    then read once more, without the model. Batch size and padding side change the result only by float32 rounding of
    the model's forward pass.

    Args:
        model: a Monet model (with or without head). It runs in eval mode, and its mode is restored.
        data: labelled sequences: `PreparedWindows` for a folder of `monet data prepare`, or `LabelledSequences`. If
            they have scores, the moments of weights and scores are collected too.
        batch_size: sequences in each forward pass.
        wanted: what else to collect; None collects only the sums and one permutation of the labels.
        exclusion: tokens that are not counted, in addition to pads. None excludes the tokens that begin, end and pad a
            text, as `monet stats` does; the model's tokenizer names them, or else its configuration. `Exclusion()`
            counts all tokens, as the paper does.
        progress: show a bar on standard error.

    Raises:
        ConfigError: batch_size is below 1, or the model does not have an expert.
        DataError: there is no token, an id is beyond the model's vocabulary, or only some sequences have scores.
        NonFiniteError: a router gave NaN or infinite probabilities; the message names the first window of the batch.
    """
    check_batch_size(batch_size)
    routers = model.routers()
    device = model.device
    exclusion = Exclusion.chosen(model, own_tokenizer(model)) if exclusion is None else exclusion
    num_labels = len(data.labels)
    wanted = wanted or Wanted()
    shuffle = None
    if wanted.permutations:
        shuffle = Shuffle(data, batch_size, exclusion, wanted.permutations, wanted.permutation_seed)
    keys = cast(int, model.config.moe_experts)
    total = Accumulator(num_labels, len(routers), keys, device, wanted, exclusion, shuffle)
    tokens_C, windows_C, documents_C = (torch.zeros(num_labels, dtype=torch.int64) for _ in range(3))
    last_document: dict[int, str] = {}
    left_out = 0
    sequences = text_overlap.Collected()

    def count(batch: Batch, length_B: Tensor) -> None:
        nonlocal left_out
        sequences.add(batch)
        left_out += int((batch.num_tokens_B - length_B).sum())
        for label, length, document in zip(batch.label_B.tolist(), length_B.tolist(), batch.document_B, strict=True):
            tokens_C[label] += length
            windows_C[label] += 1
            documents_C[label] += last_document.get(label) != document
            last_document[label] = document
        bar.update(len(batch.document_B))

    with windows_bar(data.num_windows, "routing statistics", progress) as bar:
        read_text(model, data.batches(batch_size), total, count)
    if not int(tokens_C.sum()):
        raise DataError(f"no text to collect statistics from: {data.description}; prepare a larger split")
    part = {"data_fingerprint": data.fingerprint, **data.description, "stored_mask": mask_digest(model.expert_mask)}
    part |= {"excluded": exclusion.notes(left_out), **sequences.signature().notes()}
    if shuffle is not None:
        part["permutations"] = shuffle.notes()

    def found(one: Sums, counts: tuple[Tensor, Tensor, Tensor], provenance: dict[str, Any]) -> ExpertStatistics:
        return ExpertStatistics(
            list(data.labels), one.sums_CREE.cpu(), *counts, model.fingerprint(), provenance, **one.extras()
        )

    permuted = [found(one, shuffle.counts(n), {}) for n, one in enumerate(total.permuted) if shuffle is not None]
    own = found(total.own, (tokens_C, windows_C, documents_C), {**provenance_now(), "parts": [part]})
    return dataclasses.replace(own, permuted=permuted)


def run(
    model: str,
    out: Path,
    data: Path | None = None,
    scores: Path | None = None,
    split: str = "identify",
    firing: bool = False,
    firing_above: float | None = None,
    maxima: bool = False,
    coactivation: int | dict[int, list[int]] | None = None,
    permutations: int = PERMUTATIONS,
    permutation_seed: int = 0,
    exclude: Exclude = "special",
    exclude_first: int = 0,
    exclude_tokens: list[int] = [],  # noqa: B006 - shown in --help, never changed
    shard: str | None = None,
    windows: WindowOptions = WindowOptions(),  # noqa: B008 - frozen
    compute: Compute = Compute(),  # noqa: B008 - frozen
) -> None:
    """Sum every expert's routing weight for each domain of labelled text, exactly and in one pass.

    Writes one file of sums, from which `monet select` chooses each domain's experts. With --scores the text comes from
    a file of records with scores, and the file also holds the sums for the correlation of each expert with the score.
    `monet stats merge` adds files up.

    Args:
        model: Hugging Face folder or name of a Monet model.
        out: file to write; an earlier file is replaced.
        data: folder of `monet data prepare`, made with the model's tokenizer.
        scores: in place of DATA, a file of JSON lines with `text` (or `input_ids`) and `score` (or `token_scores`);
            `label` and `id` are optional. Every token has the score of its text. Records with score null are left out.
        split: split of DATA to read; evaluate masks on another split.
        firing: also count, for each domain, the tokens at which each expert is active and at which it is the strongest.
        firing_above: also count the tokens at which its weight is above this number; implies --firing.
        maxima: also keep each expert's largest weight, and the window, document and position of this weight.
        coactivation: also count the tokens at which two experts of a group are active together. A number takes that
            many of the strongest experts of every group, and needs one more pass to find them. Or name the experts by
            group, such as '{0: [17, 4], 1: [900]}'; expert (i, j) has the number i*E + j.
        permutations: number of times to add up the inputs of rules under permuted labels too. Whole documents are
            shuffled over the domains, or with SCORES the scores over the texts. `monet select` then shows how many
            experts its rule assigns to labels that mean nothing. 0 permutes no labels.
        permutation_seed: another seed gives other permutations.
        exclude: special does not count the tokens that begin, end and pad a text; these tokens distinguish domains only
            by the length of their texts. none counts all, as the paper does.
        exclude_first: tokens at the beginning of each window, and of each document under document masks, that are not
            counted.
        exclude_tokens: further token ids that are not counted.
        shard: i/n reads part i of n parts of the text, where i starts at 0, so that n processes can run at once. Add
            their files up with `monet stats merge`. Windows that begin in one document stay together.

    Raises:
        CheckpointError: the model does not exist.
        ConfigError: an option is out of range, both or neither of DATA and SCORES are given, or OUT is a folder.
        DataError: the split does not exist, a domain has no window in it, the data have another tokenizer, or a record
            is bad.
        NonFiniteError: routing probabilities are NaN or infinite.
    """
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; name a file, e.g. {out / 'statistics.safetensors'}")
    part = None if shard is None else parse_shard("shard", shard)
    if part is not None and isinstance(coactivation, int):
        raise ConfigError("the strongest experts differ between shards; for coactivation name the experts, by group")
    _check_source(data, scores, windows)
    loaded = compute.load(model)
    text = _open(loaded, data, scores, split, windows)
    if part is not None:
        text = text.shard(*part)
    exclusion = Exclusion.chosen(loaded, own_tokenizer(loaded), exclude, exclude_first, exclude_tokens)
    pairs = coactivation if isinstance(coactivation, dict) else None
    passes: dict[str, Any] = {"batch_size": compute.batch_size, "progress": compute.progress}
    wanted = Wanted(firing, firing_above, maxima, pairs, permutations, permutation_seed)
    if isinstance(coactivation, int):
        if coactivation < 1:
            raise ConfigError(f"coactivation {coactivation} must be at least 1 expert per group")
        sums = Wanted(permutations=0)
        summed = collect(loaded, text, wanted=sums, exclusion=exclusion, **passes)
        strongest_RN = summed.strongest(coactivation)
        wanted = dataclasses.replace(wanted, coactivation=dict(enumerate(strongest_RN.tolist())))
    statistics = collect(loaded, text, wanted=wanted, exclusion=exclusion, **passes)
    statistics.save(out)
    _print(statistics, out)


def merge(files: list[Path], out: Path) -> None:
    """Add up statistics files of one model: `monet stats merge A B ... --out C`.

    The sum of two halves of a corpus equals one pass over it, up to rounding.

    Args:
        files: files of `monet stats`, at least two, collected with the same options over the same labels.
        out: file to write; an earlier file is replaced.

    Raises:
        ConfigError: fewer than two files, or OUT is a folder.
        CheckpointError: a file cannot be read, belongs to another model, or has text that another file has too.
    """
    if len(files) < 2:
        raise ConfigError(f"{len(files)} file to merge; name two or more: monet stats merge A B --out C")
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; name a file, e.g. {out / 'statistics.safetensors'}")
    total = ExpertStatistics.load(files[0])
    for path in files[1:]:
        total = total.merge(ExpertStatistics.load(path))
    total.save(out)
    _print(total, out)


def _check_source(data: Path | None, scores: Path | None, windows: WindowOptions) -> None:
    if (data is None) == (scores is None):
        raise ConfigError("give either data, a folder of `monet data prepare`, or scores, a file of scored text")
    for name, value in (("max_windows", windows.max_windows), ("domains", windows.domains)):
        if scores is not None and value is not None:
            raise ConfigError(f"{name} {value} selects prepared text; leave it out with scores")


def _open(
    model: MonetForCausalLM,
    data: Path | None,
    scores: Path | None,
    split: str,
    windows: WindowOptions,
) -> LabelledSequences | PreparedWindows:
    if scores is not None:
        return read_scored(scores, own_tokenizer(model), window_length(model, windows.seq_len))
    assert data is not None
    return windows.open(data, split, model)


def _print(statistics: ExpertStatistics, out: Path) -> None:
    for label, tokens, documents in zip(
        statistics.labels, statistics.tokens_C.tolist(), statistics.documents_C.tolist(), strict=True
    ):
        print(f"{clean(label)}: {tokens:,} tokens of {documents:,} documents")
    for part in statistics.provenance["parts"]:
        left_out = {reason: part[reason] for reason in ("unscored", "too_short") if part.get(reason)}
        if left_out:
            counted = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in left_out.items())
            print(f"of {part['records']} records left out: {counted}")
    if excluded := sum(part.get("excluded", {}).get("tokens", 0) for part in statistics.provenance["parts"]):
        print(f"not counted: {excluded:,} tokens that begin or end a text, or that --exclude_* names")
    print(f"labels were permuted {len(statistics.permuted)} times" if statistics.permuted else NOT_PERMUTED)
    also = f", with {', '.join(statistics.extras)}" if statistics.extras else ""
    print(f"statistics{also}: {out}")
