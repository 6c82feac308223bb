"""A tiny dense model, text that it reads, and a conversion of two of its layers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from monet.cli import main
from tests.convert.dense.conftest import QUICK, data_dir
from tests.convert.dense.conftest import dense as dense

__all__ = ["data_dir", "dense"]

# Options of a conversion of layers 1 and 3; its routers do not share.
OPTIONS = {**QUICK, "layers": "1,3", "save_minutes": 0}


@pytest.fixture(scope="session")
def converted_once(tmp_path_factory, dense, data_dir) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("converted") / "run"
    options = {"model": dense, "data": data_dir, "out": folder, **OPTIONS}
    assert main(["convert", *(f"--{name}={value}" for name, value in options.items())]) == 0
    return folder


@pytest.fixture
def converted(converted_once, tmp_path) -> Path:
    """A copy of a finished conversion."""
    return Path(shutil.copytree(converted_once, tmp_path / "converted"))
