"""Make an index: `monet index`. One pass over text, kept in `OUT.partial` until it is complete.

The tables are saved from time to time. After a kill, the same command continues from there, with the same bytes as an
uninterrupted pass: neither the order of the text nor a pause changes the tables (monet/eval/index/tables.py).
"""

from __future__ import annotations

import dataclasses
import json
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from monet.errors import CheckpointError, ConfigError, DataError
from monet.eval.attribution.statistics.exclusion import Exclusion
from monet.eval.attribution.statistics.passes import read_text
from monet.eval.core import text_overlap
from monet.eval.core.inputs import Batch, LabelledData
from monet.eval.core.loading import mask_digest, provenance_now, weights_digest, windows_bar
from monet.eval.core.store import sources_digest
from monet.eval.index.folder import WorkFolder
from monet.eval.index.info import DataNote, IndexInfo, ModelNote, PartNote, Settings
from monet.eval.index.passes import chunks_of
from monet.eval.index.reader import IndexReader
from monet.eval.index.tables import Sizes
from monet.eval.index.text import rows_of, table_of
from monet.eval.index.units import Units
from monet.eval.index.write import write_index
from monet.files import atomic_path
from monet.json_text import parse_json
from monet.parts import Part

if TYPE_CHECKING:
    from monet.model.modeling_monet import MonetPreTrainedModel

