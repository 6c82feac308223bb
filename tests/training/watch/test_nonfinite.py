"""A loss or gradient that is not finite stops the run before the update, and is never saved."""

import pytest
import torch
from lightning.pytorch import Callback

from monet.training import lightning_cli as cli
from monet.training.checkpoints.checkpoint import newest_valid
from tests.training.runs import losses


class Poison(Callback):
    """Spoils one step, and keeps the weights and optimiser state from just before it."""

    def __init__(self, step, spoil):
        self.step, self.spoil, self.before = step, spoil, None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step + 1 == self.step and self.before is None:
            self.spoil(pl_module)
            self.before = snapshot(trainer, pl_module)
            self.after = lambda: snapshot(trainer, pl_module)


def snapshot(trainer, pl_module):
    (optimizer,) = trainer.optimizers
    moments = [value.clone() for state in optimizer.state.values() for value in state.values()]
    return [parameter.detach().clone() for parameter in pl_module.parameters()] + moments


def same_bits(first, second):
    return all(torch.equal(a.nan_to_num(9.0), b.nan_to_num(9.0)) for a, b in zip(first, second, strict=True))


def spoil_loss(pl_module):
    pl_module.model.model.norm.weight.data[0] = float("nan")


def spoil_gradient(pl_module):
    pl_module.model.model.layers[0].moe.u1.weight.register_hook(lambda gradient: gradient * float("inf"))


@pytest.fixture
def poisoned(train, monkeypatch):
    def run(step, spoil):
        poison = Poison(step, spoil)
        monkeypatch.setattr(cli, "RandomState", lambda: poison)
        return train(), poison

    return run


@pytest.mark.parametrize(("spoil", "words"), [
    (spoil_loss, "step 6: the loss is nan"),
    (spoil_gradient, "step 6: the gradient is not finite: in model.layers.0.moe.u1.weight"),
])  # fmt: skip
def test_the_run_stops_before_the_update_and_names_the_batch(poisoned, capsys, spoil, words):
    run, poison = poisoned(6, spoil)
    assert run.code == 5
    message = capsys.readouterr().err
    assert words in message
    assert "window ids " in message and "domains " in message
    assert any(name in message for name in ("animals", "code"))
    assert message.count("\n") == 1
    assert same_bits(poison.before, poison.after())
    assert newest_valid(run.checkpoints).step == 4
    assert [step for step, _ in losses(run.run_dir)] == [1, 2, 3, 4, 5]


def test_window_ids_are_those_of_the_bad_batch(train, monkeypatch, capsys):
    seen = {}

    class Spy(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen[batch_idx] = batch["index"].tolist()
            if batch_idx == 3:
                spoil_loss(pl_module)

    monkeypatch.setattr(cli, "RandomState", Spy)
    assert train().code == 5
    assert f"step 2: the loss is nan (window ids {', '.join(map(str, seen[3]))};" in capsys.readouterr().err


def test_a_non_finite_validation_is_never_saved(train, monkeypatch, capsys):
    class SpoilValidation(Callback):
        def on_validation_start(self, trainer, pl_module):
            spoil_loss(pl_module)

    monkeypatch.setattr(cli, "RandomState", SpoilValidation)
    run = train()
    assert run.code == 5
    assert "step 8: the validation loss is nan on animals, code" in capsys.readouterr().err
    assert newest_valid(run.checkpoints).step == 4
