"""Fixtures for exports: short training runs, as in the tests of training."""

from tests.training.conftest import data_dir as data_dir
from tests.training.conftest import settings as settings
from tests.training.conftest import train as train
