"""The verbs `monet index`, `monet index merge`, `monet index info`."""

from __future__ import annotations

import json
from pathlib import Path

from monet.data.storage.shards import TokenShards
from monet.errors import ConfigError
from monet.eval.attribution.statistics.exclusion import Exclude, Exclusion
from monet.eval.core.inputs import PreparedWindows
from monet.eval.core.loading import own_tokenizer, window_length
from monet.eval.core.options import Compute, WindowOptions
from monet.eval.index.build import TOKEN_MEMORY, Wanted, build
from monet.eval.index.info import IndexInfo
from monet.eval.index.merge import merge_indexes
from monet.eval.index.plan import bytes_needed, readable
from monet.model.modeling_monet import MonetForCausalLM
from monet.parts import Part
from monet.terminal import clean


def run(
    model: str,
    data: Path,
    out: Path,
    split: str = "identify",
    tokens: int | None = None,
    top: int = 16,
    labels: list[str] | None = None,
    seed: int = 0,
    token_memory: int = TOKEN_MEMORY,
    exclude: Exclude = "special",
    exclude_first: int = 0,
    exclude_tokens: list[int] = [],  # noqa: B006 - shown in --help, never changed
    part: str | None = None,
    save_seconds: float = 300.0,
    overwrite: bool = False,
    windows: WindowOptions = WindowOptions(),  # noqa: B008 - frozen
    compute: Compute = Compute(),  # noqa: B008 - frozen
) -> None:
    """Index where every expert fires: its strongest contexts, samples of all strengths, counts, labels and tokens.

    Makes a folder in one pass over the text. Halves of experts (one key with any second key) are indexed too. After a
    kill the same command continues, and the folder has the same bytes. Each forward pass reads about 2,048 tokens, in
    windows of one length; --batch_size only sets how many windows are read from DATA at once.

    Args:
        model: Hugging Face folder or name of a Monet model.
        data: folder of `monet data prepare`, made with the model's tokenizer.
        out: folder to make. The work is in OUT.partial until it is complete.
        split: split of DATA to read.
        tokens: about how many tokens to read, in equal parts from the domains and evenly spread over their text; if
            omitted, all.
        top: contexts to keep for each expert, at most one from each window. Of equal weights, the lower window is kept.
        labels: domains of DATA to read, as --domains; their mean weights are kept for each expert.
        seed: another seed draws other samples.
        token_memory: MiB of memory for exact counts of the tokens at which each expert fires. If they need more, they
            are estimated from the samples, with an error.
        exclude: special does not count the tokens that begin, end and pad a text, as in `monet stats`. none counts all.
        exclude_first: tokens at the beginning of each window, and of each document under document masks, that are not
            counted.
        exclude_tokens: further token ids that are not counted.
        part: i/n reads part i of n parts of the text, where i starts at 0, so that n processes can run at once. Join
            their folders with `monet index merge`.
        save_seconds: seconds between two saves of the work in OUT.partial.
        overwrite: replace an index, or the work on one, that was made with other options. Explanations and scores in
            the index are deleted with it; answers of servers stay.

    Raises:
        CheckpointError: the model does not exist, or the work in OUT.partial is damaged.
        ConfigError: an option is out of range, or OUT holds something else.
        DataError: the split does not exist, a domain has no window in it, or the data have another tokenizer.
        NonFiniteError: routing probabilities are NaN or infinite.
    """
    wanted, own = Wanted(top, seed, token_memory), Part.parse(part)
    loaded = compute.load(model)
    tokenizer = own_tokenizer(loaded)
    text = open_text(loaded, data, split, tokens, labels, windows)
    exclusion = Exclusion.chosen(loaded, tokenizer, exclude, exclude_first, exclude_tokens)
    config = loaded.config
    needed = bytes_needed(
        config.num_routing_groups, config.moe_experts, top, len(text.labels), config.vocab_size, token_memory
    )
    print(f"memory of the index, in addition to the model: {readable(sum(needed.values()))}")
    info = build(
        loaded, text, out, wanted=wanted, exclusion=exclusion, part=own, tokenizer=tokenizer, data_folder=str(data),
        batch_size=compute.batch_size, save_seconds=save_seconds, progress=compute.progress, overwrite=overwrite,
    )  # fmt: skip
    _print(info, out)


