"""Checks each optimiser step before its update: numbers of all ranks, non-finite values, loss spikes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from monet.errors import NonFiniteError
from monet.training.ranks.agree import Requests, gather_ranks
from monet.training.watch.nonfinite import NonFiniteSettings, RouterSnapshot, norm_table, write_dump
from monet.training.watch.spikes import SpikeWindow
from monet.training.watch.step_numbers import StepNumbers, StepRecord


class StepGuard:
    """The current step, and whether it may change the model.

    Args:
        model: the language model.
        settings: what to do if a loss or gradient is not finite.
    Attributes:
        record: micro-batches of the current step.
        requests: requests from outside the run.
        spike: the loss of the latest step and of those before it, if it is a spike.
        skipped_in_a_row: updates skipped since the last good one.
        dump_folder: folder for reports of bad steps; None writes nothing.
    """

    def __init__(self, model: nn.Module, settings: NonFiniteSettings) -> None:
        self.model, self.settings = model, settings
        self.record, self.requests = StepRecord(), Requests()
        self.spike: dict[str, Any] | None = None
        self.skipped_in_a_row = 0
        self.dump_folder: Path | None = None
        self._spikes, self._snapshot = SpikeWindow(), RouterSnapshot(model)
        self._follows = -1  # the optimiser step before the record

    def begin(self, finished_steps: int) -> None:
        """Start a micro-batch; the first one of a step clears the record."""
        if finished_steps != self._follows:
            self._follows = finished_steps
            self.record.clear()
            if self.settings.policy == "skip":
                self._snapshot.take()

    def settle(self, norm: Tensor | None, trainer: Trainer, domains: list[str]) -> StepNumbers:
        """Check the step before its update; all ranks reach the same decision.

        A skipped step restores the routers' statistics and removes all gradients, so that the optimiser changes
        nothing.

        Args:
            norm: norm of the gradient over all parameters and ranks; None if it is not known.
            trainer: gives the step and the ranks.
            domains: names of the domain numbers in the batches.
        Raises:
            NonFiniteError: names the step, the windows, their domains and the parameters.
        """
        numbers = self.record.close(norm, self.requests, trainer.strategy)
        if numbers.is_finite:
            self.skipped_in_a_row = 0
        else:
            self._refuse_or_skip(numbers, trainer, domains)
        spike = self._spikes.judge(numbers.losses["loss"])
        self.spike = None
        if spike is not None:
            batch = {key: torch.cat([part[key].flatten() for part in self.record.batches])
                     for key in ("index", "document", "domain") if key in self.record.batches[0]}  # fmt: skip
            ids = {key: gather_ranks(value, trainer.strategy).flatten() for key, value in batch.items()}
            self.spike = {"step": trainer.global_step + 1, "loss": numbers.losses["loss"], **spike._asdict()}
            self.spike.update(_ids(ids, domains))
        return numbers

    def state_dict(self) -> dict[str, Any]:
        return {"spikes": self._spikes.state_dict(), "skipped_in_a_row": self.skipped_in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._spikes.load_state_dict(state["spikes"])
        self.skipped_in_a_row = state["skipped_in_a_row"]

    def _refuse_or_skip(self, numbers: StepNumbers, trainer: Trainer, domains: list[str]) -> None:
        step, table, bad_batches = trainer.global_step + 1, norm_table(self.model), self.record.bad_batches()
        # every rank knows of the bad step, so all ranks reach this point
        # gradients are already averaged: with a bad loss they do not show which rank was at fault
        bad_here = bool(bad_batches) if numbers.bad_loss else any(row["nonfinite_gradients"] for row in table)
        bad_ranks = gather_ranks(torch.tensor(bad_here), trainer.strategy).nonzero()[:, 0].tolist()
        skips, most = self.skipped_in_a_row + 1, self.settings.max_consecutive_skips
        skip = self.settings.policy == "skip" and skips <= most
        text = f"step {step}: {_found(numbers, self.model)}"
        if self.dump_folder is not None:
            batches = [_ids(batch, domains) for batch in self.record.batches]
            content = {"step": step, "found": text, "bad_ranks": bad_ranks, "skipped": skip, "batches": batches}
            write_dump(self.dump_folder, step, trainer.global_rank, {**content, "parts": table})
        if trainer.world_size > 1 and bad_ranks:  # a strategy that hides its gradients hides the rank at fault too
            text += f" on rank {', '.join(map(str, bad_ranks))}"
        if numbers.bad_loss and not bad_batches:
            text += " (this rank's own batches were good)"
        else:
            text += f" ({_describe(bad_batches or self.record.batches, domains)})"
        if not skip:
            raise NonFiniteError(text + (f", after {skips - 1} steps left out in a row" if skips > 1 else ""))
        rank_zero_warn(f"{text}; this update is left out, {skips} of at most {most} in a row")
        self.skipped_in_a_row = skips
        self._snapshot.restore()
        for parameter in self.model.parameters():
            parameter.grad = None
        if (discard := getattr(trainer.strategy, "discard_gradients", None)) is not None:
            discard()


def gradient_norm(parameters: list[nn.Parameter], strategy: Any) -> Tensor | None:
    """Return the norm of the gradient over all parameters of the model, including parts on other ranks.

    A strategy that hides its gradients has methods `gradient_norm() -> Tensor` and `discard_gradients()`.

    Returns:
        Float scalar; None, with a warning, if no gradient is visible.
    """
    if (measure := getattr(strategy, "gradient_norm", None)) is not None:
        return measure()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        name = type(strategy).__name__
        rank_zero_warn(f"{name} hides its gradients: their norm is not logged, and only the loss is checked")
        return None
    total = torch.nn.utils.get_total_norm(gradients)
    return getattr(total, "full_tensor", lambda: total)()


def _found(numbers: StepNumbers, model: nn.Module) -> str:
    if numbers.bad_loss:
        return f"the loss is {numbers.losses['loss']}"
    shown = {name: bool(p.grad.isfinite().all()) for name, p in model.named_parameters() if p.grad is not None}
    if not shown:
        return "the gradient is not finite (the strategy does not show in which parameters)"
    bad = [name for name, is_finite in shown.items() if not is_finite]
    where = f"in {', '.join(bad[:5])}{' ...' if len(bad) > 5 else ''}" if bad else "its norm overflows"
    return f"the gradient is not finite: {where}"


def _describe(batches: list[dict[str, Tensor]], domains: list[str]) -> str:
    windows = [i for batch in batches for i in batch["index"].tolist()]
    names = [_name(d, domains) for d in sorted({d for batch in batches for d in batch["domain"].tolist()})]
    return f"window ids {', '.join(map(str, windows))}; domains {', '.join(names)}"


def _ids(batch: dict[str, Tensor], domains: list[str]) -> dict[str, Any]:
    """Return a batch's windows, the documents at their starts, and their domains, row by row."""
    return {
        "windows": batch["index"].tolist(),
        "documents": batch["document"].tolist() if "document" in batch else None,
        "domains": [_name(number, domains) for number in batch["domain"].tolist()],
    }


def _name(number: int, domains: list[str]) -> str:
    return domains[number] if number < len(domains) else str(number)
