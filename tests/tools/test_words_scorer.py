"""Training and check of the words classifier give known answers, and a pickle is read without being run."""

import csv
import pickle

import numpy as np
import pytest
import torch

from monet.errors import DataError
from monet.eval.scorers.words import NUM_FEATURES
from tools.words_scorer import tox_block
from tools.words_scorer.train import area_under_curve, fit, insulting_comments


def test_area_under_curve():
    labels = np.array([True, True, False, False])
    assert area_under_curve(labels, np.array([4.0, 3.0, 2.0, 1.0])) == 1.0
    assert area_under_curve(labels, np.array([1.0, 4.0, 2.0, 3.0])) == 0.5
    assert area_under_curve(labels, np.array([1.0, 1.0, 1.0, 1.0])) == 0.5
    assert area_under_curve(labels, np.array([3.0, 1.0, 2.0, 0.0])) == 0.75


class Tokenizer:
    """Pickles like Keras's: words in one table, their numbers in the next by reference, and the table turned round."""

    def __init__(self, count: int) -> None:
        words = [f"word{i}" for i in range(count)]
        self.word_counts = dict.fromkeys(words, 7)
        self.word_index = {word: i for i, word in enumerate(words, start=1)}
        self.index_word = {i: word for word, i in self.word_index.items()}


def test_a_vocabulary_is_read_from_a_pickle_that_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    path = tmp_path / "encoder.pkl"
    path.write_bytes(pickle.dumps([Trap(), Tokenizer(20_010)], protocol=3))
    words = tox_block.read_vocabulary(path)
    assert len(words) == 19_999 and words["word0"] == 1 and words["word19998"] == 19_999
    assert not (tmp_path / "sprung").exists()
    path.write_bytes(pickle.dumps(Tokenizer(5), protocol=3))
    with pytest.raises(DataError, match="5 words where ToxBlock"):
        tox_block.read_vocabulary(path)


def test_comments_come_with_their_escapes_undone(tmp_path):
    with open(tmp_path / "fulltrain.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([
            ["Insult", "Date", "Comment"],
            ["1", "", '"no\\\\xa0bread\\\\nhere"'],
            ["0", "", '"caf\\\\u00e9"'],
            ["0", "", '"caf\\\\u00e9"'],
        ])  # fmt: skip
    assert insulting_comments(tmp_path) == {"no\xa0bread\nhere": True, "café": False}


def test_the_classifier_learns_a_word():
    texts = [f"{'grim' if i % 3 == 0 else 'calm'} tree number {i}" for i in range(300)]
    wanted = torch.tensor([0.95 if i % 3 == 0 else 0.05 for i in range(300)])
    tensors, kept_back = fit(texts, wanted, decay=1e-5, seed=0, epochs=20)
    assert tensors["weight"].shape == (NUM_FEATURES,) and kept_back < 0.35
