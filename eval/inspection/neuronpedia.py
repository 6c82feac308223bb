"""The folder that Neuronpedia imports: `MODEL/LAYER-monet-experts/`, with its tables as JSON lines.

Its importer takes only the columns that the first line of a file has, so every line has all of them.
"""

from __future__ import annotations

import datetime
import gzip
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from monet.eval.index.index import Index
from monet.eval.inspection.cards import Card
from monet.eval.inspection.promoted import Promotion
from monet.eval.inspection.saedashboard import SET_NAME, activation_groups, arrays, by_group

CREATOR = "monet"
_BATCH = 1024


def write(folder: Path, index: Index, name: str, cards: Sequence[Card], effects: Sequence[Promotion]) -> None:
    """Write one source for each routing group that has an expert; arguments as for `saedashboard.write`."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    for group, chosen in by_group(cards, effects).items():
        source = f"{index.info.model.layers[group]}-{SET_NAME}"
        place = folder / name / source
        for part in ("features", "activations"):
            (place / part).mkdir(parents=True)
        _write_line(place / "release.jsonl", _release(now))
        _write_line(place / "model.jsonl", _model(index, name, source, now))
        _write_line(place / "sourceset.jsonl", _source_set(name, now))
        _write_line(place / "source.jsonl", _source(index, name, source, now))
        for number, start in enumerate(range(0, len(chosen), _BATCH)):
            batch = chosen[start : start + _BATCH]
            features = (_feature(index, name, source, card, effect, now) for card, effect in batch)
            _write_gz(place / "features" / f"batch-{number}.jsonl.gz", features)
            lines = (line for card, _ in batch for line in _activations(index, name, source, card, now))
            _write_gz(place / "activations" / f"batch-{number}.jsonl.gz", lines)


def _release(now: str) -> dict[str, Any]:
    return {
        "name": SET_NAME,
        "description": "Experts of a Monet, exported by `monet index export`",
        "descriptionShort": "Monet experts",
        "creatorName": CREATOR,
        "urls": [],
        "visibility": "PRIVATE",
        "isNewUi": False,
        "featured": False,
        "createdAt": now,
        "creatorId": CREATOR,
    }


def _model(index: Index, name: str, source: str, now: str) -> dict[str, Any]:
    note = index.info.model
    return {
        "id": name,
        "instruct": False,
        "creatorId": CREATOR,
        "displayNameShort": name,
        "displayName": name,
        "tlensId": None,
        "dimension": None,
        "visibility": "PRIVATE",
        "layers": note.num_layers,
        "neuronsPerLayer": index.units.pairs,
        "owner": CREATOR,
        "website": None,
        "inferenceEnabled": False,
        "defaultSourceSetName": SET_NAME,
        "defaultSourceId": source,
        "createdAt": now,
        "updatedAt": now,
    }


def _source_set(name: str, now: str) -> dict[str, Any]:
    return {
        "modelId": name,
        "name": SET_NAME,
        "hasDashboards": True,
        "creatorId": CREATOR,
        "description": "Experts (i, j) of the routing groups; index i*E + j",
        "type": "Monet",
        "creatorName": CREATOR,
        "urls": [],
        "creatorEmail": None,
        "visibility": "PRIVATE",
        "releaseName": SET_NAME,
        "defaultRange": 0,
        "defaultShowBreaks": True,
        "showDfa": False,
        "showCorrelated": False,
        "showHeadAttribution": False,
        "showUmap": False,
        "createdAt": now,
    }


def _source(index: Index, name: str, source: str, now: str) -> dict[str, Any]:
    windows = sum(index.info.windows)
    return {
        "id": source,
        "modelId": name,
        "setName": SET_NAME,
        "creatorId": CREATOR,
        "hasDashboards": True,
        "inferenceEnabled": False,
        "inferenceHosts": [],
        "saelensConfig": None,
        "saelensRelease": None,
        "saelensSaeId": None,
        "hfRepoId": None,
        "hfFolderId": None,
        "visibility": "PRIVATE",
        "hasUmap": False,
        "hasUmapLogSparsity": False,
        "hasUmapClusters": False,
        "num_prompts": windows,
        "num_tokens_in_prompt": round(index.info.num_tokens / max(windows, 1)),
        "dataset": index.info.data.folder,
        "notes": None,
        "createdAt": now,
    }


def _feature(index: Index, name: str, source: str, card: Card, effect: Promotion, now: str) -> dict[str, Any]:
    return {
        "modelId": name,
        "layer": source,
        "index": str(card.unit.number),
        "sourceSetName": SET_NAME,
        "creatorId": CREATOR,
        "createdAt": now,
        "maxActApprox": card.row["max"],
        "hasVector": False,
        "vector": [],
        "vectorLabel": None,
        "vectorDefaultSteerStrength": None,
        "hookName": None,
        "topkCosSimIndices": [],
        "topkCosSimValues": [],
        **arrays(index, card, effect),
    }


def _activations(index: Index, name: str, source: str, card: Card, now: str) -> Iterable[dict[str, Any]]:
    for low, high, share, examples in activation_groups(index, card):
        for place, example in enumerate(examples):
            values = example.weights
            top = max(range(len(values)), key=values.__getitem__)
            yield {
                "id": _identifier(name, source, card.unit.number, low, place),
                "tokens": example.tokens,
                "index": str(card.unit.number),
                "layer": source,
                "modelId": name,
                "maxValue": values[top],
                "maxValueTokenIndex": top,
                "minValue": min(values),
                "values": values,
                "creatorId": CREATOR,
                "createdAt": now,
                "dataSource": index.info.data.folder,
                "dataIndex": str(example.window),
                "dfaValues": [],
                "dfaTargetIndex": None,
                "dfaMaxValue": None,
                "lossValues": [],
                "logitContributions": None,
                "binMin": low,
                "binMax": high,
                "binContains": share,
                "qualifyingTokenIndex": example.position,
                "zIndices": [],
                "zValues": [],
            }


def _identifier(*parts: object) -> str:
    """25 characters in the form of a cuid; equal for equal parts."""
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return "c" + digest[:24]


def _write_line(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_gz(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    with open(path, "wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file:
        for line in lines:
            file.write((json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
