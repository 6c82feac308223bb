"""Transcoders: what they compute, equal sizes, the same text as a conversion, and the command."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from monet.cli import main
from monet.convert.dense.local import LocalTraining
from monet.convert.dense.options import RunOptions
from monet.convert.dense.report import Report
from monet.errors import CheckpointError, ConfigError
from studies.transcoders import __main__ as command
from studies.transcoders import folder
from studies.transcoders.module import Shape, Transcoder, start
from tests.convert.dense.test_resume import assert_same
from tests.model.tiny import fill
from tests.studies.conftest import OPTIONS
from tests.tolerances import assert_close

D, F, K, T = 12, 40, 5, 30


def sample(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs with a mean and unequal scales, and outputs that are partly linear in them."""
    generator = torch.Generator().manual_seed(seed)
    x_TD = torch.randn(200, D, generator=generator) * torch.arange(1, D + 1) + 3
    return x_TD, x_TD.roll(1, 1) + 4 * torch.randn(200, D, generator=generator) + 7


@pytest.mark.parametrize("skip", [False, True])
@torch.no_grad()
def test_the_output_is_that_of_the_formula(skip):
    module = Transcoder(Shape(D, F, K, skip))
    fill(module)
    x_TD, y_TD = sample()
    module.standardise(x_TD, y_TD)
    module.eval()
    inner_TD = (x_TD - module.mean_D) / module.scale_D
    z_TF = (inner_TD @ module.encoder.weight.T + module.encoder.bias).clamp(min=0)
    z_TF[z_TF < z_TF.topk(K).values[:, -1:]] = 0
    wanted = z_TF @ module.decoder.weight.T + module.decoder.bias
    if module.skip is not None:
        wanted = wanted + inner_TD @ module.skip.weight.T
    assert_close("the output", module(x_TD), wanted * module.out_scale)
    assert int((z_TF > 0).sum(1).max()) == K
    assert module.use.active == pytest.approx(float((z_TF > 0).sum(1).float().mean()))
    assert module.use.used == int((z_TF > 0).any(0).sum()) < F or module.use.used == F
    removed = torch.arange(F) % 3 == 0
    without = (z_TF * ~removed) @ module.decoder.weight.T * module.out_scale
    assert_close("columns", (z_TF * removed) @ module.columns_DF.T, z_TF @ module.columns_DF.T - without)


def test_use_is_counted_again_at_each_evaluation():
    module = Transcoder(Shape(D, F, K))
    fill(module)
    module.eval()(sample()[0][:T])
    once = module.use
    module.train()(sample(1)[0])
    assert module.use == once
    module.eval()
    assert module.use.used == 0


@pytest.mark.parametrize("skip", [False, True])
def test_the_shape_has_the_wanted_number_of_parameters(skip):
    shape = Shape.of_parameters(9_591_936, 576, 64, skip)
    assert abs(shape.parameters / 9_591_936 - 1) < 1e-3
    small = Shape(D, F, K, skip)
    assert sum(weight.numel() for weight in Transcoder(small).parameters()) == small.parameters
    with pytest.raises(ConfigError, match="k 64 must be from 1"):
        Shape.of_parameters(1000, D, 64, skip)


@torch.no_grad()
def test_it_starts_with_the_mean_and_a_skip_path_with_the_best_linear_map():
    x_TD, y_TD = sample()
    variance = y_TD.var(0, unbiased=False).sum()
    errors = []
    for skip in (False, True):
        module = Transcoder(Shape(D, F, K, skip))
        start(module, x_TD, y_TD, torch.Generator().manual_seed(0))
        errors.append(float((module(x_TD) - y_TD).square().sum(1).mean() / variance))
    assert errors[0] == pytest.approx(1, abs=1e-3)
    best = torch.linalg.lstsq(x_TD - x_TD.mean(0), y_TD - y_TD.mean(0)).solution
    rest = float((y_TD - y_TD.mean(0) - (x_TD - x_TD.mean(0)) @ best).square().sum(1).mean() / variance)
    assert rest < errors[1] < rest + 0.02


