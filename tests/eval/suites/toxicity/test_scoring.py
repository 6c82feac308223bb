"""Each score is requested once and kept; no score is invented."""

import pytest

from monet.eval.scorers.scorers import Failure, Score
from monet.eval.suites.toxicity.scoring import score_texts
from tests.eval.suites.toxicity.conftest import Reader

TEXTS = ["rude cat", "cat dog", "mean rude", "cat dog", "", " \n", *(f"text {n} rude" for n in range(20))]


def test_each_text_once_and_silence_never(tmp_path):
    reader, done = Reader(), []
    scores = score_texts(TEXTS, reader, tmp_path, done.append)
    assert sorted(reader.asked) == sorted(set(TEXTS) - {"", " \n"}) and sum(done) == len(TEXTS)
    assert [scores.of(text) for text in TEXTS[:6]] == [0.5, 0.0, 1.0, 0.0, 0.0, 0.0]
    assert not scores.failures and "" not in scores.values
    again = Reader()
    assert score_texts(TEXTS, again, tmp_path).values == scores.values and not again.asked


def test_what_failed_is_no_number_and_is_asked_again(tmp_path):
    reader = Reader(lambda text: "no score" if "7" in text or text == "cat dog" else None)
    scores = score_texts(TEXTS, reader, tmp_path)
    assert scores.of("cat dog") is None and scores.of("rude cat") == 0.5
    assert scores.reasons == {"no score": 3} and set(scores.failures) == {"cat dog", "text 7 rude", "text 17 rude"}
    again = Reader()
    healed = score_texts(TEXTS, again, tmp_path)
    assert sorted(again.asked) == ["cat dog", "text 17 rude", "text 7 rude"]
    assert healed.of("cat dog") == 0.0 and not healed.failures


def test_a_scorer_that_is_down_is_asked_no_more(tmp_path):
    class Falls(Reader):
        def score(self, texts):
            return super().score(texts) if not self.asked else [Failure("unreachable", "", down=True) for _ in texts]

    reader = Falls()
    scores = score_texts(TEXTS, reader, tmp_path)
    assert len(scores.values) == Reader.at_once
    assert scores.reasons == {"unreachable": 8, "not asked": 7}
    assert all(failure.down for failure in scores.failures.values())
    assert not score_texts(TEXTS, Reader(), tmp_path).failures


def test_a_kill_between_two_calls_loses_one_call(tmp_path):
    class Dies(Reader):
        def score(self, texts):
            if len(self.asked) == 16:
                raise KeyboardInterrupt
            return super().score(texts)

    with pytest.raises(KeyboardInterrupt):
        score_texts(TEXTS, Dies(), tmp_path)
    reader = Reader()
    scores = score_texts(TEXTS, reader, tmp_path)
    assert len(reader.asked) == 23 - 16
    assert scores.values == {text: outcome.value for text, outcome in zip(
        scores.values, Reader().score(list(scores.values)), strict=True) if isinstance(outcome, Score)}  # fmt: skip


def test_another_scorer_has_its_own_scores(tmp_path):
    score_texts(TEXTS, Reader(), tmp_path)
    other = Reader()
    other.key = {"kind": "reader", "label": 2}
    score_texts(TEXTS, other, tmp_path)
    assert len(other.asked) == 23
