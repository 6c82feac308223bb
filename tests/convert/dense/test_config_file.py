"""configs/convert/convert.yaml names every option with its default."""

from __future__ import annotations

import yaml

from monet.convert.dense.command import convert
from monet.options import defaults_of, types_of
from tests.test_layout import ROOT

WITHOUT_DEFAULT = {"model", "data", "layers", "out"}


def test_the_file_names_every_option_with_its_default():
    content = yaml.safe_load((ROOT / "configs" / "convert" / "convert.yaml").read_text(encoding="utf-8"))
    assert content.keys() == types_of(convert).keys()
    assert {name: content[name] for name in content.keys() - WITHOUT_DEFAULT} == defaults_of(convert)
