"""What the pages show of an index."""

from __future__ import annotations

from monet.eval.index.index import Index
from monet.eval.view.store import Store
from tests.eval.index.conftest import make_data, make_index, make_model


def test_dense_layers_after_the_last_monet_layer_belong_to_no_group(tmp_path):
    model = make_model(num_hidden_layers=6, dense_layers=[1, 4, 5], intermediate_size=20)
    make_index(model, make_data(), tmp_path / "index")
    assert Store(Index(tmp_path / "index")).info()["layers"] == [[0, 2], [3, 3]]
