"""The table of recipes: its rows, the folded skip path, equal starts in other units, and the command."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from monet.convert.dense.local import LocalOptions, LocalTraining
from monet.convert.dense.options import ExpertOptions
from monet.convert.dense.stand_in import StandIn, build_stand_ins
from monet.convert.dense.start import start_at_random
from monet.errors import ConfigError
from studies.recipe import __main__ as command
from studies.recipe import page, rows
from studies.recipe.results import RecipeResult
from studies.recipe.rows import BASE, ROWS, Row, chosen
from studies.recipe.skip import fold_skip, low_rank
from studies.removal import page as pages
from tests.model.tiny import FORMS, tiny_config
from tests.tolerances import assert_close

D, T = 24, 400


def sample() -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs that are a linear map of low rank of the inputs, and noise."""
    generator = torch.Generator().manual_seed(0)
    x_TD = torch.randn(T, D, generator=generator) + 1
    low = torch.randn(D, 2, generator=generator) @ torch.randn(2, D, generator=generator)
    return x_TD, x_TD @ low + 0.3 * torch.randn(T, D, generator=generator)


def started(form: str, units: int = 12) -> StandIn:
    """A random stand-in whose hidden units have no output."""
    stand_in = StandIn(tiny_config(form, moe_dim=units))
    x_TD, y_TD = sample()
    stand_in.standardise(x_TD, y_TD)
    start_at_random(stand_in, x_TD, y_TD, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, weight in stand_in.experts.named_parameters():
            if name.startswith("v"):
                weight.zero_()
    return stand_in.train()


def fvu(stand_in: StandIn) -> float:
    x_TD, y_TD = sample()
    with torch.no_grad():
        return float((stand_in.eval()(x_TD) - y_TD).square().sum() / (y_TD - y_TD.mean(0)).square().sum())


@pytest.mark.parametrize("form", FORMS)
def test_a_folded_path_of_the_right_rank_explains_a_linear_map(form):
    stand_in = started(form)
    assert fvu(stand_in) == pytest.approx(1, abs=0.05)
    fold_skip(stand_in, *sample(), rank=2 if form == "horizontal" else 1)
    assert fvu(stand_in) < 0.15
    one = started(form)
    fold_skip(one, *sample(), rank=1)
    assert (fvu(one) > 0.2) == (form == "horizontal"), "one axis gives one rank, two axes two"
    with pytest.raises(ConfigError, match="spare hidden units"):
        fold_skip(stand_in, *sample(), rank=1)


def test_the_low_rank_map_is_the_best_one():
    x_TD, y_TD = (one - one.mean(0) for one in sample())
    inputs_RD, outputs_RD = low_rank(x_TD, y_TD, 2)
    assert_close("unit variance", (x_TD @ inputs_RD.T).std(0), torch.ones(2))
    rest = (y_TD - (x_TD @ inputs_RD.T) @ outputs_RD).square().sum() / y_TD.square().sum()
    assert rest < 0.1


def test_every_row_is_a_conversion_that_the_options_allow():
    for name, row in ROWS.items():
        options = replace(ExpertOptions(), **row.experts)
        shape = options.shape(1536)
        replace(LocalOptions(), **row.local).check(shape.moe_experts, shape.moe_topk)
        changes = [bool(row.experts), bool(row.local), row.layers is not None, row.kind != "monet", row.raw]
        assert sum(changes) == (name != BASE), f"{name} changes one thing"
    assert chosen(["transcoder", "k16"]) == [BASE, "k16", "transcoder"]
    assert chosen(["transcoder-64"]) == ["transcoder-64"] and chosen([]) == list(ROWS)
    with pytest.raises(ConfigError, match="rows k17: unknown; the rows are base"):
        chosen(["k17"])


@pytest.fixture
def tiny_rows(monkeypatch):
    """Rows for a model of 48 neurons in four layers."""
    small = {"moe_experts": 8, "moe_heads": 2, "moe_topk": 3}
    found = {
        BASE: Row("base", "the base", small),
        "shared": Row("routers", "shared", {**small, "moe_groups": 2}),
        "skip": Row("skip path", "skip", {**small, "moe_dim": 32}, skip_rank=2),
        "raw": Row("normalisation", "raw", small, raw=True),
        "more": Row("layers at once", "more", small, layers="1-3"),
        "transcoder": Row("transcoder", "matched", small, kind="transcoder"),
        "narrow": Row("transcoder", "k = 4", small, kind="skip transcoder", k=4),
    }
    monkeypatch.setattr(rows, "ROWS", found)
    monkeypatch.setattr(command, "ROWS", found)
    return found


@pytest.fixture
def words(dense, data_dir, tmp_path):
    torch.set_num_threads(1)

    def made(*more: str) -> list[str]:
        return [
            "--dense", str(dense), "--data", str(data_dir), "--layers", "1,3", "--tokens", "320", "--out",
            str(tmp_path / "out"), "--seq_len", "32", "--batch_size", "2", "--windows", "2", "--sample_tokens", "256",
            "--device", "cpu", "--precision", "float32", *more,
        ]  # fmt: skip

    return made


def test_a_row_in_the_models_own_units_starts_as_the_same_function(words, tiny_rows, tmp_path):
    command.main(words("--rows", "base", "raw"))
    base, raw = RecipeResult.load(tmp_path / "out").rows
    assert raw.fvu_start["1"] == pytest.approx(base.fvu_start["1"], rel=1e-4)
    assert raw.fvu["1"] != pytest.approx(base.fvu["1"], rel=1e-3)


def test_the_whole_command_and_its_second_run(words, tiny_rows, tmp_path, monkeypatch):
    (tmp_path / "conversion.md").write_text(f"head\n{page.BEGIN}\n{pages.END}\ntail\n")
    command.main(words("--losses", "--docs", str(tmp_path)))
    result = RecipeResult.load(tmp_path / "conversion.json")
    found = {row.name: row for row in result.rows}
    assert list(found) == list(tiny_rows) and result.layers == [1, 3] and result.tokens == 320
    base = found[BASE]
    for name, row in found.items():
        assert row.tokens == 320 and set(row.fvu) == ({"1", "2", "3"} if name == "more" else {"1", "3"})
        assert row.loss_rise is not None and row.seconds > 0 and row.curve
    assert found["more"].fvu["3"] == base.fvu["3"], "layers do not affect each other"
    assert abs(found["transcoder"].parameters / base.parameters - 1) < 0.02
    matched = round(sum(one.active_keys for one in base.routing.values()) / 2 * base.settings["moe_dim"])
    assert found["transcoder"].latents["1"].k == matched and found["narrow"].latents["1"].k == 4
    assert 0 < found["narrow"].latents["3"].active <= 4
    assert found["shared"].parameters < base.parameters and len(found["shared"].routing) == 1
    text = pages.written(tmp_path / "conversion.md", page.BEGIN)
    assert text == page.body(result).strip() and "Not tried:" in text and "latents" in text
    assert not list((tmp_path / "out" / "rows").glob("*/layers"))

    def forbidden(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(LocalTraining, "learn", forbidden)
    command.main(words("--docs", str(tmp_path)))
    assert RecipeResult.load(tmp_path / "conversion.json") == result
    with pytest.raises(ConfigError, match="tokens 640 differs from 320"):
        command.main([*words("--rows", "base"), "--tokens", "640"])


def test_stand_ins_in_place_are_the_model_that_they_fold_into(words, tiny_rows, tmp_path, dense, data_dir):
    """The losses of a row are those of the model that `monet convert` writes from the same layers."""
    from monet.cli import main
    from monet.convert.dense.report import Report

    command.main(words("--rows", "base", "--losses"))
    row = RecipeResult.load(tmp_path / "out").rows[0]
    options = {
        "model": dense, "data": data_dir, "layers": "1,3", "out": tmp_path / "run", "seq_len": 32, "batch_size": 2,
        "moe_experts": 8, "moe_heads": 2, "moe_topk": 3, "sample_tokens": 256, "tokens": 320, "distil_tokens": 0,
        "report_windows": 2, "precision": "float32", "device": "cpu", "progress": "false",
    }  # fmt: skip
    assert main(["convert", *(f"--{name}={value}" for name, value in options.items())]) == 0
    report = Report.load(tmp_path / "run")
    fvu = json.loads((tmp_path / "run" / "report.json").read_text())["fvu"]
    assert row.fvu == pytest.approx(fvu, rel=1e-5)  # the command may choose other matrix products on this processor
    for one, other in zip(row.losses, report.domains, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5) and one.kl == pytest.approx(other.kl, rel=1e-3)


def test_the_page_shows_what_the_file_of_results_holds():
    """docs/conversion.md and docs/conversion.json belong together."""
    from tests.test_layout import ROOT

    docs = ROOT / "docs"
    if (docs / "conversion.json").is_file():
        result = RecipeResult.load(docs / "conversion.json")
        assert pages.written(docs / "conversion.md", page.BEGIN) == page.body(result).strip()


def test_shared_routers_cannot_learn_in_the_models_own_units(tiny_rows):
    from types import SimpleNamespace

    from studies.recipe.training import in_own_units

    students = build_stand_ins(tiny_config(), [[2, 5]])
    with pytest.raises(ConfigError, match="needs a router in each layer"):
        in_own_units(students[5], SimpleNamespace(config=tiny_config()))
