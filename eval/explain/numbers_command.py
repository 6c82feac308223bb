"""The verb `monet index numbers`."""

from __future__ import annotations

from pathlib import Path

from monet.errors import CheckpointError, ConfigError
from monet.eval.baselines.neurons import load_llama
from monet.eval.core.loading import provenance_now
from monet.eval.core.options import Intervals
from monet.eval.explain.numbers import KindName, KindNumbers, NumbersResult, drawn_units, of_index, of_neurons, overlap
from monet.eval.explain.strongest import WindowTable
from monet.eval.index.index import Index
from monet.eval.index.units import Unit
from monet.eval.reporting.terminal import show
from monet.files import atomic_write_json


def run(
    index: Path,
    compare: list[Path] = [],  # noqa: B006 - shown in --help, never changed
    dense: str | None = None,
    units: int = 1000,
    min_count: int = 50,
    out: Path | None = None,
    device: str = "auto",
    progress: bool = True,
    intervals: Intervals = Intervals(),  # noqa: B008 - frozen
) -> None:
    """Monosemanticity of whole models in numbers: pairs, halves and a dense model's neurons, next to a control.

    Shows for each kind of unit how many are used, and what its strongest contexts and all its firings have in common.
    This is the share of the commonest token, the share of units with one label, and the entropy over labels. Detection
    scores of `monet score` are shown too. In the control, tokens and labels are random. All kinds have as many units.

    Args:
        index: folder of `monet index`.
        compare: further indexes of the same text, for example of another training seed; the overlap says how many
            units have a counterpart there.
        dense: folder of a dense LLaMA with the same tokenizer; one pass over the text of the index finds the strongest
            contexts of its neurons.
        units: units of each kind, at most; all kinds take as many as the smallest has.
        min_count: units with fewer firings are left out of the draw.
        out: JSON file for the result.
        device: device of the dense model.
        progress: show a bar on standard error.

    Raises:
        CheckpointError: an index is damaged, or the indexes are of different texts.
        ConfigError: a number is below 1, or no unit fires `min_count` times.
        DataError: the dense model has another tokenizer.
    """
    if units < 1 or min_count < 1:
        raise ConfigError(f"units {units} and min_count {min_count} must be at least 1")
    bootstrap = intervals.bootstrap()
    first, *others = opened = [Index(folder) for folder in [index, *compare]]
    for other in others:
        if other.info.data.fingerprint != first.info.data.fingerprint:
            raise CheckpointError(
                f"{other.folder} and {first.folder} are indexes of different texts; index the same text"
            )
        if other.info.part != first.info.part:
            raise CheckpointError(
                f"{other.folder} and {first.folder} hold different parts of a text; merge the parts of each first "
                "(monet index merge)"
            )
    kinds: tuple[KindName, ...] = ("pair", "half")
    found: dict[tuple[int, KindName], list[Unit]] = {
        (n, kind): drawn_units(one, kind, units, min_count, bootstrap.seed)
        for n, one in enumerate(opened)
        for kind in kinds
    }
    size = min(map(len, found.values()))
    if not size:
        raise ConfigError(f"no unit of some kind fires {min_count} times; lower --min_count")
    drawn = {(n, kind): drawn_units(opened[n], kind, size, min_count, bootstrap.seed) for n, kind in found}
    windows = WindowTable(first)
    kinds_found: list[KindNumbers] = []
    for number, one in enumerate(opened):
        for kind in kinds:
            chosen = drawn[number, kind]
            numbers = of_index(one, windows, kind, chosen, bootstrap)
            pairs = [other for other in opened if other is not one]
            numbers.measures.extend(overlap(one, other, windows, kind, chosen, min_count, bootstrap) for other in pairs)
            kinds_found.append(numbers)
    if dense is not None:
        kinds_found.append(of_neurons(load_llama(dense, device, "auto"), first, windows, size, bootstrap, progress))
    settings = {
        "indexes": [one.folder.name for one in opened], "data_fingerprint": first.info.data.fingerprint,
        "models": [one.info.model.fingerprint for one in opened], "min_count": min_count,
        "resamples": bootstrap.resamples, "confidence": bootstrap.confidence, "seed": bootstrap.seed,
    }  # fmt: skip
    result = NumbersResult(
        kinds_found, first.info.num_tokens, first.info.data.labels, {**provenance_now(), "settings": settings}
    )
    show(result.report())
    if out is not None:
        atomic_write_json(out, result.to_json())
        print(f"result: {out}")
