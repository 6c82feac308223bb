"""Streams what the MLPs of a frozen dense model read and write, window by window, from prepared text.

An attention context is a window, or with document masks each document in it. Its first token is special: every later
token attends to it, and its states have far larger norms than all others ("massive activations"). A beginning-of-text
token has such states at every position. One of them would dominate means and squared errors. So these tokens are
marked, left out of standardisation and of the FVU, and get a small separate weight in the loss.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from monet.convert.dense.precision import Arithmetic
from monet.data.loading.datamodule import MonetDataModule
from monet.data.loading.loaders import TrainStream
from monet.errors import ConfigError, DataError, NonFiniteError
from monet.options import Options


@dataclass(frozen=True)
class TextOptions(Options):
    """Which text is read, and in which order.

    Args:
        seq_len: tokens of a window.
        batch_size: windows of a step; a step of the first stage reads seq_len * batch_size tokens.
        seed: seed for the order of the windows and for random starts.
        mixture: share of the windows drawn from each domain, in any unit; null draws every window equally often.
        document_mask: no attention across documents inside a window.
    """

    seq_len: int = 512
    batch_size: int = 8
    seed: int = 0
    mixture: dict[str, float] | None = None
    document_mask: bool = False

    def module(self, data: Path) -> MonetDataModule:
        """The prepared text under these options.

        Raises:
            ConfigError: an option is out of range, or the mixture names an unknown domain.
            DataError: the data are missing or damaged.
        """
        module = MonetDataModule(
            str(data),
            seq_len=self.seq_len,
            batch_size=self.batch_size,
            seed=self.seed,
            mixture=None if self.mixture is None else dict(self.mixture),
            document_mask=self.document_mask,
            max_val_windows=None,
        )
        module.setup("fit")
        return module


class States(NamedTuple):
    """An MLP's inputs and outputs at the tokens of a batch, (T, D) each, in the dense model's data type."""

    x_TD: Tensor
    y_TD: Tensor


@dataclass(frozen=True)
class StateBatch:
    """One batch of the stream.

    Attributes:
        states: the inputs and outputs of each chosen layer's MLP.
        first_T: bool, True at the first token of each attention context and at beginning-of-text tokens.
        domain_T: int64, index of each token's domain.
    """

    states: Mapping[int, States]
    first_T: Tensor
    domain_T: Tensor

    @property
    def tokens(self) -> int:
        return self.first_T.numel()


@dataclass
class MlpStates:
    """Runs a dense model up to its topmost chosen layer, and collects what the chosen MLPs read and write.

    Memory is bounded: two (T, D) tensors for each layer that a call asks for.

    Args:
        dense: the dense language model; its layers above the topmost chosen one are dropped from this object's copy.
        layers: the chosen layers.
        arithmetic: device and data type; the lower part of the model is moved there.
    """

    dense: Any
    layers: Sequence[int]
    arithmetic: Arithmetic
    body: Any = field(init=False)
    _wanted: frozenset[int] = field(init=False, default=frozenset())
    _seen: dict[int, States] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.body = self.dense.model
        self.body.layers = nn.ModuleList(list(self.body.layers)[: max(self.layers) + 1])
        self.body.to(self.arithmetic.device, self.arithmetic.dtype)
        for layer in self.layers:
            self.mlp(layer).register_forward_hook(self._hook(layer))

    def mlp(self, layer: int) -> Any:
        """The dense MLP of a layer."""
        return self.body.layers[layer].mlp

    def _hook(self, layer: int) -> Any:
        def collect(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if layer in self._wanted:
                self._seen[layer] = States(inputs[0].flatten(0, 1), output.flatten(0, 1))

        return collect

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Tensor], layers: Sequence[int] | None = None) -> StateBatch:
        """Run the model on a batch of windows.

        Args:
            batch: as `monet.data.loading.windows.collate` makes it.
            layers: chosen layers whose states are wanted; None wants all.
        Raises:
            NonFiniteError: a state is NaN or infinite; the message names the layer.
        """
        device, wanted = self.arithmetic.device, self.layers if layers is None else layers
        self._wanted = frozenset(wanted)
        ids_BT = batch["input_ids"][:, :-1].to(device)
        positions = batch.get("position_ids")
        positions_BT = None if positions is None else positions.to(device)
        self.body(input_ids=ids_BT, position_ids=positions_BT, use_cache=False)
        states, self._seen = self._seen, {}
        for layer, one in states.items():
            if not bool(one.y_TD.isfinite().all()):
                raise NonFiniteError(
                    f"the dense model's MLP of layer {layer} writes NaN or infinity; use --precision float32, or check "
                    "the model's weights"
                )
        first_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
        first_BT[:, 0] = True
        if positions_BT is not None:
            first_BT |= positions_BT == 0
        if isinstance(bos := self.dense.config.bos_token_id, int):
            first_BT |= ids_BT == bos
        domain_BT = batch["domain"].to(device)[:, None].expand_as(ids_BT)
        return StateBatch({layer: states[layer] for layer in wanted}, first_BT.flatten(), domain_BT.flatten())


class StateStream:
    """Endless batches of states from the training text, in the data module's order.

    No window repeats before all have been read. The position can be saved and restored, and batch n depends only on
    the data, the options and n.

    Args:
        model: collects the states.
        text: the data module.
    """

    def __init__(self, model: MlpStates, text: MonetDataModule) -> None:
        self.model, self.text = model, text
        self.stream: TrainStream = text.train_dataloader()

    @property
    def tokens_per_batch(self) -> int:
        return self.stream.batch_size * self.stream.windows.seq_len

    @property
    def num_tokens(self) -> int:
        """Tokens in all training windows."""
        return len(self.stream.windows) * self.stream.windows.seq_len

    def batches(self, layers: Sequence[int] | None = None) -> Generator[StateBatch, None, None]:
        """Yield batches from the stream's position on, with the states of these layers (None: all); close it."""
        with closing(iter(self.stream)) as windows:  # pyright: ignore[reportArgumentType]
            for batch in windows:
                yield self.model(batch, layers)

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stream.load_state_dict(state)


def held_out_split(text: MonetDataModule) -> str:
    """The split that measurements read: validation if the data have it, else evaluate.

    Raises:
        DataError: the data have neither.
    """
    for split in ("validation", "evaluate"):
        if split in text.shards.splits:
            return split
    raise DataError(
        f"{text.data_dir}: no split for measurements (it has {', '.join(text.shards.splits)}); prepare the data with a "
        "share for validation"
    )


def check_text(text: MonetDataModule, vocab_size: int, max_positions: int) -> None:
    """Refuse text that the dense model cannot read.

    Raises:
        ConfigError: the tokenizer has more ids than the model, or a window is longer than the model's context.
    """
    if text.vocab_size > vocab_size:
        raise ConfigError(
            f"{text.data_dir}: its tokenizer has {text.vocab_size} ids, but the model has {vocab_size}; prepare the "
            "text with the model's tokenizer (monet data prepare --tokenizer MODEL)"
        )
    if text.seq_len > max_positions:
        raise ConfigError(f"seq_len {text.seq_len} exceeds the model's longest sequence, {max_positions}; shorten it")
