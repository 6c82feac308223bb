"""Checks the paper's numbers, the shapes of its models and the cost estimate."""

import pytest

from monet import MonetConfig
from monet.costs.flops import forward_flops_per_token, parameter_counts
from monet.errors import ConfigError
from monet.eval.attribution.control_options import ControlOptions
from monet.eval.paper import published
from monet.eval.paper.estimate import Work, formula, gpu_hours
from monet.eval.paper.models import FORMS, SIZES, dense_config, name_of, paper_config
from monet.eval.paper.request import Request
from monet.eval.paper.tables import EXPERIMENTS, TABLES


@pytest.mark.parametrize("shots", [0, 5])
@pytest.mark.parametrize("model", published.GENERAL[0])
def test_averages_are_those_of_the_eight(shots, model):
    *each, average = published.GENERAL[shots][model]
    assert len(each) == len(published.BENCHMARKS) == 8
    assert sum(each) / 8 == pytest.approx(average, abs=0.00101)


def test_the_toxicity_tables_start_from_the_model_of_table_2():
    assert published.RTP_GENERAL[None] == published.GENERAL[0]["Monet-VD 1.4B"][-1]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_models_are_known_by_their_shape(size, form):
    config = paper_config(size, form)
    assert name_of(config) == f"Monet-{form} {size}"
    other = MonetConfig(**{**config.to_dict(), "moe_heads": config.moe_heads + 2})
    assert name_of(other) is None and name_of(paper_config(size, form, groups=1)) is None


def test_hours_follow_the_formula():
    config = paper_config()
    work = Work(tokens=3e9, steps=1e6, counted="", seq_len=256)
    flops = sum(forward_flops_per_token(config, 256).values())
    read = 2 * sum(parameter_counts(config).values()) / (3.35e12 * 0.5)
    assert read < 0.02, "the floor decides at this size"
    assert gpu_hours(work, config, "h100") == pytest.approx((3e9 * flops / (989e12 * 0.3) + 1e6 * 0.02) / 3600)
    large = paper_config("4.1B")
    slow = max(2 * sum(parameter_counts(large).values()) / (0.86e12 * 0.5), 0.02)
    assert gpu_hours(Work(0, 1e6, ""), large, "l40s") == pytest.approx(1e6 * slow / 3600)
    assert "assumed" in formula("h100") and "989 TFLOP/s" in formula("h100")
    with pytest.raises(ConfigError, match="'abacus' is not listed; choose from b200"):
        gpu_hours(work, config, "abacus")


def test_more_controls_cost_more():
    for experiment in EXPERIMENTS:
        few, many = (experiment.work(Request(controls=ControlOptions(count=count))) for count in (0, 3))
        assert many.tokens >= few.tokens and many.steps >= few.steps
    few, many = (TABLES[3].work(Request(controls=ControlOptions(count=count))) for count in (0, 3))
    assert many.steps / few.steps == (7 * 6 + 6 * 3) / (7 * 6), "controls run in their own language only"


def test_the_dense_model_has_the_papers_size():
    count = sum(parameter_counts(dense_config()).values())
    assert count / 1e9 == pytest.approx(published.PARAMETERS["LLaMA"], abs=5e-4)
