"""p-values by rank, q-values by their definition, and the level of a verdict under the null hypothesis."""

import numpy as np
import pytest

from monet.eval.ablation.verdicts import summarise
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.chance import DEFAULT_CONTROLS, LEVEL, Chance, chances, p_value, q_values, reasons_against
from monet.eval.core.window_losses import WindowLosses
from monet.masks.expert_mask import ExpertMask


def test_a_p_value_counts_controls_that_do_as_much():
    assert p_value(5.0, [1.0, 2.0, 3.0]) == 1 / 4
    assert p_value(2.5, [1.0, 2.0, 3.0]) == 2 / 4
    assert p_value(2.0, [1.0, 2.0, 3.0]) == 3 / 4  # a tie counts for the control
    assert p_value(0.0, [1.0, 2.0, 3.0]) == 1.0
    assert p_value(1.0, []) == 1.0


def test_q_values_are_those_of_the_definition():
    p = [0.01, 0.04, 0.03, 0.005, 0.5]
    ordered = sorted(p)
    for value, found in zip(p, q_values(p), strict=True):
        wanted = min(len(p) * ordered[k] / (k + 1) for k in range(ordered.index(value), len(p)))
        assert found == pytest.approx(min(1.0, wanted))
    assert q_values([]) == []
    assert q_values([0.2, 0.2]) == [0.2, 0.2]


def test_removals_are_judged_together():
    found = chances({"a": 3.0, "b": 0.5}, {"a": [1.0] * 39, "b": [1.0] * 39})
    assert found == {"a": Chance(39, 1 / 40, 1 / 20), "b": Chance(39, 1.0, 1.0)}
    assert found["a"].above and not found["b"].above
    assert found["a"].words == "p 0.025, q 0.05 (39 random controls)"


def test_the_reasons_against_a_removal():
    above, within = Chance(39, 0.025, 0.025), Chance(39, 0.5, 0.5)
    assert reasons_against(3, 2.0, {"b": 1.0, "c": 1.5}, above) == []
    assert reasons_against(0, 2.0, {"b": 1.0}, above, "neuron") == ["no neuron belongs to it"]
    assert reasons_against(3, 1.0, {"b": 1.0, "c": 0.5}, above) == ["b lost as much or more"]
    assert reasons_against(3, 2.0, {}, within) == ["within the interval of random masks: " + within.words]
    assert reasons_against(3, 2.0, {}, None) == ["no random control was measured"]


@pytest.mark.parametrize("spread", [0.5, 1.0])
def test_one_more_random_mask_is_above_chance_as_seldom_as_the_level_says(spread):
    """The mask under test is one of the random masks; effects vary between masks and between documents."""
    generator = np.random.default_rng(0)
    documents, trials, found = 16, 120, 0
    label_W, document_W = np.repeat([0, 1], documents), np.arange(2 * documents)
    tokens_W = np.full(2 * documents, 256)
    mask = ExpertMask([[[True, False], [True, True]]])
    for _ in range(trials):
        base_W = generator.normal(3, 0.4, 2 * documents)

        def losses(effect, base_W=base_W):
            change_W = np.where(label_W == 0, effect + generator.normal(0, effect, 2 * documents), 0.0)
            return WindowLosses((base_W + change_W) * 256, tokens_W, label_W, document_W)

        keys = [("a", None), *(("a", number) for number in range(DEFAULT_CONTROLS))]
        measured = [(key, losses(0.01 * np.exp(spread * generator.normal()))) for key in keys]
        result = summarise({"a": mask}, ["a", "b"], losses(0.0), measured, Bootstrap(1000), {})
        found += result.domains[0].q <= LEVEL
    # 120 trials at 5 % give 6; more than 13 of them have a chance of 0.3 %
    assert found <= 13