_STATE = "state.safetensors"
# Memory for exact counts of firing tokens, in MiB, if the user names none.
TOKEN_MEMORY = 512


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What an index collects.

    Args:
        top: contexts of each unit.
        seed: seed of the samples.
        token_memory: MiB for exact counts of the tokens at which each unit fires; if they need more, samples estimate
            them.

    Raises:
        ConfigError: a number is out of range.
    """

    top: int = 16
    seed: int = 0
    token_memory: int = TOKEN_MEMORY

    def __post_init__(self) -> None:
        if not 1 <= self.top <= 1024:
            raise ConfigError(f"top {self.top} must be from 1 to 1024 contexts of each expert")
        if not 0 <= self.seed < 1 << 31:
            raise ConfigError(f"seed {self.seed} must be from 0 to {(1 << 31) - 1}")
        if self.token_memory < 0:
            raise ConfigError(f"token_memory {self.token_memory} must be at least 0 MiB; 0 estimates from samples")


def sizes_of(info: IndexInfo) -> Sizes:
    """Sizes of the tables of each group."""
    vocabulary = info.model.vocabulary if info.settings.tokens == "exact" else 0
    return Sizes(
        info.units.per_group, info.settings.top, len(info.data.labels), info.model.heads, vocabulary, info.settings.seed
    )


def build(
    model: MonetPreTrainedModel,
    data: LabelledData,
    out: Path,
    *,
    wanted: Wanted = Wanted(),
    exclusion: Exclusion | None = None,
    part: Part | None = None,
    tokenizer: Any = None,
    data_folder: str = "",
    batch_size: int = 8,
    save_seconds: float = 300.0,
    progress: bool = True,
    overwrite: bool = False,
) -> IndexInfo:
    """Index every expert and half of a model over a text.

    Args:
        model: a Monet model, with or without head; it runs in eval mode.
        data: labelled sequences.
        out: folder to make. A finished index with the same content is kept.
        wanted: what to collect.
        exclusion: tokens that do not count, in addition to pads; None excludes those that begin, end and pad a text.
        part: read only this part of the text; merge the parts later. None reads all.
        tokenizer: the model's tokenizer, for the texts of tokens; None shows ids.
        data_folder: folder of the data, for the record.
        batch_size: windows that are read at once; it does not change the index.
        save_seconds: seconds between two saves of the work.
        progress: show a bar on standard error.
        overwrite: replace an index, or the work on one, with other content.

    Raises:
        ConfigError: a setting is out of range, or `out` holds another index and `overwrite` is false.
        DataError: there is no token to count, or an id is beyond the model's vocabulary.
        NonFiniteError: a router gave NaN or infinite probabilities.
    """
    exclusion = Exclusion.chosen(model, tokenizer) if exclusion is None else exclusion
    info = _described(model, data, wanted, exclusion, part, data_folder)
    with WorkFolder(out, info, {"sources": sources_digest()}, overwrite) as work:
        if work.finished is not None:
            return work.finished
        counted = _Pass(info, model, exclusion, work.path / _STATE)
        counted.run(model, data, part, batch_size, save_seconds, progress)
        found = dataclasses.replace(
            info, tokens=counted.tokens_C.tolist(), windows=counted.windows_C.tolist(), excluded=counted.excluded,
            text=counted.text.signature().notes(),
        )  # fmt: skip
        if not found.num_tokens:
            raise DataError(f"no text to index: {data.description}; prepare a larger split, or exclude fewer tokens")
        rows = table_of(rows_of(data, chunks_of(data, part, batch_size=batch_size), exclusion))
        with work.publishing() as folder:
            write_index(folder, found, (tables.state() for tables in counted.reader.tables), [rows], tokenizer)
    return IndexInfo.load(out)


class _Pass:
    """The counts of a pass, and their file.

    Args:
        info: what is counted.
        model: the model.
        exclusion: tokens that do not count.
        path: file of the counts so far; it is read if it exists.
    """

    def __init__(self, info: IndexInfo, model: MonetPreTrainedModel, exclusion: Exclusion, path: Path) -> None:
        self.reader = IndexReader(info.units, sizes_of(info), model.device, exclusion)
        self.tokens_C, self.windows_C = (torch.zeros(len(info.data.labels), dtype=torch.int64) for _ in range(2))
        self.excluded = self.chunks = 0
        self.text = text_overlap.Collected()
        self.path = path
        if path.exists():
            self._restore()

    def run(
        self,
        model: MonetPreTrainedModel,
        data: LabelledData,
        part: Part | None,
        batch_size: int,
        save_seconds: float,
        progress: bool,
    ) -> None:
        """Read the chunks that are not counted yet, and save the counts from time to time and at the end."""
        last = time.monotonic()

        def done(batch: Batch, length_B: Tensor) -> None:
            nonlocal last
            self.count_batch(batch, length_B)
            bar.update(len(length_B))
            if time.monotonic() - last >= save_seconds:
                self._save()
                last = time.monotonic()

        before = int(self.windows_C.sum())
        total = data.num_windows if part is None else -(-data.num_windows // part.count)
        with closing(windows_bar(total, "index", progress)) as bar:
            bar.update(before)
            chunks = chunks_of(data, part, self.chunks, batch_size)
            read_text(model, chunks, self.reader, done)
        self._save()

    def count_batch(self, batch: Batch, length_B: Tensor) -> None:
        self.text.add(batch)
        self.excluded += int((batch.num_tokens_B - length_B).sum())
        self.tokens_C.index_add_(0, batch.label_B, length_B)
        self.windows_C.index_add_(0, batch.label_B, torch.ones_like(length_B))
        self.chunks += 1
        if int(self.tokens_C.sum()) >= 1 << 31:
            raise DataError("an index counts up to 2^31 tokens; read fewer (--tokens), or index parts of the text")

    def _save(self) -> None:
        from safetensors.torch import save_file

        notes = {"chunks": self.chunks, "excluded": self.excluded, "text": self.text.signature().notes()}
        tensors = {"tokens_C": self.tokens_C, "windows_C": self.windows_C}
        for group, tables in enumerate(self.reader.tables):
            tensors |= {f"{group}.{name}": tensor for name, tensor in tables.state().tensors().items()}
        with atomic_path(self.path) as temporary:
            save_file(tensors, temporary, {"notes": json.dumps(notes)})

    def _restore(self) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "pt") as file:
                notes = parse_json(file.metadata()["notes"], str(self.path), CheckpointError)
                self.tokens_C, self.windows_C = file.get_tensor("tokens_C"), file.get_tensor("windows_C")
                for group, tables in enumerate(self.reader.tables):
                    names = [key for key in file.keys() if key.startswith(f"{group}.")]  # noqa: SIM118 - not a dict
                    tables.restore({name.partition(".")[2]: file.get_tensor(name) for name in names})
            self.chunks, self.excluded = int(notes["chunks"]), int(notes["excluded"])
            self.text = text_overlap.Collected.of(notes["text"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{self.path} is damaged ({error}); remove its folder to start again") from None


def _described(
    model: MonetPreTrainedModel,
    data: LabelledData,
    wanted: Wanted,
    exclusion: Exclusion,
    part: Part | None,
    data_folder: str,
) -> IndexInfo:
    config: Any = model.config
    units = Units(len(model.routers()), cast(int, config.moe_experts))
    needed = units.groups * units.per_group * config.vocab_size * 4
    numbers, size = config.monet_layers, config.moe_groups
    layers = [numbers[begin : begin + size] for begin in range(0, len(numbers), size)]
    return IndexInfo(
        model=ModelNote(
            name=str(model.name_or_path),
            fingerprint=model.fingerprint(),
            weights=weights_digest(model),
            stored_mask=mask_digest(model.expert_mask),
            dtype=str(model.dtype).removeprefix("torch."),
            device=model.device.type,
            groups=units.groups,
            keys=units.keys,
            heads=config.moe_heads,
            vocabulary=config.vocab_size,
            num_layers=config.num_hidden_layers,
            layers=[group[0] for group in layers],
            last_layers=[group[-1] for group in layers],
        ),
        data=DataNote(data_folder, data.fingerprint, data.description, list(data.labels)),
        settings=Settings(
            wanted.top, wanted.seed, "exact" if needed <= wanted.token_memory << 20 else "sampled",
            list(exclusion.ids), exclusion.first,
        ),
        tokens=[], windows=[], excluded=0, text={}, versions=provenance_now()["versions"],
        part=None if part is None else PartNote([part.index], part.count),
    )  # fmt: skip
