"""Exports are made of short runs, as tests of training make them."""

from tests.training.conftest import data_dir as data_dir
from tests.training.conftest import settings as settings
from tests.training.conftest import train as train
