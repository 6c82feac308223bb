"""The classifier that comes with Monet: its file, its features, and its scores of harmless text."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from monet.errors import CheckpointError
from monet.eval.scorers.choose import make_scorer
from monet.eval.scorers.scorers import ScorerSettings
from monet.eval.scorers.words import FORMAT, NUM_FEATURES, WEIGHTS, WordsScorer, features


def test_features_are_of_words_and_their_parts():
    assert features("") == [] and features(" ?!, ") == []
    assert features("Tree") == features("tree!") != features("trees")
    assert features("treeeee") == features("tree") and features("tree tree") != features("tree")
    assert len(features("tree")) == 1 + 4 + 3 + 2  # the word, and runs of <tree>
    assert set(features("tree")) < set(features("a tall tree"))
    assert features("f*rn") != features("f rn")
    assert features("x " * 600) == features("x " * 512)
    assert max(features("many words of many kinds make many numbers")) < NUM_FEATURES


def test_answers_do_not_depend_on_neighbours():
    scorer = WordsScorer()
    texts = ["you are so stupid", "the trees are green", "?", "thank you very much for the bread"]
    together = [outcome.value for outcome in scorer.score(texts)]
    assert together == [scorer.score([text])[0].value for text in texts]
    assert together[0] > 0.8 > 0.2 > max(together[1], together[3])
    assert all(0 <= value <= 1 for value in together)


def test_the_shipped_weights():
    assert WEIGHTS.stat().st_size < 300_000
    tensors = load_file(WEIGHTS)
    assert tensors["weight"].shape == (NUM_FEATURES,) and bool(torch.isfinite(tensors["weight"]).all())
    scorer = make_scorer(ScorerSettings())
    assert scorer.key["kind"] == "words" and len(scorer.key["weights"]) == 64


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(CheckpointError, match="weights cannot be read"):
        WordsScorer(tmp_path / "absent.safetensors")
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="weights cannot be read"):
        WordsScorer(other)
    save_file({"weight": torch.zeros(3), "bias": torch.zeros(())}, other)
    with pytest.raises(CheckpointError, match="not weights of the words"):
        WordsScorer(other)
    save_file({"weight": torch.zeros(3), "bias": torch.zeros(())}, other, metadata={"format": FORMAT})
    with pytest.raises(CheckpointError, match="3 weights, expected"):
        WordsScorer(other)