def merge(indexes: list[Path], out: Path, overwrite: bool = False) -> None:
    """Join the indexes of the parts of one text: `monet index merge A B ... --out C`.

    The result of all parts has the same bytes as one pass over the text. Some of the parts give a larger part.

    Args:
        indexes: folders of `monet index --part`, at least two.
        out: folder to make.
        overwrite: replace an index with other content, and its explanations and scores; answers of servers stay.

    Raises:
        ConfigError: fewer than two folders, or `out` exists.
        CheckpointError: a folder is no index of a part, or was made with another model, text or option.
    """
    info = merge_indexes(indexes, out, overwrite=overwrite)
    _print(info, out)


def info(index: Path, json: bool = False) -> None:
    """Show what an index was made from, and its size.

    Args:
        index: folder of `monet index`.
        json: print one JSON object: experts, tokens, top_k, bytes, model_fingerprint and more.

    Raises:
        CheckpointError: the folder is no index, or is damaged.
    """
    found = summary(IndexInfo.load(index))
    if json:
        _print_json(found)
        return
    for name, value in found.items():
        print(f"{name}: {clean(str(value))}")


def summary(info: IndexInfo) -> dict[str, object]:
    """What `monet index info` shows."""
    return {
        "experts": info.units.experts,
        "tokens": info.num_tokens,
        "top_k": info.settings.top,
        "bytes": info.bytes,
        "model_fingerprint": info.model.fingerprint,
        "model": info.model.name,
        "routing_groups": info.model.groups,
        "keys": info.model.keys,
        "units": info.units.groups * info.units.per_group,
        "data": info.data.folder,
        "data_fingerprint": info.data.fingerprint,
        "labels": dict(zip(info.data.labels, info.tokens, strict=True)),
        "windows": sum(info.windows),
        "excluded": info.excluded,
        "firing_tokens": info.settings.tokens,
        "parts": None if info.part is None else {"held": info.part.held, "count": info.part.count},
        "format": "monet-index/1",
    }


def open_text(
    model: MonetForCausalLM,
    folder: Path,
    split: str,
    tokens: int | None,
    labels: list[str] | None,
    windows: WindowOptions,
) -> PreparedWindows:
    """The windows to read; `tokens` becomes a number of windows for each domain.

    Raises:
        ConfigError: two options name the domains or the number of windows, or a number is below 1.
        DataError: see `WindowOptions.open`.
    """
    from dataclasses import replace

    if labels is not None:
        if windows.domains is not None:
            raise ConfigError("labels and domains both name the domains to read; give one of them")
        windows = replace(windows, domains=labels)
    if tokens is not None:
        if windows.max_windows is not None:
            raise ConfigError(f"tokens {tokens} and max_windows {windows.max_windows} exclude each other; give one")
        if tokens < 1:
            raise ConfigError(f"tokens {tokens} must be at least 1; leave it out for all")
        domains = windows.domains or TokenShards(folder).domains
        length = window_length(model, windows.seq_len)
        windows = replace(windows, max_windows=max(1, tokens // (length * max(1, len(domains)))))
    return windows.open(folder, split, model)


def _print_json(content: dict[str, object]) -> None:
    print(json.dumps(content, ensure_ascii=False))


def _print(info: IndexInfo, out: Path) -> None:
    for label, tokens, windows in zip(info.data.labels, info.tokens, info.windows, strict=True):
        print(f"{clean(label)}: {tokens:,} tokens of {windows:,} windows")
    if info.excluded:
        print(f"not counted: {info.excluded:,} tokens that begin or end a text, or that --exclude_* names")
    kind = "exact" if info.settings.tokens == "exact" else "estimated from samples"
    print(f"firing tokens: {kind}")
    if info.part is not None:
        held = ", ".join(map(str, info.part.held))
        print(f"part {held} of {info.part.count}; join all parts with `monet index merge`")
    print(f"index of {info.units.experts:,} experts and {2 * info.model.keys * info.model.groups:,} halves, "
          f"{readable(info.bytes)}: {out}")  # fmt: skip
