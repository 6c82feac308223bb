"""Batches of windows for Lightning: data prepared if missing, position resumed exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.utilities import rank_zero_warn

from monet.data import limits
from monet.data.documents.hub import SCHEME
from monet.data.loading.loaders import TrainStream, ValidationPass
from monet.data.loading.order import WindowOrder
from monet.data.loading.windows import WindowDataset
from monet.data.storage.shards import MANIFEST, TokenShards, read_manifest
from monet.errors import ConfigError, DataError


class MonetDataModule(L.LightningDataModule):
    """Batches of token windows with a domain label.

    Training batches are an endless stream. Batch n depends only on the data, the seed, n, batch size and rank. A
    checkpoint saves the stream's position, which counts used batches, not batches fetched ahead.

    Args:
        data_dir: folder with prepared data; created on the first run if `source` or `prepare_config` is given.
        source: text to prepare the data from (file, folder or hf://OWNER/NAME); None uses data_dir unchanged.
        tokenizer: fast tokenizer for the preparation, a folder or Hugging Face name; None trains one.
        vocab_size: number of ids of a trained tokenizer; None uses the default of the preparation.
        prepare_config: YAML file with further settings of the preparation, as for `monet data prepare --config`;
            `source`, `tokenizer` and `vocab_size` given here take precedence, and `data_dir` replaces its `out`.
        seq_len: tokens that a window predicts; a window has one more.
        batch_size: windows in a batch of one rank (and one accumulation step).
        seed: seed for the order of the training windows.
        mixture: share of the training windows drawn from each domain, in any unit; a domain that is not named is not
            drawn. None draws every window equally often, and leaves out domains with less text than a window.
        max_val_windows: maximum number of validation windows of each domain, spread evenly over it, but at least one
            per rank; None takes all.
        document_mask: no attention across documents inside a window, and positions counted from each document's start;
            false lets a token attend to the whole window before it.
        num_workers: loader processes of each rank; 0 loads in the training process.
        pin_memory: put batches in page-locked memory, which speeds up transfers to a GPU.
        full_check: hash every shard and check every id at each start; null does so below 1 GB of ids, and above that
            checks names, sizes and a sample of document ends.
        loader_timeout: seconds after which a loader process without a batch ends the run; 0 waits forever.
    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(
        self,
        data_dir: str,
        source: str | None = None,
        tokenizer: str | None = None,
        vocab_size: int | None = None,
        prepare_config: str | None = None,
        seq_len: int = 256,
        batch_size: int = 16,
        seed: int = 0,
        mixture: dict[str, float] | None = None,
        max_val_windows: int | None = 64,
        document_mask: bool = False,
        num_workers: int = 0,
        pin_memory: bool = False,
        full_check: bool | None = None,
        loader_timeout: int = 600,
    ) -> None:
        super().__init__()
        self.prepare_data_per_node = False  # all nodes see one data_dir
        for name, value, least in (
            ("seq_len", seq_len, 1),
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("loader_timeout", loader_timeout, 0),
            ("max_val_windows", 1 if max_val_windows is None else max_val_windows, 1),
        ):
            if value < least:
                raise ConfigError(f"{name} {value} must be at least {least}")
        self.data_dir = Path(data_dir)
        self.source = source
        self.tokenizer = tokenizer
        self.vocab_size_wanted = vocab_size
        self.prepare_config = prepare_config
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.seed = seed
        self.mixture = mixture
        self.max_val_windows = max_val_windows
        self.document_mask = document_mask
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.full_check = full_check
        self.loader_timeout = loader_timeout
        self._shards: TokenShards | None = None
        self._stream: TrainStream | None = None
        self._position: dict[str, Any] | None = None

    @property
    def shards(self) -> TokenShards:
        """The open data.

        Raises:
            DataError: the data are missing or damaged.
        """
        if self._shards is None:
            self._shards = self._checked()
        return self._shards

    def _checked(self) -> TokenShards:
        """Open the data and check every shard."""
        full = self.full_check
        if full is None:
            domains = (part for split in read_manifest(self.data_dir)["splits"].values() for part in split.values())
            ids = sum(entry["files"][".bin"]["bytes"] for part in domains for entry in part["shards"])
            full = ids < limits.HASHED_TOKEN_BYTES
        return TokenShards(self.data_dir, full=full)

    def open_together(self) -> None:
        """Check every shard on rank 0 only: thousands of ranks must not ask for the size of every file.

        Raises:
            DataError: on all ranks, if rank 0 finds a fault.
        """
        trainer = self.trainer
        if self._shards is not None or trainer is None or trainer.world_size == 1:
            return
        fault = None
        if trainer.is_global_zero:
            try:
                self._shards = self._checked()
            except (DataError, OSError) as error:
                fault = str(error)
        if (fault := trainer.strategy.broadcast(fault)) is not None:
            raise DataError(fault)
        if self._shards is None:
            self._shards = TokenShards(self.data_dir, trusted=True)

    @property
    def domains(self) -> list[str]:
        """Names of the domains; `domain` of a batch is an index into this list."""
        return self.shards.domains

    @property
    def vocab_size(self) -> int:
        """Number of ids of the tokenizer; a model's vocabulary must be at least as large."""
        return self.shards.vocab_size

    @property
    def tokenizer_dir(self) -> Path:
        """Folder for `AutoTokenizer.from_pretrained`."""
        return self.shards.tokenizer_dir

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the data's content."""
        return self.shards.fingerprint

    def prepare_data(self) -> None:
        """Prepare `data_dir`, or check that it was prepared with these settings. Runs in one process.

        Raises:
            ConfigError: `data_dir` holds data with other settings.
            DataError: the text cannot be used, or there is neither prepared data nor a source.
        """
        settings = self._preparation()
        source = settings.get("source")
        # prepared data can be used after their source text is removed
        if (self.data_dir / MANIFEST).is_file() and not _is_here(source):
            return
        if source is None:
            raise DataError(
                f"{self.data_dir}: no prepared data; give a source (or a prepare_config) to make them from, or run "
                f"`monet data prepare --out {self.data_dir}`"
            )
        _prepare({**settings, "out": str(self.data_dir)})

    def _preparation(self) -> dict[str, Any]:
        """Return the arguments of `prepare` from the configuration, without `out`."""
        settings: dict[str, Any] = {}
        if self.prepare_config is not None:
            try:
                settings = yaml.safe_load(Path(self.prepare_config).read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
                raise ConfigError(f"prepare_config {self.prepare_config!r} cannot be read: {error}") from None
            if not isinstance(settings, dict):
                raise ConfigError(
                    f"prepare_config {self.prepare_config!r} must hold keys and values of the preparation"
                )
        given = {"source": self.source, "tokenizer": self.tokenizer, "vocab_size": self.vocab_size_wanted}
        return settings | {key: value for key, value in given.items() if value is not None}

    def setup(self, stage: str | None = None) -> None:
        """Open and check the data; a new fit starts at the loaded position, or at the first batch."""
        self.open_together()
        if stage == "fit":
            self._stream = None
        if self.mixture is not None and (unknown := sorted(set(self.mixture) - set(self.domains))):
            raise ConfigError(f"mixture: no domain {unknown[0]!r} in {self.data_dir}; it has {', '.join(self.domains)}")

    def train_dataloader(self) -> TrainStream:
        """Return the endless stream, at the position loaded last."""
        windows = WindowDataset(
            self.shards, "train", self.seq_len, self._long_enough(), document_mask=self.document_mask
        )
        weights = None if self.mixture is None else {name: self.mixture.get(name, 0.0) for name in windows.chosen}
        world_size, rank = self._place()
        stream = TrainStream(
            windows,
            WindowOrder(windows.counts, self.seed, weights),
            self.batch_size,
            world_size=world_size,
            rank=rank,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            timeout=self.loader_timeout,
            # a trainer fetches one batch ahead, so on_before_batch_transfer counts instead
            count_on_yield=self.trainer is None,
        )
        position = self._position if self._stream is None else self._stream.state_dict()
        if position is not None:
            stream.load_state_dict(position)
        self._stream, self._position = stream, None
        return stream

    def _long_enough(self) -> list[str] | None:
        """Return the domains whose training text fills a window; None if there is none, so that an error names one.

        Raises:
            DataError: the mixture draws a domain whose text is too short.
        """
        tokens = {name: self.shards.stream("train", name).num_tokens for name in self.domains}
        short = [name for name, count in tokens.items() if count <= self.seq_len]
        for name in short:
            if self.mixture is not None and self.mixture.get(name):
                raise DataError(
                    f"mixture: domain {name!r} has {tokens[name]} training tokens, but a window of seq_len "
                    f"{self.seq_len} needs {self.seq_len + 1}; remove it from the mixture, shorten seq_len or add text"
                )
        if self.mixture is None and 0 < len(short) < len(tokens):
            rank_zero_warn(f"training leaves out {', '.join(short)}: less text than a window of seq_len {self.seq_len}")
        return [name for name in self.domains if name not in short] or None

    def val_dataloader(self) -> ValidationPass | list[Any]:
        """Return held-out windows, each batch from one domain. Domains with less text than a window are left out.

        For data without the split "validation", warn and return []: nothing is validated.
        """
        world_size, rank = self._place()
        if "validation" not in self.shards.splits:
            rank_zero_warn(
                f"{self.data_dir} has no split 'validation' (it has {', '.join(self.shards.splits)}): nothing is "
                "validated; prepare the data with a share for this split to get held-out losses"
            )
            return []
        held_out = {name: self.shards.stream("validation", name).num_tokens for name in self.domains}
        enough = [name for name, tokens in held_out.items() if tokens > self.seq_len * world_size]
        if few := sorted(set(held_out) - set(enough)):
            rank_zero_warn(
                f"validation leaves out {', '.join(few)}: less held-out text than a window of seq_len {self.seq_len} "
                f"for each of {world_size} rank(s)"
            )
        return ValidationPass(
            WindowDataset(self.shards, "validation", self.seq_len, enough or None, document_mask=self.document_mask),
            self.batch_size,
            max_windows=self.max_val_windows,
            world_size=world_size,
            rank=rank,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            timeout=self.loader_timeout,
        )

    def _place(self) -> tuple[int, int]:
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Count a training batch as used when its step starts; only training batches have "number"."""
        if self._stream is not None and isinstance(batch, dict) and "number" in batch:
            self._stream.consumed = int(batch["number"]) + 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the training stream, see `TrainStream.state_dict`; {} before the stream exists."""
        if self._stream is not None:
            return self._stream.state_dict()
        return dict(self._position or {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at a saved position.

        Raises:
            DataError, ConfigError: the position belongs to other data or settings; may be raised by a later call.
        """
        if self._stream is None:
            self._position = dict(state_dict) or None
        else:
            self._stream.load_state_dict(state_dict)


def _is_here(source: Any) -> bool:
    """Return whether all text of a preparation is on this machine, so that it can be compared."""
    parts = list(source.values()) if isinstance(source, dict) else [source]
    return all(isinstance(part, str) and not part.startswith(SCHEME) and Path(part).exists() for part in parts)


def _prepare(settings: dict[str, Any]) -> None:
    """Call `prepare` with settings from a file, after checking them against its signature."""

    from jsonargparse import ArgumentError, ArgumentParser

    from monet.data.preparation.prepare import prepare

    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(prepare, as_positional=False)
    try:
        arguments = parser.instantiate(parser.parse_object(settings))
    except ArgumentError as error:
        raise ConfigError(f"settings of the data preparation: {error}") from None
    prepare(**arguments.as_dict())
