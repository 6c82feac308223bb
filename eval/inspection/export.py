"""Export chosen experts of an index: `monet index export`. As JSON lines, or for Neuronpedia or SAEDashboard."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

from monet.errors import CheckpointError, ConfigError
from monet.eval.core.loading import load_model
from monet.eval.index.index import Context, Index
from monet.eval.index.units import Unit
from monet.eval.inspection import neuronpedia, saedashboard
from monet.eval.inspection.cards import Card, Example, card_of
from monet.eval.inspection.promoted import static_of_each
from monet.files import atomic_directory, atomic_path

Format = Literal["jsonl", "neuronpedia", "saedashboard"]


def run(
    index: Path,
    experts: str = "",
    format: Format = "jsonl",
    out: Path | None = None,
    model: str | None = None,
    around: int = 64,
    name: str | None = None,
    device: str = "auto",
) -> None:
    """Write chosen experts of an index, with their contexts and the weight at every token.

    The weights come from forward passes over the contexts' windows. So the model is needed; the index records its name.

    Args:
        index: folder of `monet index`.
        experts: what to write, separated by commas: 0:17 is expert id 17 (i*E + j) of routing group 0; 0:i3 and 0:j5
            are halves.
        format: jsonl writes one line for each expert. neuronpedia writes folders that Neuronpedia imports. saedashboard
            writes the batch files of SAEDashboard.
        out: file (jsonl) or new folder (the other formats); jsonl without it is printed.
        model: folder or hub name of the model; if omitted, as the index records it.
        around: tokens before and after each context in neuronpedia and saedashboard. jsonl has the whole windows.
        name: name of the model in neuronpedia and saedashboard; if omitted, the last part of its folder's name.
        device: device of the forward passes.

    Raises:
        CheckpointError: the index is damaged, or the model does not exist or is another one.
        ConfigError: no expert or no folder is named, or an expert does not exist.
    """
    if not experts:
        raise ConfigError("name the experts to export, such as --experts 0:17,1:402")
    if around < 0:
        raise ConfigError(f"around {around} must be at least 0 tokens")
    opened = Index(index)
    units = opened.units.parse(experts)
    if format != "jsonl":
        _check_folder(format, out, units)
    loaded = load_model(model_of(opened, model), device)
    opened = Index(index, loaded)
    if format == "jsonl":
        lines = (json.dumps(record(card_of(opened, loaded, unit)), ensure_ascii=False) for unit in units)
        if out is None:
            _write(lines, sys.stdout)
            return
        with atomic_path(out) as temporary, open(temporary, "w", encoding="utf-8") as file:
            _write(lines, file)
    else:
        assert out is not None
        cards = [card_of(opened, loaded, unit, around) for unit in units]
        title = name or Path(opened.info.model.name).name or "monet"
        writer = neuronpedia if format == "neuronpedia" else saedashboard
        with atomic_directory(out) as folder:
            writer.write(folder, opened, title, cards, list(static_of_each(loaded, units)))
    print(f"{len(units)} experts: {out}")


def record(card: Card) -> dict[str, Any]:
    """One line of the format jsonl."""
    unit = card.unit
    return {
        "group": unit.group,
        "i": unit.i,
        "j": unit.j,
        "id": unit.number if unit.kind == "pair" else None,
        "count": card.row["count"],
        "max": card.row["max"],
        "top": [_example(context, example) for context, example in zip(card.contexts, card.top, strict=True)],
    }


def _example(context: Context, example: Example) -> dict[str, Any]:
    return {
        "window": context.window,
        "position": context.position,
        "weight": context.weight,
        "tokens": example.tokens,
        "weights": example.weights,
    }


def _write(lines: Iterator[str], file: IO[str]) -> None:
    for line in lines:
        file.write(line + "\n")


def _check_folder(format: Format, out: Path | None, units: list[Unit]) -> None:
    if out is None:
        raise ConfigError(f"format {format} writes a folder; name it with --out")
    for unit in units:
        if unit.kind != "pair":
            raise ConfigError(f"{unit.name} is a half; format {format} takes experts, such as 0:17; jsonl takes halves")


def model_of(index: Index, name: str | None) -> str:
    """The model to load: as given, or as the index records it, from here or next to the index.

    Raises:
        CheckpointError: the index was made from a model in memory, so its name is not known.
    """
    recorded = index.info.model.name
    if name is not None:
        return name
    if not recorded:
        raise CheckpointError(f"{index.folder} was made from a model in memory; name its folder with --model")
    beside = index.folder / recorded
    return str(beside) if beside.is_dir() and not Path(recorded).is_dir() else recorded
