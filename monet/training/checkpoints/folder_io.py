"""Converts between Lightning's checkpoint dictionary and a checkpoint folder, written by all ranks together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import override

from monet.errors import CheckpointError, MonetError
from monet.files import begin_directory, manifest_entries, publish_directory, write_manifest
from monet.json_text import parse_json
from monet.training.checkpoints import tensor_files, tree
from monet.training.checkpoints.checkpoint import (
    CONFIG,
    FORMAT_VERSION,
    MODEL,
    OPTIMIZER,
    STATE,
    TENSORS,
    rank_file,
    read_config,
    read_state,
    read_tensors,
    read_weights,
    verify_checkpoint,
)
from monet.training.checkpoints.tensor_files import Source, StoredTensors, TensorFile
from monet.training.ranks.coordination import RankError, Ranks

PREFIX = "model."  # the Lightning module holds the language model as `self.model`
Names = Mapping[str, Tensor]


class FolderCheckpointIO(CheckpointIO):
    """Writes Lightning's checkpoint dictionary to a folder and reads it back; every rank calls it.

    The dictionary holds `config` (the model's configuration, JSON-able), `moments` (optimiser state by parameter name)
    and `rank_state` (a tree of this rank's own state), added by the module and callbacks. Tensors of `state_dict` and
    `moments` that another rank writes may be meta tensors.

    Attributes:
        ranks: all ranks of the run; a single process until a strategy sets it.
    """

    def __init__(self) -> None:
        self.ranks = Ranks()

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write this rank's files; after all ranks have written, publish the folder by renaming it to `path`.

        Raises:
            CheckpointError: on every rank, if a value of any rank cannot be stored or written to its disk (the message
                names the rank and the reason), or if a rank died; then nothing is published.
        """
        final, folder, error = Path(path), None, None
        try:
            if self.ranks.rank == 0:
                try:
                    folder = begin_directory(final)
                except OSError as raised:
                    error = _cannot_write(final, raised)
            told, error = self.ranks.broadcast((folder and str(folder), error), f"checkpoint {final}")
            if told is None:
                raise CheckpointError(error)
            folder = Path(told)
            entries, error = {}, None
            try:
                names = _write_part(checkpoint, folder, self.ranks)
                entries = manifest_entries(folder, names)
            except MonetError as raised:
                error = str(raised)
            except (OSError, SafetensorError) as raised:
                error = _cannot_write(final, raised)
            parts = self.ranks.gather((entries, error), f"checkpoint {final}") or []  # rank 0 gets all
            failed = [(rank, reason) for rank, (_, reason) in enumerate(parts) if reason is not None]
            if parts and not failed:
                try:
                    write_manifest(folder, {name: entry for written, _ in parts for name, entry in written.items()})
                    publish_directory(folder, final)
                except OSError as raised:
                    failed = [(0, _cannot_write(final, raised))]
            failed = self.ranks.broadcast(failed, f"checkpoint {final}")
            if failed:
                where = f" (rank {', '.join(str(rank) for rank, _ in failed)})" if self.ranks.world_size > 1 else ""
                raise CheckpointError(f"{failed[0][1]}{where}")
        except RankError as raised:
            # the last rank may have died after the rename
            raise CheckpointError(f"{raised}; it is published whole or not at all, earlier ones are intact") from raised
        finally:
            if self.ranks.rank == 0 and folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a folder; weights and moments are mappings that read each tensor on access.

        Rank 0 checks names and sizes for all ranks. `newest_valid`, which chooses the folder, checks hashes.
        `rank_state` is None if another number of ranks wrote the folder.

        Raises:
            CheckpointError: on every rank, if rank 0 finds a file that differs from the manifest; on one rank, if it
                cannot read a file.
        """
        folder, error = Path(path), None
        if self.ranks.rank == 0:
            try:
                verify_checkpoint(folder, full=False)
            except (CheckpointError, OSError) as raised:
                error = str(raised)
        if (error := self.ranks.broadcast(error, f"opening checkpoint {folder}")) is not None:
            raise CheckpointError(error)
        checkpoint = tree.decode(read_state(folder), read_tensors(folder / TENSORS))
        checkpoint["config"] = read_config(folder)
        checkpoint["state_dict"] = _Prefixed(read_weights(folder), checkpoint["config"])
        checkpoint["moments"] = StoredTensors(folder, OPTIMIZER)
        same = checkpoint["world_size"] == self.ranks.world_size
        checkpoint["rank_state"] = _read_rank_state(folder / rank_file(self.ranks.rank)) if same else None
        return checkpoint

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        shutil.rmtree(path, ignore_errors=True)


def own_tensors(world_size: int, rank: int, weights: Names, moments: Names) -> set[str]:
    """Return the names of the weights and moments that a rank writes; saving uses the same rule."""
    files = _layout(weights, moments, world_size)
    return {name for file in files[0] + files[1] if file.owner == rank for name in file.tensors}


def _layout(weights: Names, moments: Names, world_size: int) -> tuple[list[TensorFile], list[TensorFile]]:
    files = tensor_files.plan(MODEL, weights, world_size)
    return files, tensor_files.plan(OPTIMIZER, moments, world_size, first_owner=len(files))


def _write_part(checkpoint: dict[str, Any], folder: Path, ranks: Ranks) -> list[str]:
    """Write this rank's files into `folder` and return their names."""
    rest = {"moments": {}, "rank_state": None, **checkpoint}
    weights, config = rest.pop("state_dict"), rest.pop("config")
    moments, rank_state = rest.pop("moments"), rest.pop("rank_state")
    weights = released(weights, config)
    layout = _layout(weights, moments, ranks.world_size)
    document, tensors = tree.encode({"state": rank_state})
    names = [rank_file(ranks.rank)]
    save_file(tensors, folder / names[0], metadata={"document": json.dumps(document, allow_nan=False)})
    mode = _public_mode(folder)
    (folder / names[0]).chmod(mode)
    for files, source in zip(layout, (weights, moments), strict=True):
        for file in files:
            if file.owner == ranks.rank:
                tensor_files.write(folder, file, source, mode)
                names.append(file.name)
    if ranks.rank == 0:
        for stem, files, source in zip((MODEL, OPTIMIZER), layout, (weights, moments), strict=True):
            tensor_files.write_index(folder, stem, files, source)
            names += [tensor_files.index_name(stem)] if len(files) > 1 else []
        document, tensors = tree.encode({**rest, "world_size": ranks.world_size})
        save_file(tensors, folder / TENSORS)
        (folder / TENSORS).chmod(mode)
        _write_json(folder / CONFIG, config, indent=2)
        _write_json(folder / STATE, {"format_version": FORMAT_VERSION, "state": document})
        names += [TENSORS, CONFIG, STATE]
    return names


def released(state_dict: Names, config: dict[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a Lightning state dictionary under their released names.

    Raises:
        CheckpointError: a weight does not belong to the language model.
    """
    if foreign := [name for name in state_dict if not name.startswith(PREFIX)]:
        raise CheckpointError(f"weights outside the language model cannot be stored: {', '.join(sorted(foreign)[:5])}")
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in state_dict.items()}
    if config.get("tie_word_embeddings"):
        weights.pop("lm_head.weight", None)
    return weights


class _Prefixed(Source):
    """Return stored weights under the names of the Lightning module."""

    def __init__(self, weights: StoredTensors, config: dict[str, Any]) -> None:
        self.weights = weights
        self.places = {PREFIX + name: name for name in weights}
        if config.get("tie_word_embeddings"):
            self.places[PREFIX + "lm_head.weight"] = "model.embed_tokens.weight"

    def __getitem__(self, name: str) -> Tensor:
        return self.weights[self.places[name]]

    @override
    def shape(self, name: str) -> tuple[int, ...]:
        return self.weights.shape(self.places[name])

    @override
    def part(self, name: str, start: int, stop: int) -> Tensor:
        return self.weights.part(self.places[name], start, stop)

    def __contains__(self, name: object) -> bool:
        return name in self.places and self.places[str(name)] in self.weights

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def _read_rank_state(path: Path) -> Any:
    try:
        with safe_open(path, framework="pt") as file:
            document = parse_json((file.metadata() or {})["document"], str(path), CheckpointError)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error!r}") from None
    return tree.decode(document, tensors)["state"]


def _public_mode(folder: Path) -> int:
    # permissions of a new file of this process
    return folder.stat().st_mode & 0o666


def _cannot_write(path: Path, error: Exception) -> str:
    if isinstance(error, FileExistsError):
        return f"{path} exists already; a checkpoint is never overwritten"
    return f"cannot write checkpoint {path}: {error}; earlier checkpoints are intact"


def _write_json(path: Path, content: Any, indent: int | None = None) -> None:
    path.write_text(json.dumps(content, indent=indent, allow_nan=False) + "\n", encoding="utf-8")
