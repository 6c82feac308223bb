"""What TransformerLens cannot wrap is refused; docs/hook-points.md is tested for the rest."""

import sys

import pytest

from monet.errors import ConfigError
from monet.eval.inspection.lens import lens
from tests.model.tiny import tiny_model


def test_a_hybrid_is_refused():
    model = tiny_model("vertical", dense_layers=[0], intermediate_size=40)
    with pytest.raises(ConfigError, match=r"dense_layers = \[0\].*nnsight"):
        lens(model, None)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformer_lens", None)
    monkeypatch.setitem(sys.modules, "transformer_lens.factories", None)
    with pytest.raises(ConfigError, match=r"monet-experts\[lens\]"):
        lens(tiny_model("vertical"), None)
