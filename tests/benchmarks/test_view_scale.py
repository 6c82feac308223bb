"""The index of random numbers has the form of a real one, and every request of the benchmark is answered."""

from benchmarks.view_scale import make_index, measure
from monet.eval.index.index import Index


def test_a_small_index_is_measured(tmp_path):
    make_index(tmp_path / "index", groups=2, keys=8)
    index = Index(tmp_path / "index")
    assert len(index.contexts(index.units.pair(1, 3, 4))) in (0, 16)
    found = measure(tmp_path / "index")
    assert found["experts"] == 128 and found["columns"] < 128 * 160 and found["bytes"] > 0
    assert {"sort by a column", "search a token", "an expert"} < found["seconds"].keys()
