"""Records of the prompts on which a mask was chosen, from a file of scored text to the check of the judged prompts."""

import pytest

from monet.errors import CheckpointError, DataError
from monet.eval.attribution.statistics.prompt_hashes import (
    KEY,
    judged_before,
    packed,
    prompt_hash,
    unpacked,
    without_hashes,
)
from monet.eval.attribution.statistics.scored import read_scored
from monet.eval.attribution.stats import collect
from tests.eval.attribution.statistics.test_scored import written


def notes(*texts):
    return {"statistics": {"parts": [{KEY: packed(map(prompt_hash, texts))}]}}


def test_white_space_does_not_count():
    assert prompt_hash(" a  b\n") == prompt_hash("a b") != prompt_hash("ab")


def test_a_set_comes_back():
    hashes = {prompt_hash(str(number)) for number in range(100)}
    assert unpacked(packed(list(hashes) * 2)) == hashes and len(packed(hashes)) == 800
    assert unpacked("") == frozenset() and unpacked("x") is None and unpacked(3) is None and unpacked("QUJD") is None


def test_what_is_not_recorded_is_not_known():
    assert judged_before([], ["a"]) == 0
    assert judged_before([notes("b"), notes("c")], ["a", "d"]) == 0
    assert judged_before([notes("a", "b"), notes("b")], ["a", "b", "d"]) == 2
    assert judged_before([notes("b"), {}], ["a"]) is None
    assert judged_before([notes("a"), {}], ["a"]) == 1, "one recorded prompt is enough"
    assert judged_before([{"of": [notes("a"), notes("b")]}], ["b"]) == 1, "a mask made from other masks"


def test_people_see_numbers():
    told = without_hashes({"masks": [notes("a", "b")], "x": 1})
    assert told == {"masks": [{"statistics": {"parts": [{KEY: 2}]}}], "x": 1}


def test_statistics_carry_the_prompts_of_their_file(random_model, tmp_path):
    rows = [{"input_ids": [1, 2, 3, number], "score": number, "prompt_hash": prompt_hash(f"p {number // 2}")}
            for number in range(4)]  # fmt: skip
    statistics = collect(random_model, read_scored(written(tmp_path, *rows), None, 8), progress=False)
    assert unpacked(statistics.provenance["parts"][0][KEY]) == {prompt_hash("p 0"), prompt_hash("p 1")}
    with pytest.raises(CheckpointError, match="'prompt_hashes': 2") as error:
        statistics.merge(statistics)
    assert statistics.provenance["parts"][0][KEY] not in str(error.value)
    del rows[0]["prompt_hash"]
    assert KEY not in read_scored(written(tmp_path, *rows), None, 8).description, "the prompt of one text is unknown"
    with pytest.raises(DataError, match=r"line 1: prompt_hash 'xyz' is not the hash of a prompt"):
        read_scored(written(tmp_path, {**rows[1], "prompt_hash": "xyz"}), None, 8)
