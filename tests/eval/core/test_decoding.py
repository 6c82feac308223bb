"""Settings of draws that make no sense are refused by name, in every suite."""

import math

import pytest

from monet.errors import ConfigError
from monet.eval.core.decoding import check_draws
from monet.eval.suites.code.generation import Sampling
from monet.eval.suites.toxicity.sampling import Decoding


@pytest.mark.parametrize("settings", [check_draws, Sampling, Decoding])
@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -1.0), ("temperature", math.nan), ("temperature", math.inf), ("top_p", 0.0), ("seed", -1)],
)
def test_draws_out_of_range_are_refused(settings, field, value):
    good = {"temperature": 1.0, "top_p": 0.9, "seed": 0}
    settings(**good)
    with pytest.raises(ConfigError, match=f"{field} must .*got {value}"):
        settings(**(good | {field: value}))
