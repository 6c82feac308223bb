"""The command: a whole conversion of a tiny model."""

from __future__ import annotations

from monet.cli import main


def test_stage_1(words, tmp_path):
    assert main(words(layers="all")) == 0
