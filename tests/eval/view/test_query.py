"""Parameters of a request become a query, or an error that names the fix."""

import pytest

from monet.errors import ConfigError
from monet.eval.view.query import Query


def test_parameters_become_a_query():
    words = {
        "sort": "-count",
        "min.rate": "0.1",
        "max.count": "5",
        "group": "1",
        "label": "x",
        "whole": "1",
        "token": "a b",
    }
    query = Query.of(words)
    assert query == Query(
        sort="count",
        descending=True,
        low={"rate": 0.1},
        high={"count": 5.0},
        group=1,
        label="x",
        whole=True,
        token="a b",
    )
    assert Query.of({"sort": "unit", "label": ""}) == Query(sort="unit", descending=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"sort": "beauty"}, "beauty.*label_share"),
        ({"min.beauty": "1"}, "column 'beauty'"),
        ({"min.count": "many"}, "no number"),
        ({"max.count": "nan"}, "no number"),
        ({"tokn": "x"}, "did you mean token"),
        ({"kind": "neuron"}, "pair, half, all"),
        ({"token": "x" * 3000}, "at most 2000"),
        ({"group": "one"}, "no number"),
    ],
)
def test_wrong_parameters_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        Query.of(words)
