"""Windows that are kept in memory are those of the file."""

import pytest

from monet.eval.index import text
from monet.eval.index.index import Index
from tests.eval.index.conftest import make_data, make_index, make_model


@pytest.mark.parametrize("size", [0, 1000, 1 << 20])
def test_kept_windows_are_those_of_the_file(size, tmp_path, monkeypatch):
    monkeypatch.setattr(text, "ROWS", 7)
    make_index(make_model(), make_data(), tmp_path / "index")
    one, other = (Index(tmp_path / "index").windows for _ in range(2))
    other.keep(size)
    assert [other[n] for n in range(40)] == [one[n] for n in range(40)]
