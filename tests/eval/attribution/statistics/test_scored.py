"""Files of scored text: records become sequences with a score for every token, and bad records are refused."""

import json
from dataclasses import replace

import pytest

from monet.errors import DataError
from monet.eval.attribution.statistics.scored import read_scored


class Words:
    """A tokenizer that splits at white space."""

    def __call__(self, text, **options):
        return {"input_ids": [len(word) for word in text.split()]}


def written(folder, *records):
    path = folder / "scores.jsonl"
    path.write_text("\n".join(json.dumps(record) if isinstance(record, dict) else record for record in records))
    return path


def test_records_become_sequences_with_a_score_for_every_token(tmp_path):
    path = written(
        tmp_path,
        {"text": "a bb ccc", "score": 0.25, "id": "one"},
        "",
        {"input_ids": [1, 2, 3, 4, 5, 6, 7], "token_scores": [0, 1, 2, 3, 4, 5, 6.5], "label": "x"},
        {"text": "not scored", "score": None},
        {"text": "short", "score": 1},
    )
    data = read_scored(path, Words(), 3)  # pyright: ignore
    assert data.labels == ["scored", "x"] and data.label_of == [0, 1, 1, 1]
    assert data.sequences == [[1, 2, 3], [1, 2, 3], [4, 5], [6, 7]]
    assert data.scores == [[0.25] * 3, [0, 1, 2], [3, 4], [5, 6.5]]
    assert data.documents == ["one", "3", "3", "3"]
    assert {"records": 4, "unscored": 1, "too_short": 1, "cut": 1}.items() <= data.description.items()
    batch = next(data.batches(4))
    assert batch.score_BT is not None and batch.score_BT.tolist()[3][:2] == [5, 6.5]
    assert data.fingerprint != replace(data, scores=[[0.5] * 3, *data.scores[1:]]).fingerprint


@pytest.mark.parametrize(
    ("record", "match"),
    [
        ("{", "line 1: no JSON"),
        ({"score": 1}, "either `text` or `input_ids`"),
        ({"text": "a b"}, "either `score`, null if"),
        ({"text": "a b", "score": float("nan")}, "finite number, got nan"),
        ({"text": "a b", "score": True}, "finite number, got True"),
        ({"text": "a b", "score": "high"}, "finite number, got 'high'"),
        ({"text": "a b", "token_scores": [1.0]}, "1 token_scores for 2 tokens"),
        ({"text": "a b", "token_scores": [1.0, None]}, "finite number, got None"),
        ({"text": 3, "score": 1}, "text must be a string, got 3"),
        ({"input_ids": [1, 2.5], "score": 1}, "list of whole numbers"),
        ({"text": "a", "score": 1}, "no record with a score among 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_records_are_refused(tmp_path, record, match):
    with pytest.raises(DataError, match=match):
        read_scored(written(tmp_path, record), Words(), 8)  # pyright: ignore


def test_ids_are_unique_and_text_needs_a_tokenizer(tmp_path):
    with pytest.raises(DataError, match="line 2 repeats the id 'a'"):
        read_scored(written(tmp_path, *[{"text": "a b", "score": 1, "id": "a"}] * 2), Words(), 8)  # pyright: ignore
    with pytest.raises(DataError, match="no tokenizer; give input_ids"):
        read_scored(written(tmp_path, {"text": "a b", "score": 1}), None, 8)
    with pytest.raises(DataError, match=r"none\.jsonl: cannot read the file"):
        read_scored(tmp_path / "none.jsonl", None, 8)