@pytest.fixture
def words(converted, dense, data_dir, tmp_path):
    def made(out: str = "out", *more: str) -> list[str]:
        return ["--like", str(converted), "--dense", str(dense), "--data", str(data_dir), "--out",
                str(tmp_path / out), "--device", "cpu", *more]  # fmt: skip

    return made


@pytest.fixture
def seen(monkeypatch) -> list[float]:
    """One number for the text of each step; the list fills as something trains."""
    seen: list[float] = []
    learn = LocalTraining.learn

    def noting(self, batch):
        seen.append(float(batch.states[3].x_TD.double().sum()))
        return learn(self, batch)

    monkeypatch.setattr(LocalTraining, "learn", noting)
    return seen


def test_the_command_trains_on_the_text_of_the_conversion(words, converted, seen, tmp_path, capsys):
    report = Report.load(converted)
    options = {"model": words()[3], "data": words()[5], "out": tmp_path / "again", **OPTIONS}
    assert main(["convert", *(f"--{name}={value}" for name, value in options.items())]) == 0
    conversion = list(seen)
    seen.clear()
    command.main(words("out", "--skip"))
    assert seen == conversion and len(seen) == 10
    trained, modules = folder.load(tmp_path / "out")
    assert trained.layers == report.layers and trained.tokens == report.tokens
    assert trained.held_out_tokens > 0 and sorted(modules) == [1, 3]
    assert trained.shape.k == command.active_units(report) and trained.shape.skip
    assert abs(trained.parameters / trained.parameters_like - 1) <= 0.02
    assert 2 * trained.parameters_like == report.parameters["routers and experts"]
    assert all(trained.fvu[layer] < trained.fvu_start[layer] for layer in ("1", "3"))
    assert all(0 < trained.active[layer] <= trained.shape.k for layer in ("1", "3"))
    assert all(0 <= dead < trained.shape.latents for dead in trained.dead.values())
    assert not (tmp_path / "out" / "layers").exists()
    printed = capsys.readouterr().out
    assert "parameters a layer" in printed and "skip transcoders of layers 1, 3" in printed
    seen.clear()
    command.main(words("out", "--skip"))
    assert not seen and "mean FVU" in capsys.readouterr().out


@pytest.mark.slow
def test_a_stopped_training_continues_with_the_same_bits(words, tmp_path, monkeypatch):
    command.main(words("whole", "--k", "4"))
    learn = LocalTraining.learn

    def stopping(self, batch):
        if self.step == 6:
            raise KeyboardInterrupt
        return learn(self, batch)

    monkeypatch.setattr(LocalTraining, "learn", stopping)
    with monkeypatch.context() as patch:
        # a checkpoint after each step
        patch.setattr("studies.transcoders.training.RunOptions", partial(RunOptions, save_minutes=0.0))
        with pytest.raises(KeyboardInterrupt):
            command.main(words("out", "--k", "4"))
    monkeypatch.setattr(LocalTraining, "learn", learn)
    command.main(words("out", "--k", "4"))
    whole, again = (folder.load(tmp_path / name) for name in ("whole", "out"))
    for layer in (1, 3):
        assert_same(whole[1][layer].state_dict(), again[1][layer].state_dict())
    assert whole[0].dead == again[0].dead and whole[0].fvu == again[0].fvu
    assert folder.digest(whole[1]) == folder.digest(again[1])


def test_another_text_other_settings_and_damage_are_refused(words, converted, dense, tmp_path):
    command.main(words("out", "--k", "4"))
    trained, modules = folder.load(tmp_path / "out")
    (tmp_path / "out" / "result.json").unlink()
    with pytest.raises(ConfigError, match="k 5 differs from 4"):
        command.main(words("out", "--k", "5"))
    del modules[3]
    folder.save(tmp_path / "out", trained, modules)
    with pytest.raises(CheckpointError, match="layer 3"):
        folder.load(tmp_path / "out")
    report = (converted / "report.json").read_text()
    (converted / "report.json").write_text(report.replace('"data_fingerprint": "', '"data_fingerprint": "0'))
    with pytest.raises(ConfigError, match="data_fingerprint"):
        command.main(words("other"))
